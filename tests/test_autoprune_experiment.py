"""The experiment on AutoPrune: gates in the training loop, targets met or reported, units of the plain networks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from experiments import __main__ as cli
from experiments import gating, models, training, unit_groups
from experiments.data import Dataset, Split
from experiments.gating import Rule
from experiments.methods import Recipe


@pytest.fixture(autouse=True)
def relaxed():
    """Experiments are user code: JAX's ordinary promotion holds in them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def tiny(side=4, count=64, seed=0):
    rng = np.random.default_rng(seed)
    split = Split(
        rng.integers(0, 256, (count, side, side, 1)).astype(np.uint8), rng.integers(0, 3, count).astype(np.int32)
    )
    return Dataset("tiny", split, split, split, 3, (0.5,), (0.25,))


MODEL = models.LeNet300100(3, (12, 6))
RECIPE = Recipe(epochs=6, batch_size=8, learning_rate=0.05, seeds=2)


def initial(model, side):
    return model.init(jax.random.key(0), jnp.zeros((1, side, side, 1)))["params"]


def test_a_compression_that_is_reached_is_met_to_the_last_weight_and_stays():
    shapes = models.parameter_shapes(MODEL, (4, 4, 1))
    target = sj.targets.weights(sj.budgets.compression(shapes, 4.0))
    run = training.train(MODEL, gating.weights(RECIPE, Rule(1.0, 0.05), target), tiny(), RECIPE, progress=False)
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    row = run.history[-1]
    assert min(row["reached_at"]) >= 0
    assert row["closed"] == [size - size // 4] * 2
    for seed in range(2):
        kept = sum(np.count_nonzero(leaf[seed]) for leaf in jax.tree.leaves(run.params))
        assert kept == size // 4
    # Frozen gates neither open nor close, and the weights go on.
    late = [r for r in run.history if min(r["reached_at"]) >= 0]
    assert len(late) > 1
    assert late[-1]["openings"] == late[0]["openings"]
    assert late[-1]["train_loss"] != late[-2]["train_loss"]


def test_a_compression_that_is_missed_is_said_to_be():
    shapes = models.parameter_shapes(MODEL, (4, 4, 1))
    target = sj.targets.weights(sj.budgets.compression(shapes, 4.0))
    run = training.train(MODEL, gating.weights(RECIPE, Rule(1e-4, 0.0), target), tiny(), RECIPE, progress=False)
    assert run.history[-1]["reached_at"] == [-1, -1]
    assert min(run.history[-1]["nonzeros"]) > 200


@pytest.mark.parametrize(("model", "side"), [(models.LeNet300100(3, (7, 5)), 4), (models.LeNet5(3, (3, 4, 6)), 16)])
def test_closed_units_are_gone_from_every_leaf_and_the_network_computes_the_same(model, side):
    params = initial(model, side)
    groups = unit_groups.of(model, params)
    rng = np.random.default_rng(1)
    aux = {name: jnp.asarray(rng.permutation(np.linspace(-1, 2, g.size)), jnp.float32) for name, g in groups.items()}
    gated = sj.gates.Gated(params, aux)
    images = jnp.asarray(rng.standard_normal((5, side, side, 1)), jnp.float32)
    through_gates = model.apply({"params": sj.unit_gates.apply(gated, groups)}, images)
    final = sj.unit_gates.finalize(gated, groups)
    np.testing.assert_allclose(model.apply({"params": final}, images), through_gates, rtol=1e-4, atol=1e-5)
    for name, m in aux.items():
        closed = np.asarray(m) <= 0
        assert closed.any()
        assert not closed.all()
        assert not np.asarray(final[name]["kernel"])[..., closed].any()
        assert not np.asarray(final[name]["bias"])[closed].any()
        assert np.asarray(final[name]["kernel"])[..., ~closed].any()


def test_units_are_written_out_for_plain_networks_only():
    model = models.WideResNet(3, 10, (2, 2, 2, 2))
    with pytest.raises(ValueError, match="units of WideResNet are not written out"):
        unit_groups.of(model, models.parameter_shapes(model, (8, 8, 1)))


def test_units_stop_at_a_share_of_the_multiply_adds():
    params = initial(MODEL, 4)
    groups = unit_groups.of(MODEL, params)
    dense = sj.report.multiply_adds(lambda p, x: MODEL.apply({"params": p}, x), params, jnp.zeros((1, 4, 4, 1)))
    target = sj.targets.units(sj.budgets.multiply_adds(params, dense, 0.4), groups)
    run = training.train(MODEL, gating.units(RECIPE, Rule(1.0, 0.05), groups, target), tiny(), RECIPE, progress=False)
    assert min(run.history[-1]["reached_at"]) >= 0
    for seed in range(2):
        kernels = [np.asarray(run.params[name]["kernel"][seed]) for name in ("Dense_0", "Dense_1", "Dense_2")]
        alive = [int(np.any(kernel, axis=0).sum()) for kernel in kernels[:2]]
        left = 16 * alive[0] + alive[0] * alive[1] + alive[1] * 3
        assert 0 < left <= 0.4 * dense.total


@pytest.mark.slow
def test_the_experiment_draws_every_figure_and_checks_every_claim(tmp_path):
    arguments = ["autoprune", "--epochs", "4", "--seeds", "2", "--compressions", "30", "--shares", "0.5"]
    arguments += ["--rates", "0.5", "--rate", "0.5", "--penalty", "0.05"]
    module, config = cli.parse([*arguments, "--data-dir", str(tmp_path / "data"), "--results", str(tmp_path)])
    directory = module.main(config)
    drawn = {path.name for path in (directory / "figures").glob("*.png")}
    assert drawn == {
        "figure2ab_learning_rates.png",
        "figure2c_updates.png",
        "figure2d_surrogates.png",
        "recovery.png",
        "units.png",
    }
    record = json.loads((directory / "results.json").read_text())
    assert {type(claim["holds"]) for claim in record["claims"]} == {bool}
    assert len(record["claims"]) == 9
