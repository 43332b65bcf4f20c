"""The comparison of all methods: recipes in the training loop, contenders, what counts, and the whole of it."""

import dataclasses
import itertools
import json
import re
from functools import partial
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from tiny_data import tiny

import sparsejax as sj
from experiments import __main__ as cli
from experiments import (
    calibration,
    compiling,
    contenders,
    evidence,
    models,
    profiles,
    published,
    remembered,
    results,
    setup,
    shrinking,
    tradeoff_claims,
    tradeoff_report,
    training,
)
from experiments.bench import Bench, Options
from experiments.contenders import CONTENDERS
from experiments.methods import Recipe
from experiments.one_shot import CUT
from experiments.results import Measured
from experiments.sparsifying import shuffled, through_training
from experiments.tradeoff_claims import Found
from sparsejax import recipes

pytestmark = pytest.mark.usefixtures("relaxed", "one_device")


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


# Contenders ----------------------------------------------------------------------------------------------------------

WIDE = models.LeNet300100(3, (80, 30))  # two of its layers are large enough to be pruned
SIZES = {"Dense_0/kernel": 1280, "Dense_1/kernel": 2400, "Dense_2/kernel": 90}
TOTAL = sum(SIZES.values()) + 80 + 30 + 3


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A bench on random images, whose dense networks are trained once."""
    recipe = Recipe(epochs=9, batch_size=8, learning_rate=0.05, seeds=2, cycles=3)
    options = Options(
        block=(4, 2), calibration=16, rate=20.0, penalty=1e-3, factors={}, unit_rate=20.0, pretrained_rate=20.0
    )
    return Bench(tiny(), WIDE, recipe, tmp_path_factory.mktemp("bench"), options)


def test_a_compression_is_a_share_of_the_layers_that_are_pruned(bench):
    share = bench.share(4)
    assert round(share * 3680) == round(TOTAL - TOTAL / 4)
    assert sj.budgets.Budget(dict.fromkeys(sj.tree.named(bench.shapes), 1), round(TOTAL / 4)) == bench.parameters(share)
    # 16 x 80 + 80 x 30 + 30 x 3 products, of which those of the first two layers go.
    assert bench.multiply_adds_left(0.5) == 90 + 1840
    for compression in (0.5, 1, TOTAL):
        with pytest.raises(ValueError, match=rf"compression={compression:g}: 203 of 3,883 parameters are not pruned"):
            bench.share(compression)


def test_layers_that_fit_lose_what_the_others_keep(bench):
    whole, fitting = (sj.tree.named(bench.uniform(0.5, fits)) for fits in (lambda s: True, lambda s: s[0] == 80))
    assert {name: share for name, share in whole.items() if share} == {"Dense_0/kernel": 0.5, "Dense_1/kernel": 0.5}
    assert {name: share for name, share in fitting.items() if share} == {"Dense_1/kernel": 1840 / 2400}
    few = sj.tree.named(bench.uniform(0.9, lambda s: s[0] == 80))
    assert few["Dense_1/kernel"] == 0.9, "as much as is asked of all, where those that fit are too few"


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_is_as_small_as_it_is_asked_to_be(bench, name):
    networks = {network.name: network for network in contenders.networks(bench, (name,), bench.share(4))}
    assert list(networks)[-1] == name
    network = networks[name]
    assert not any(network.run.failed)
    assert network.accuracy.shape == (2,)
    # Trained for as many epochs as all others, in one run or in two.
    assert network.run.history[-1]["epoch"] == (3 if name + CUT in networks or name == "AutoPrune, pretrained" else 9)
    low, high = {
        "adaptive sparsity": (1.2, 4.4),  # as few steps do not get it there
        "AutoPrune": (1.2, 4.4),
        "SET": (3.8, 4.8),  # what was born in a dead unit lives, and is zero
        "thin dense, multiply-adds": (4.2, 4.6),  # whose biases are fewer too
    }.get(name, (3.9, 4.3))  # biases of units that never fire are zero
    assert low < network.compression.min() <= network.compression.max() < high
    zeros = jax.tree.map(lambda leaf: leaf == 0, network.run.params)
    if "shuffled" in name or "weights" in name or name == "lottery ticket":
        other = "SNIP" if name.startswith("SNIP") else "one-shot magnitude"
        (*_, pruned) = contenders.networks(bench, (other,), bench.share(4))
        same = [np.mean((pruned.run.params[k]["kernel"] == 0) == zeros[k]["kernel"]) for k in ("Dense_0", "Dense_1")]
        assert (np.array(same) < 0.9).all() == ("shuffled" in name)


def test_a_network_is_cut_to_what_is_left_of_its_units(bench):
    (*_, network) = contenders.networks(bench, ("mean replacement",), bench.share(4))
    function, variables = shrinking.small(bench, network.run)
    images = np.random.default_rng(0).standard_normal((5, 4, 4, 1)).astype(np.float32)
    masked = shrinking.unstacked(network.run)[0]
    np.testing.assert_allclose(function(variables, images), WIDE.apply(masked, images), atol=1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) <= TOTAL / 4
    nothing = dataclasses.replace(network.run, params=jax.tree.map(np.zeros_like, network.run.params))
    function, variables = shrinking.small(bench, nothing)
    assert variables["params"]["Dense_0"]["kernel"].shape == (16, 1)
    np.testing.assert_array_equal(function(variables, images), np.zeros((5, 3)))


def test_a_network_that_failed_is_counted_and_marked(bench):
    params = jax.tree.map(np.array, bench.start.params)
    params["Dense_0"]["kernel"][0] = np.nan
    params["Dense_1"]["kernel"][0, 0] = 0.0
    network = bench.row("diverged", dataclasses.replace(bench.start, params=params, failed=[True, False]))
    counted = [sum(np.count_nonzero(leaf[seed]) for leaf in jax.tree.leaves(params)) for seed in range(2)]
    assert [report.nonzeros for report in network.reports] == counted
    assert "| diverged (failed) |" in results.network_table([network])
    assert not tradeoff_claims.counts(network, 1.0)


def test_what_was_computed_once_is_found_again(tmp_path):
    counter, of = itertools.count(1), ({"kernel": jnp.ones(3)}, 7)

    def compute():
        tree = {"kernel": jnp.full((2, 2), next(counter) / 3), "alive": np.array([True, False])}
        return [tree, {}], {"mean": (tree["kernel"].astype(jnp.bfloat16), {"batch_stats": {}})}

    first = remembered.once(tmp_path / "new", of, compute)
    assert next(counter) == 2
    again = remembered.once(tmp_path / "new", of, compute)
    chex.assert_trees_all_equal(again, first)
    assert first[0][0]["alive"].tolist() == [True, False]
    assert first[1]["mean"][0].dtype == jnp.bfloat16
    assert (first[0][1], first[1]["mean"][1]) == ({}, {"batch_stats": {}})
    np.testing.assert_array_equal(first[0][0]["kernel"], np.full((2, 2), 1 / 3, np.float32))
    assert next(counter) == 3
    other = remembered.once(tmp_path / "new", ({"kernel": jnp.ones(3)}, 8), compute)
    assert other[0][0]["kernel"][0, 0] == np.float32(4 / 3)
    (tmp_path / "new" / f"{remembered.fingerprint(of)}.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        remembered.once(tmp_path / "new", of, compute)


def test_the_same_units_are_removed_when_an_experiment_goes_on(bench, tmp_path):
    # On another number of cores sums have other bits, and the run that started from the first ones would be refused.
    workshop = dataclasses.replace(bench, directory=tmp_path)
    remove = partial(shrinking.without, workshop, bench.start, shrinking.multiply_adds(bench, 0.5), 0.0)
    kept, networks = remove()
    (file,) = tmp_path.glob("removed/*")
    stored = sj.storage.load(file).params
    nearly = jax.tree.map(lambda leaf: leaf * np.float32(1 + 1e-6) if leaf.dtype == np.float32 else leaf, stored)
    sj.storage.save(file, nearly)
    chex.assert_trees_all_equal(remove(), nearly)
    sj.storage.save(file, stored)
    chex.assert_trees_all_equal(remove(), (kept, networks))
    smaller, _ = shrinking.without(workshop, bench.start, shrinking.multiply_adds(bench, 0.25), 0.0)
    assert sum(map(np.sum, jax.tree.leaves(smaller))) < sum(map(np.sum, jax.tree.leaves(kept)))


# Findings ------------------------------------------------------------------------------------------------------------


def measured(name, accuracy, nonzeros, failed=(False, False), validation=0.5):
    """A network of 1,000 parameters that was not trained."""
    params = {"kernel": np.zeros(1000)}
    reports = []
    for count in nonzeros:
        params["kernel"][:count] = 1
        reports.append(sj.report.count(params, where="kernel"))
    history = [{"val_accuracy": [validation] * 2}]
    run = training.Run(params, params, {}, history, 1.0, 1.0, list(failed))
    return Measured(name, np.array(accuracy), tuple(reports), run, 1000)


def found(**rows):
    dense = measured("dense", (98.0, 99.0), (1000, 1000))
    averaged = [
        measured("gRDA", (97.0, 97.0), (240, 250), validation=0.97),
        measured("gRDA", (98.0, 98.0), (95, 95), validation=0.94),
        measured("gRDA", (90.0, 90.0), (20, 20), validation=0.95),
    ]
    return Found(dense, dense, [4.0, 10.0], rows, [], averaged)


def test_networks_that_missed_their_size_or_failed_do_not_count():
    rows = {
        "met": {4.0: measured("met", (97.0, 98.0), (250, 250)), 10.0: measured("met", (90.0, 92.0), (109, 109))},
        "missed": {4.0: measured("missed", (99.0, 99.0), (280, 280)), 10.0: measured("missed", (95.0, 96.0), (90, 90))},
        "failed": {4.0: measured("failed", (99.0, 99.0), (250, 250), (False, True))},
        "met" + CUT: {4.0: measured("met" + CUT, (10.0, 10.0), (250, 250))},
    }
    errors = tradeoff_claims.errors(found(**rows))
    assert errors == {
        "met": {4.0: 2.5, 10.0: 9.0},
        "missed": {4.0: np.inf, 10.0: 4.5},
        "failed": {4.0: np.inf, 10.0: np.inf},
        "gRDA": {4.0: 3.0, 10.0: 10.0},  # the best on the validation split of those that are as small
    }
    gains = tradeoff_claims.gains(found(**rows), "missed", "met")
    assert list(gains) == [10.0]
    np.testing.assert_array_equal(gains[10.0], [5, 4])


def test_only_what_was_trained_is_claimed():
    row = {4.0: measured("x", (97.0, 98.0), (250, 250)), 10.0: measured("x", (90.0, 92.0), (100, 100))}
    assert tradeoff_claims.claims(found()) == []
    statements = [claim.statement for claim in tradeoff_claims.claims(found(RigL=row, SET=row))]
    assert statements == ["RigL beats SET"]
    thin = tradeoff_claims.claims(found(**{"thin dense": row, "RigL": row}))
    assert [(claim.holds, claim.measured) for claim in thin] == [
        (False, "thin: 97.50, 91.00; not ahead of it: RigL (2 of 2)")
    ]


def test_profiles_are_the_loop():
    errors = np.array([[1.0, 2.0, np.inf, 0.0], [2.0, 1.9, np.inf, 1.0], [np.inf, 1.9, np.inf, 0.0]])
    taus = np.array([1.0, 1.05, 1.5, 2.0, 9.0])
    expected = np.zeros((3, 5))
    problems = [j for j in range(4) if np.isfinite(errors[:, j]).any()]
    for i, k in itertools.product(range(3), range(5)):
        expected[i, k] = sum(errors[i, j] <= taus[k] * errors[:, j].min() for j in problems) / len(problems)
    np.testing.assert_allclose(profiles.within(errors, taus), expected)
    assert profiles.within(errors, taus)[:, 0].tolist() == [2 / 3, 1 / 3, 2 / 3]


def test_factors_of_the_least_error():
    errors = np.array([[2.0, 0.0, np.inf], [3.0, 0.5, np.inf], [np.inf, 0.0, np.inf]])
    expected = [[1, 1, np.inf], [1.5, np.inf, np.inf], [np.inf, 1, np.inf]]
    np.testing.assert_array_equal(tradeoff_report._factors(errors), expected)


def test_published_numbers_are_of_networks_that_we_have():
    names = {type(model(10)).__name__ for model in setup.MODELS.values()}
    for (dataset, network), numbers in published.NUMBERS.items():
        assert dataset in get_args(setup.DataName)
        assert network in names
        for method in numbers:
            assert all(compression > 1 and 40 < accuracy < 100 for compression, accuracy in method.points)
    assert published.of("digits", "LeNet5") == ()


COMMAND = ["tradeoff", "--epochs", "3", "--seeds", "2", "--compressions", "4", "16", "--mus", "0.6", "--groups"]
COMMAND += ["--methods", "gradual magnitude", "mean replacement", "thin dense"]


@pytest.mark.slow
def test_the_experiment_compares_and_gathers(tmp_path, capsys):
    module, config = cli.parse([*COMMAND, "--data-dir", str(tmp_path / "data"), "--results", str(tmp_path)])
    directory = module.main(config)
    printed = capsys.readouterr().out
    record = json.loads((directory / "results.json").read_text())
    names = {network["name"] for network in record["networks"]}
    assert names == {"dense", "dense, same epochs", "gRDA", "mean replacement, as cut", *COMMAND[-3:]}
    assert all(f"| {name} " in printed for name in names)
    assert "| 4x, mean replacement, cut " in printed
    assert record["errors"].keys() == {*COMMAND[-3:], "gRDA"}
    assert record["errors"]["thin dense"].keys() == {"4.0", "16.0"}
    drawn = {path.name for path in (directory / "figures").glob("*.png")}
    assert drawn == {"compression.png", "near_dense.png", "multiply_adds.png"}
    report = (tmp_path / evidence.REPORT).read_text()
    assert "## Accuracy against compression: LeNet300100 on digits" in report
    assert report.count("| tradeoff, digits-LeNet300100 ") == 1 + len(record["claims"])
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert len(pictures) == 4
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_evidence_needs_results(tmp_path):
    module, config = cli.parse(["evidence", "--results", str(tmp_path)])
    with pytest.raises(ValueError, match="run an experiment first"):
        module.main(config)
