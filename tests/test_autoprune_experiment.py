"""The experiment on AutoPrune: gates in the training loop, targets met or reported, units of the plain networks."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_data import tiny

import sparsejax as sj
from experiments import __main__ as cli
from experiments import autoprune, gating, models, setup, training, unit_groups
from experiments.data import Dataset, Split
from experiments.gating import Rule
from experiments.methods import Recipe

pytestmark = pytest.mark.usefixtures("relaxed", "one_device")


MODEL = models.LeNet300100(3, (12, 6))
RECIPE = Recipe(epochs=6, batch_size=8, learning_rate=0.05, seeds=2)


class Linear(nn.Module):
    """Nothing but an output layer."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(3)(images.reshape(len(images), -1))


def initial(model, side):
    return model.init(jax.random.key(0), jnp.zeros((1, side, side, 1)))["params"]


def test_a_compression_that_is_reached_is_met_to_the_last_weight_and_stays():
    shapes = models.parameter_shapes(MODEL, (4, 4, 1))
    target = sj.targets.weights(sj.budgets.compression(shapes, 4.0))
    run = training.train(MODEL, gating.weights(RECIPE, Rule(1.0, penalty=0.05), target), tiny(), RECIPE, progress=False)
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
    run = training.train(MODEL, gating.weights(RECIPE, Rule(1e-4, penalty=0.0), target), tiny(), RECIPE, progress=False)
    assert run.history[-1]["reached_at"] == [-1, -1]
    assert min(run.history[-1]["nonzeros"]) > 200


@pytest.mark.parametrize(("model", "side"), [(models.LeNet300100(3, (7, 5)), 4), (models.LeNet5(3, (3, 4, 6)), 16)])
def test_closed_units_are_gone_from_every_leaf_and_the_network_computes_the_same(model, side):
    params = initial(model, side)
    groups = unit_groups.of(model, (side, side, 1))
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


def test_units_of_a_network_with_norms_are_axes_of_its_parameters():
    model = models.WideResNet(3, 10, (2, 2, 3, 4))
    groups = unit_groups.of(model, (8, 8, 1))
    leaves = sj.tree.named(models.parameter_shapes(model, (8, 8, 1)))
    assert {member.leaf for group in groups.values() for member in group.members} <= set(leaves)
    assert sorted(group.size for group in groups.values()) == [2, 2, 3, 3, 4, 4]


def test_a_network_without_hidden_units_is_refused_with_the_reasons():
    with pytest.raises(ValueError, match=r"no unit of Linear can be removed(.|\n)*it is an output"):
        unit_groups.of(Linear(), (4, 4, 1))


def test_units_stop_at_a_share_of_the_multiply_adds():
    params = initial(MODEL, 4)
    groups = unit_groups.of(MODEL, (4, 4, 1))
    dense = models.multiply_adds(MODEL, (4, 4, 1))
    target = sj.targets.units(sj.budgets.multiply_adds(params, dense, 0.4), groups)
    run = training.train(
        MODEL, gating.units(RECIPE, Rule(1.0, penalty=0.05), groups, target), tiny(), RECIPE, progress=False
    )
    assert min(run.history[-1]["reached_at"]) >= 0
    for seed in range(2):
        kernels = [np.asarray(run.params[name]["kernel"][seed]) for name in ("Dense_0", "Dense_1", "Dense_2")]
        alive = [int(np.any(kernel, axis=0).sum()) for kernel in kernels[:2]]
        left = 16 * alive[0] + alive[0] * alive[1] + alive[1] * 3
        assert 0 < left <= 0.4 * dense.total


def job(*arguments):
    """The experiment's job of a command line, without its data."""
    _, config = cli.parse(["autoprune", *arguments])
    config = autoprune.settle(config)
    shapes = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "imagenet2012": (224, 224, 3)}
    image = np.zeros((1, *shapes[config.dataset]), np.uint8)
    split = Split(image, np.zeros(1, np.int32))
    classes = 1000 if config.dataset == "imagenet2012" else 10
    dataset = Dataset(config.dataset, split, split, split, classes, (0.5,), (0.25,))
    recipe = Recipe(epochs=4, learning_rate=config.learning_rate or 0.1, weight_decay=config.weight_decay)
    return autoprune.Job(dataset, setup.MODELS[config.model](classes), recipe, Path(), config)


@pytest.mark.parametrize(
    ("dataset", "model", "rate", "last", "decay", "compressions", "multiply_adds"),
    [
        ("mnist", "lenet5", 1e-3, 1e-5, 5e-4, (168, 310), [0.07 * 2_293_000]),
        ("mnist", "lenet300", 1e-3, 1e-5, 5e-4, (10, 20, 30, 80), []),
        ("cifar10", "vgg-like", 0.05, None, 5e-4, (10, 20, 30, 40, 50, 60, 70, 75, 80), [0.23 * 313_463_808]),
        ("imagenet2012", "alexnet", 1e-3, None, 1e-5, (18.5,), []),
        ("imagenet2012", "resnet50", 1e-5, 1e-6, 1e-5, (2.2,), [600e6]),
        ("imagenet2012", "mobilenetv2", 1e-5, None, 1e-5, (), [200e6, 100e6]),
    ],
)
def test_paper_means_the_published_settings(dataset, model, rate, last, decay, compressions, multiply_adds):
    asked = job("--paper", "--dataset", dataset, "--model", model)
    recipe = asked.gated(())
    assert (recipe.epochs, recipe.learning_rate, recipe.weight_decay) == (2, rate, decay)
    if last is not None:
        np.testing.assert_allclose(recipe.schedule(recipe, 5)(9), last, rtol=1e-5)
    assert asked.config.compressions == compressions
    total = models.multiply_adds(asked.model, asked.image).total
    np.testing.assert_allclose([share * total for share in asked.config.shares], multiply_adds)
    assert asked.config.starts == (("pretrained",) if dataset == "imagenet2012" else ("scratch", "pretrained"))


def test_factors_belong_to_the_layers_of_the_presets_network():
    assert set(job("--dataset", "mnist").rule.factors) == {"Conv_0", "Conv_1", "Dense_1"}
    assert job("--dataset", "mnist", "--model", "lenet300").rule.factors == {}


def test_gates_of_a_trained_network_start_from_magnitudes():
    asked = job("--dataset", "mnist")
    assert (asked.before.epochs, asked.after.epochs) == (1, 3)
    rule = asked.of("pretrained")
    assert (rule.rate, rule.penalty, rule.factors) == (0.1, 0.02, {})
    assert asked.of("scratch") == asked.rule
    assert asked.rule.start is sj.gates.init
    params = initial(MODEL, 4)
    gated = gating.weights(RECIPE, rule).init(jax.random.key(1), params)
    expected = sj.gates.from_magnitudes(params)
    jax.tree.map(np.testing.assert_array_equal, gated.aux, expected.aux)
    assert rule.settings()["start"] == "magnitudes"
    plain = job("--dataset", "mnist", "--magnitudes", "False", "--pretraining", "0.5")
    assert plain.of("pretrained") == plain.rule
    assert (plain.before.epochs, plain.after.epochs) == (2, 2)


def test_adam_takes_the_step_of_adam_and_factors_slow_a_layer_down():
    rule = Rule(2.0, {"Dense_0": 0.25}, penalty=0.05, surrogate=sj.surrogates.linear, descent=gating.adam)
    method = gating.weights(RECIPE, rule)
    params = initial(MODEL, 4)
    gated = method.init(jax.random.key(1), params)
    tx = method.optimizer(lambda step: 0.01)
    state = tx.init(gated)
    zeros = jax.tree.map(jnp.zeros_like, gated)
    updates, state = tx.update(zeros, state, gated)
    for name, update in updates.aux.items():
        np.testing.assert_allclose(update, -2.0 * 0.05 * (0.25 if "Dense_0" in name else 1.0), rtol=1e-6)
    grads = jax.tree.map(jnp.ones_like, gated)
    updates, _ = tx.update(grads, state, gated)
    for update in jax.tree.leaves(updates.weights):
        np.testing.assert_allclose(update, -0.01, rtol=1e-4)


def test_an_l1_penalty_takes_the_place_of_weight_decay():
    params = initial(MODEL, 4)
    method = gating.weights(RECIPE, Rule(l1=0.5))
    gated = method.init(jax.random.key(1), params)
    tx = method.optimizer(lambda step: 0.1)
    state = tx.init(gated)
    zeros = jax.tree.map(jnp.zeros_like, gated)
    for _ in range(2):  # of the gates, and of the weights
        updates, state = tx.update(zeros, state, gated)
    for w, update in zip(jax.tree.leaves(params), jax.tree.leaves(updates.weights), strict=True):
        expected = np.sign(w) * np.maximum(np.abs(w) - 0.05, 0)
        np.testing.assert_allclose(np.asarray(w) + update, expected, atol=1e-6)


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
    assert len(record["claims"]) == 11
