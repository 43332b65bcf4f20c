"""The experiment on directional pruning: what it trains, tunes, measures between two networks, and says."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import __main__ as cli
from experiments import directional_pruning, geometry, models, pruning, setup, training, tuning
from experiments.data import Dataset, Split
from experiments.methods import Recipe

pytestmark = pytest.mark.usefixtures("relaxed", "one_device")


class Linear(nn.Module):
    """The smallest network: its Hessian can be formed."""

    classes: int = 3

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.classes)(images.reshape(images.shape[0], -1))


class Normalised(nn.Module):
    """A network with running statistics."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.7)(images.reshape(images.shape[0], -1))
        return nn.Dense(3)(x)


def tiny(count=40, seed=0):
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (count, 2, 2, 1)).astype(np.uint8), rng.integers(0, 3, count).astype(np.int32)
    split = Split(images, labels)
    return Dataset("tiny", split, split, split, 3, (0.5,), (0.25,))


def network(model, seed):
    variables = dict(model.init(jax.random.key(seed), jnp.zeros((1, 2, 2, 1))))
    return variables.pop("params"), variables


@pytest.mark.slow
def test_the_experiment_draws_every_figure_and_checks_every_claim(tmp_path, capsys):
    arguments = ["directional_pruning", "--epochs", "4", "--seeds", "2", "--mus", "0.5", "0.8", "--c", "0.3"]
    arguments += ["--images", "100", "--snapshots", "2", "--curve-epochs", "2", "--grid", "5", "--directions", "2"]
    module, config = cli.parse([*arguments, "--data-dir", str(tmp_path / "data"), "--results", str(tmp_path)])
    directory = module.main(config)
    drawn = {path.name[:7] for path in (directory / "figures").glob("*.png")}
    assert drawn == {f"figure{i}" for i in (1, 2, 4, 6, 8)}
    record = json.loads((directory / "results.json").read_text())
    assert len(record["claims"]) == 8
    assert {type(claim["holds"]) for claim in record["claims"]} == {bool}
    networks = {one["name"]: one for one in record["networks"]}
    assert list(networks) == ["SGD", "gRDA 0.5", "gRDA 0.8", "SGD, cut as gRDA 0.5", "SGD, cut as gRDA 0.8"]
    assert max(networks["SGD"]["sparsity_of_pruned_layers"]) < 0.1  # biases that never moved
    for mu in ("0.5", "0.8"):
        cut, averaged = networks[f"SGD, cut as gRDA {mu}"], networks[f"gRDA {mu}"]
        np.testing.assert_allclose(cut["kept_of_all"], averaged["kept_of_all"], atol=0.01)
    assert np.mean(networks["gRDA 0.8"]["kept_of_all"]) < np.mean(networks["gRDA 0.5"]["kept_of_all"]) < 100
    assert "Claims of the paper" in capsys.readouterr().out


@pytest.mark.slow
def test_tuning_prints_the_largest_c_that_holds(tmp_path, capsys):
    arguments = ["directional_pruning", "--tune", "--tune-epochs", "2", "--seeds", "1", "--margin", "20", "--c", "0.3"]
    module, config = cli.parse([*arguments, "--data-dir", str(tmp_path / "data"), "--results", str(tmp_path)])
    directory = module.main(config)
    printed = capsys.readouterr().out
    assert (directory / "report.md").read_text().startswith("# c for mu = 0.51 on digits")
    rows = [line.split("|")[1:5] for line in printed.splitlines() if line.startswith("| 0")]
    held = {float(c): said.strip() == "yes" for c, _, _, said in rows}
    assert set(held.values()) == {True, False}, "the search must bracket the answer"
    chosen = float(printed.split("--c ")[1].split()[0])
    assert chosen == pytest.approx(max(c for c, said in held.items() if said), rel=0.01)


@pytest.mark.parametrize(
    ("dataset", "model", "parameters", "epochs", "batch_size", "c"),
    [
        ("cifar10", "vgg16", 15_245_130, 600, 128, 5e-4),
        ("cifar10", "wrn-28-10", 36_489_290, 200, 128, 1e-3),
        ("cifar100", "wrn-28-10", 36_546_980, 200, 128, 1e-3),
        ("imagenet2012", "resnet50", 25_557_032, 180, 256, 5e-3),
    ],
)
def test_paper_means_the_papers_settings(dataset, model, parameters, epochs, batch_size, c):
    _, config = cli.parse(["directional_pruning", "--paper", "--dataset", dataset, "--model", model])
    config = directional_pruning.settle(config)
    classes, size = {"cifar10": (10, 32), "cifar100": (100, 32), "imagenet2012": (1000, 224)}[dataset]
    assert models.parameter_count(setup.MODELS[config.model](classes), (size, size, 3)) == parameters
    assert (config.epochs, config.c, config.learning_rate, config.weight_decay) == (epochs, c, 0.1, 0)
    assert (config.batch_size or 128) == batch_size
    factor = directional_pruning.DECAYS[config.decay](Recipe(epochs=epochs, learning_rate=1.0), 10)(9 * epochs)
    assert float(factor) == pytest.approx(0.01 if dataset != "imagenet2012" else 1.0, abs=0.01)


def test_paper_names_its_settings_where_it_has_none():
    _, config = cli.parse(["directional_pruning", "--paper", "--dataset", "digits"])
    with pytest.raises(ValueError, match="the paper trains --dataset cifar10 --model vgg16"):
        directional_pruning.settle(config)


def test_without_a_threshold_dual_averaging_is_the_same_descent_on_the_same_batches():
    recipe = Recipe(epochs=3, batch_size=8, seeds=2, momentum=0.9, weight_decay=0.1)
    first, second = (
        training.train(Linear(), method, tiny(), recipe, progress=False)
        for method in (pruning.descent(recipe), pruning.dual_averaging(recipe, 0.0, 0.6))
    )
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    weights = np.concatenate([np.ravel(leaf[0]) for leaf in jax.tree.leaves(first.params)])
    expected = np.linalg.norm(weights) / np.abs(weights).sum()
    assert first.history[-1]["norm_ratio"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("limit", [0.0007, 0.02, 0.9, 35.0])
@pytest.mark.parametrize("start", [0.001, 1.0])
def test_largest_brackets_the_answer_and_halves_the_bracket(limit, start):
    made = []

    def trial(c):
        made.append(c)
        return tuning.Trial(c, 90.0 - (5.0 if c > limit else 0.0), 100 * c)

    best, trials = tuning.largest(trial, 89.5, start, rounds=4)
    assert [t.c for t in trials] == made
    assert best.c <= limit < best.c * 2 ** (1 / 2**4) * (1 + 1e-9)


def test_largest_says_when_there_is_no_answer():
    with pytest.raises(ValueError, match=r"stays on one side of 89\.00%"):
        tuning.largest(lambda c: tuning.Trial(c, 90.0, 0.0), 89.0, 1.0)
    with pytest.raises(ValueError, match="start=0 must be a positive number"):
        tuning.largest(lambda c: tuning.Trial(c, 90.0, 0.0), 89.0, 0)


def test_magnitude_keeps_the_largest_of_all_layers_together():
    rng = np.random.default_rng(0)
    params = {"a": rng.standard_normal((2, 6, 5)).astype(np.float32), "b": rng.standard_normal((2, 10)) * 3}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    cut = directional_pruning.magnitude(params, np.array([0.25, 0.8]))
    for seed, zeros in enumerate((10, 32)):
        before = np.concatenate([np.ravel(leaf[seed]) for leaf in jax.tree.leaves(params)])
        after = np.concatenate([np.ravel(leaf[seed]) for leaf in jax.tree.leaves(cut)])
        order = np.argsort(np.abs(before))
        assert (after[order[:zeros]] == 0).all()
        np.testing.assert_array_equal(after[order[zeros:]], before[order[zeros:]])


@pytest.mark.parametrize("size", [10, 40], ids=["batches", "one batch"])
def test_projection_share_is_that_of_the_hessian_formed_by_hand(size):
    model, dataset = Linear(), tiny()
    data = geometry.batches(dataset, 40, size)
    first, second = network(model, 0), network(model, 1)
    found = geometry.projection(model, {3: first}, {"other": {3: second}}, data, 2)
    # Softmax regression: the Hessian is the mean of (diag(p) - p p^T) x (x x^T), x with a 1 for the bias.
    x = np.concatenate([np.asarray(data[0]).reshape(40, 4), np.ones((40, 1))], axis=1)

    def stack(params):
        return np.concatenate([np.asarray(params["Dense_0"]["kernel"]), np.asarray(params["Dense_0"]["bias"])[None]])

    logits = x @ stack(first[0])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    curvature = np.einsum("ni,ij->nij", p, np.eye(3)) - np.einsum("ni,nj->nij", p, p)
    hessian = np.einsum("nij,na,nb->aibj", curvature, x, x).reshape(15, 15) / 40
    values, vectors = np.linalg.eigh(hessian)
    moved = (stack(second[0]) - stack(first[0])).ravel()
    share = np.linalg.norm(vectors[:, -2:].T @ moved) / np.linalg.norm(moved)
    np.testing.assert_allclose(found.values[0], values[::-1][:2], rtol=1e-3)
    np.testing.assert_allclose(found.shares["other"], [share], rtol=1e-3)
    assert found.chance == pytest.approx((2 / 15) ** 0.5)
    assert found.epochs.tolist() == [3]


def test_running_statistics_become_the_mean_of_the_batches():
    model = Normalised()
    images, _ = geometry.batches(tiny(), 40, 10)
    params, state = network(model, 0)

    def apply(state, batch):
        return model.apply({"params": params, **state}, batch, train=True, mutable=["batch_stats"])[1]

    found = geometry.recomputed(apply, state, images)["batch_stats"]["BatchNorm_0"]
    flat = np.asarray(images).reshape(4, 10, 4)
    np.testing.assert_allclose(found["mean"], flat.mean(1).mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], flat.var(1).mean(0), rtol=1e-4)
    assert geometry.recomputed(apply, {}, images) == {}


@pytest.mark.parametrize("model", [Linear(), Normalised()], ids=["plain", "normalised"])
def test_a_way_starts_and_ends_at_its_networks_and_the_curve_is_no_higher_than_the_line(model):
    data = geometry.batches(tiny(), 40, 10)
    first, second = network(model, 0), network(model, 1)
    way = geometry.way(model, first, second, data, data, optax.sgd(0.05), 30)
    assert way.curve.shape == way.segment.shape == (geometry.POINTS,)
    np.testing.assert_allclose(way.curve[[0, -1]], way.segment[[0, -1]], rtol=1e-5)
    assert way.curve.mean() < way.segment.mean()
    assert way.barrier == pytest.approx(max(0.0, way.curve.max() - max(way.curve[0], way.curve[-1])), abs=1e-6)
    land = geometry.landscape(model, first, way.control, second, data, 4)
    assert land.loss.shape == (4, 4)
    assert np.isfinite(land.loss).all()


def test_batches_are_whole_and_normalised():
    images, labels = geometry.batches(tiny(), 35, 10)
    assert images.shape == (3, 10, 2, 2, 1)
    raw = tiny().train
    np.testing.assert_allclose(images[1, 0], (raw.images[10] / 255 - 0.5) / 0.25, atol=1e-5)
    np.testing.assert_array_equal(labels.ravel(), raw.labels[:30])
