"""The experiment on baselines: recipes in the training loop, calibration, shuffled masks, and the whole of it."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from tiny_data import tiny

import sparsejax as sj
from experiments import __main__ as cli
from experiments import calibration, compiling, models, results, training
from experiments.methods import Recipe
from experiments.sparsifying import shuffled, through_training
from sparsejax import recipes

pytestmark = pytest.mark.usefixtures("relaxed")


MODEL = models.LeNet300100(3, (12, 6))
RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.05, seeds=2)
SHAPES = models.parameter_shapes(MODEL, (4, 4, 1))
AROUND = {
    "gradual": lambda tx, target, seed: recipes.gradual_magnitude(tx, target, 0, 16, 8),
    "global": lambda tx, target, seed: recipes.global_magnitude(tx, target, 0, 16, 8),
    "snip": lambda tx, target, seed: recipes.snip(tx, target),
    "set": lambda tx, target, seed: recipes.set_(tx, target, 16, 8, seed=seed),
    "random": lambda tx, target, seed: recipes.random_pruning(tx, target, seed=seed),
}


def kernels(params, seed):
    return {name: np.asarray(leaf[seed]) for name, leaf in sj.tree.named(params).items() if leaf.ndim > 2}


@pytest.mark.parametrize("name", AROUND)
def test_a_recipe_in_the_training_loop_meets_its_target_for_every_seed(name):
    target = sj.allocate.uniform(SHAPES, 0.75, "kernel")
    method = through_training(RECIPE, AROUND[name], target, name)
    run = training.train(MODEL, method, tiny(), RECIPE, progress=False)
    alive = []
    for seed in range(2):
        pruned = {leaf: values != 0 for leaf, values in kernels(run.params, seed).items()}
        counts = {leaf: int(mask.sum()) for leaf, mask in pruned.items()}
        sizes = {leaf: mask.size for leaf, mask in pruned.items()}
        if name in ("global", "snip"):
            assert sum(counts.values()) == oracles.kept(0.75, sum(sizes.values()))
        elif name == "set":  # what was born in a dead unit lives, and is zero
            assert all(0 < count <= oracles.kept(0.75, sizes[leaf]) for leaf, count in counts.items())
        else:
            assert counts == {leaf: oracles.kept(0.75, size) for leaf, size in sizes.items()}
        alive.append(pruned["Dense_0/kernel"])
    assert not np.array_equal(*alive), "the seeds of a run have masks of their own"
    # Biases are left alone; those of units that never fire stay where they began, at zero.
    assert np.count_nonzero(run.params["Dense_0"]["bias"]) > 12


def test_a_recipe_that_begins_sparse_trains_no_dense_network():
    target = sj.allocate.uniform(SHAPES, 0.75, "kernel")
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))["params"]
    begun = {name: through_training(RECIPE, AROUND[name], target).init(jax.random.key(1), params) for name in AROUND}
    kept = {name: np.count_nonzero(trained.params["Dense_0"]["kernel"]) for name, trained in begun.items()}
    assert kept == {"gradual": 192, "global": 192, "snip": 192, "set": 48, "random": 192}
    method = through_training(RECIPE, AROUND["set"], target)
    assert float(jax.grad(lambda t: method.forward(t)["Dense_0"]["kernel"].sum())(begun["set"]).draw) == 0


@pytest.mark.parametrize(("model", "side"), [(MODEL, 4), (models.LeNet5(3, (3, 4, 6)), 16)])
def test_input_norms_are_those_of_what_each_layer_reads(model, side):
    images = jnp.asarray(np.random.default_rng(2).standard_normal((5, side, side, 1)), jnp.float32)
    variables = model.init(jax.random.key(0), images)
    norms = jax.jit(partial(calibration.input_norms, model))(variables["params"], {}, images)
    assert norms.keys() == {name for name in sj.tree.named(variables["params"]) if name.endswith("kernel")}
    first, second = ("Conv_0", "Conv_1") if side == 16 else ("Dense_0", "Dense_1")
    _, kept = model.apply(variables, images, capture_intermediates=True)
    pixels = np.asarray(images, np.float64)
    expected = np.sqrt((pixels**2).sum((0, 1, 2) if side == 16 else 0)).ravel()
    np.testing.assert_allclose(norms[f"{first}/kernel"], expected, rtol=1e-5)
    outputs = np.asarray(kept["intermediates"][first]["__call__"][0], np.float64)
    if side == 16:  # Caffe's network has no ReLU here, but max pooling by 2
        n, h, w, c = outputs.shape
        outputs = outputs.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
    else:
        outputs = np.maximum(outputs, 0)
    read = np.sqrt((outputs**2).sum(tuple(range(outputs.ndim - 1))))
    np.testing.assert_allclose(norms[f"{second}/kernel"], read, rtol=1e-4)
    scores = sj.scores.wanda(variables["params"], input_norms=norms)
    assert jax.tree.structure(scores) == jax.tree.structure(variables["params"])


def test_shuffled_masks_keep_their_counts_and_lose_their_places():
    rng = np.random.default_rng(3)
    first, second = rng.random((30, 20)) < 0.2, rng.random((5, 9)) < 0.7
    mask = {"a": jnp.asarray(first), "b": [jnp.asarray(second), jnp.asarray(True)]}
    other = shuffled(jax.random.key(0), mask)
    sj.masks.check(other, jax.tree.map(lambda m: np.zeros(m.shape), mask))
    for before, after in zip(jax.tree.leaves(mask), jax.tree.leaves(other), strict=True):
        assert int(before.sum()) == int(after.sum())
        assert before.size == 1 or not np.array_equal(before, after)
    # As many are where they were as chance puts there.
    assert 0.1 < (mask["a"] & other["a"]).sum() / mask["a"].sum() < 0.35


def test_one_is_ahead_only_if_seeds_agree():
    assert results.is_ahead([np.array([1.0, 1.2, 0.9]), np.array([0.3, 0.5, 0.4])])
    assert not results.is_ahead([np.array([2.0, -1.0, 0.5])])
    assert not results.is_ahead([np.array([-0.1]), np.array([-0.1])])
    assert results.is_ahead([np.array([0.1])])
    assert not results.is_ahead([])


def test_a_cache_of_ones_own_stays_in_use():
    before = jax.config.jax_compilation_cache_dir
    with compiling.once():
        inside = jax.config.jax_compilation_cache_dir
    assert inside is not None
    assert jax.config.jax_compilation_cache_dir == before
    assert before is None or inside == before


@pytest.mark.slow
def test_the_experiment_compares_all_methods(tmp_path, capsys):
    arguments = ["baselines", "--epochs", "3", "--seeds", "2", "--sparsities", "0.9", "--mus", "0.6"]
    module, config = cli.parse([*arguments, "--data-dir", str(tmp_path / "data"), "--results", str(tmp_path)])
    directory = module.main(config)
    printed = capsys.readouterr().out
    record = json.loads((directory / "results.json").read_text())
    networks = {network["name"]: network for network in record["networks"]}
    for name in ("gradual magnitude", "RigL", "SET", "SNIP", "random", "blocks", "Wanda", "one-shot LAMP", "AutoPrune"):
        assert f"| {name} " in printed
    for name in ("gradual magnitude", "global magnitude", "SNIP", "RigL", "one-shot magnitude", "SNIP, shuffled"):
        np.testing.assert_allclose(networks[name]["sparsity_of_pruned_layers"], 90, atol=0.02, err_msg=name)
    np.testing.assert_allclose(networks["2:4"]["sparsity_of_pruned_layers"], 50)
    asked = {name: network["reports"][0].get("prunable_asked") for name, network in networks.items()}
    assert asked["channels"] < 0.9 == asked["SNIP"]
    assert asked["thin dense"] is None
    assert {path.name for path in (directory / "figures").glob("*.png")} == {"tradeoff.png", "tradeoff_near_dense.png"}
    assert {type(claim["holds"]) for claim in record["claims"]} == {bool}
    assert len(record["claims"]) == 17
