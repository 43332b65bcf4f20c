"""The experiment on mean replacement: copies without units, their losses, profiles, claims, and the whole of it."""

import dataclasses
import json
from functools import partial
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_data import tiny

import sparsejax as sj
from experiments import __main__ as cli
from experiments import mean_replacement, models, orders, profiles, setup, splits, training
from experiments.mean_replacement_claims import SQUARES, Found, claims, lower
from experiments.methods import Recipe, dense
from experiments.removals import REPLACED, SCORES, Choice, Copies, layers, repeated

pytestmark = pytest.mark.usefixtures("relaxed", "one_device")

MODEL = models.SmallConv(3, widths=(4, 5, 6, 7, 6))
IMAGE = (24, 24, 1)
CHOICES = (Choice("all", 0.4), Choice("all", 1), Choice("midconv", 0.4), Choice("firstdense", 0.5))
LAYERS = ("Conv_0", "Conv_1", "Conv_2", "Dense_0", "Dense_1")


def normalize(images):
    return images.astype(jnp.float32) / 100 - 1


def data(seed, *shape):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*shape, *IMAGE)).astype(np.uint8), rng.integers(0, 3, shape).astype(np.int32)


@pytest.fixture(scope="module")
def case():
    copies = Copies(MODEL, IMAGE, normalize, CHOICES, optax.sgd(0.1, 0.9), "consumer_input")
    variables = MODEL.init(jax.random.key(3), jnp.zeros((1, *IMAGE)))
    # Biases that matter, and units of which most are alive.
    variables = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim == 1 else leaf, variables)
    batches = [data(0, 8), data(1, 4)]
    stats = copies.statistics(variables, batches, jax.random.key(0))
    return copies, variables, batches, stats


def losses(variables, images, labels, change=lambda name, x: x):
    """The mean loss if what each layer reads is changed on the way."""

    def record(next_function, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, nn.Dense | nn.Conv):
            args = (change(context.module.name, args[0]), *args[1:])
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        logits = np.asarray(MODEL.apply(variables, normalize(images)), np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]))


def removed(kept, means, how):
    """What a layer reads when units of the layer before it give nothing, or their mean, instead of themselves."""
    readers = dict(zip(LAYERS, (*LAYERS[1:], "Dense_2"), strict=True))
    before = {reader: name for name, reader in readers.items()}

    def change(name, x):
        if name not in before:
            return x
        stays = np.asarray(kept[f"params/{before[name]}"])
        constant = means[name] if how == "mean" else np.zeros_like(means[name])
        return jnp.where(stays, x, jnp.asarray(constant, x.dtype))

    return change


def test_layers_of_the_paper():
    small = layers(sj.units.trace(MODEL.apply, *models.variable_shapes(MODEL, IMAGE)))
    names = {name: tuple(group.removeprefix("params/") for group in groups) for name, groups in small.items()}
    assert names == {
        "all": LAYERS,
        "firstconv": ("Conv_0",),
        "midconv": ("Conv_1",),
        "lastconv": ("Conv_2",),
        "firstdense": ("Dense_0",),
    }
    vgg = models.Vgg11(3, widths=(2,) * 10)
    deep = layers(sj.units.trace(vgg.apply, *models.variable_shapes(vgg, (32, 32, 3))))
    assert deep["midconv"] == ("params/Conv_3",)  # the fourth of eight
    assert deep["lastconv"] == ("params/Conv_7",)
    assert len(deep["all"]) == 10


def test_scores_choose_the_lowest_in_the_layers_that_were_asked_for(case):
    copies, _, _, stats = case
    ways = jax.tree.map(lambda kept: np.asarray(kept).reshape(len(CHOICES), len(SCORES), -1), copies.select(stats))
    for number, (where, amount) in enumerate(CHOICES):
        for which, score in enumerate(SCORES):
            for group, values in getattr(stats, score).items():
                count = amount if isinstance(amount, int) else int(amount * values.size)
                # Of equal ones (dead units) the lower index stays.
                lowest = np.lexsort((-np.arange(values.size), np.asarray(values)))[:count]
                asked = group in copies.layers[where]
                gone = np.flatnonzero(~ways[group][number, which])
                assert sorted(gone) == (sorted(lowest) if asked else [])


def test_losses_of_copies_are_those_with_changed_inputs(case):
    # VALID convolutions read a constant as a constant, so that folding it into biases is exact, layer after layer.
    copies, variables, batches, stats = case
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    seen = {}

    def record(name, x):
        seen[name] = np.asarray(x)
        return x

    losses(variables, images, labels, record)
    means = {name: x.mean(tuple(range(x.ndim - 1))) for name, x in seen.items()}
    ways = copies.select(stats)
    found = copies.losses(variables, ways, stats, batches)
    pruned = copies.without(variables, ways, stats)
    assert found.shape == (len(CHOICES) * len(SCORES), len(REPLACED))
    np.testing.assert_allclose(copies.losses_of(pruned, batches).reshape(found.shape), found, rtol=1e-5)
    for row in range(0, len(found), 5):
        kept = {group: np.asarray(one[row]) for group, one in ways.items()}
        for column, how in enumerate(REPLACED):
            expected = losses(variables, images, labels, removed(kept, means, how))
            np.testing.assert_allclose(found[row, column], expected, rtol=2e-4)
    whole = jax.tree.map(lambda leaf: leaf[None], variables)
    np.testing.assert_allclose(copies.losses_of(whole, batches), [losses(variables, images, labels)], rtol=1e-5)
    assert np.abs(found - losses(variables, images, labels)).max() > 1e-3


def test_first_order_is_the_derivative_along_the_biases(case):
    copies, variables, batches, stats = case
    ways = jax.tree.map(lambda kept: kept[::5], copies.select(stats))
    zero, mean = (jax.tree.map(lambda x, i=i: x[i::2], copies.without(variables, ways, stats)) for i in (0, 1))
    found = copies.first_order(variables, ways, stats, batches)
    for row, value in enumerate(found):
        step = jax.tree.map(lambda z, m, row=row: np.float64(z[row]) - np.float64(m[row]), zero, mean)

        def moved(t, step=step):
            there = jax.tree.map(lambda leaf, d: np.asarray(leaf + t * d, np.float32), variables, step)
            return np.average([losses(there, *batch) for batch in batches], weights=[8, 4])

        np.testing.assert_allclose(value, (moved(1e-2) - moved(-1e-2)) / 2e-2, rtol=0.05, atol=1e-3)
    assert np.abs(found).max() > 1e-2


def test_copies_learn_and_what_was_removed_stays_removed(case):
    copies, variables, batches, stats = case
    ways = jax.tree.map(lambda kept: kept[:2], copies.select(stats))
    pruned = copies.without(variables, ways, stats)
    images, labels = data(7, 4, 5)  # four steps
    blocks = [(images[:2], labels[:2]), (images[2:], labels[2:])]
    found = copies.tuned(pruned, repeated(ways), blocks, batches, (2, 4))
    gradient = jax.jit(jax.grad(lambda v, x, y: copies.loss(v, x, y)))
    for number in range(4):
        one = jax.tree.map(lambda leaf, number=number: np.asarray(leaf[number]), pruned)
        mask = jax.tree.map(np.asarray, copies.graph.push({group: kept[number // 2] for group, kept in ways.items()}))
        velocity = jax.tree.map(np.zeros_like, one)
        for step in range(4):
            grads = gradient(one, images[step], labels[step])
            velocity = jax.tree.map(lambda v, g: 0.9 * v + np.asarray(g), velocity, grads)
            one = jax.tree.map(lambda p, v, kept: np.where(kept, p - 0.1 * v, 0), one, velocity, mask)
            if step % 2:
                expected = np.average([losses(one, *batch) for batch in batches], weights=[8, 4])
                np.testing.assert_allclose(found[number, step // 2], expected, rtol=1e-3)


@pytest.mark.parametrize("normalised", [False, True])
def test_squared_activations_are_those_behind_the_relu(normalised):
    model = models.SmallConv(3, widths=(4, 5, 6, 7, 6), normalised=normalised)
    copies = Copies(model, IMAGE, normalize, CHOICES[2:3], optax.sgd(0.1), "consumer_input")
    images, _ = data(0, 6)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *IMAGE)))
    pooled = {}

    def record(next_function, args, kwargs, context):
        if context.module.name == "Conv_2":
            pooled["x"] = np.asarray(args[0])
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        model.apply(variables, normalize(images))
    squares = copies.squares(variables, images, "params/Conv_1")
    n, height, width, units = squares.shape
    corners = squares.reshape(n, height // 2, 2, width // 2, 2, units).max((2, 4))
    np.testing.assert_allclose(np.sqrt(corners), pooled["x"], rtol=1e-5, atol=1e-6)


def test_choices_are_of_layers_that_there_are():
    with pytest.raises(ValueError, match="layers='secondconv': SmallConv has all, firstconv, lastconv, midconv"):
        Copies(MODEL, IMAGE, normalize, [Choice("secondconv", 0.1)], optax.sgd(0.1), "consumer_input")


def test_performance_profiles():  # M11
    values = np.array([[0.1, 0.3, 0.5], [0.2, 0.1, 0.4]]).T
    shares = profiles.performance(values, np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    expected = [[1, 1, 0], [1, 1, 0], [1, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]]
    np.testing.assert_array_equal(shares.T, expected)


def test_windows_are_new_orders_cut_to_length():
    order = orders.windows(7)  # three batches a pass: two passes and one batch
    found = np.asarray(order(jax.random.key(0), jax.random.key(1), 10, 3))
    assert found.shape == (7, 3)
    for part in (found[:3], found[3:6]):
        assert len(np.unique(part)) == 9
    assert not np.array_equal(found[:3], found[3:6])
    assert not np.array_equal(found, order(jax.random.key(0), jax.random.key(2), 10, 3))
    assert order == orders.windows(7)
    with pytest.raises(ValueError, match="steps: got 0"):
        orders.windows(0)


def test_enlarged_pixels_are_squares():
    small = tiny(3, count=4)
    large = splits.enlarged(small, 2)
    np.testing.assert_array_equal(
        large.train.images, np.kron(small.train.images[..., 0], np.ones((1, 2, 2)))[..., None]
    )
    assert splits.enlarged(small, 1) is small
    with pytest.raises(ValueError, match="factor=0"):
        splits.enlarged(small, 0)


def test_networks_are_shown_while_they_train(tmp_path):
    model = models.LeNet300100(3, (5, 4))

    def run(epochs, visit, **changes):
        recipe = Recipe(epochs=epochs, batch_size=16, learning_rate=0.05, seeds=2, checkpoint_every=1, **changes)
        return training.train(model, dense(recipe), tiny(), recipe, tmp_path / "run", progress=False, visit=visit)

    class Killed(Exception):
        pass

    shown = {}

    def until_third(epoch, networks):
        shown[epoch] = jax.tree.map(np.array, networks)
        if epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        run(4, until_third)
    again = {}
    finished = run(4, lambda epoch, networks: again.setdefault(epoch, jax.tree.map(np.array, networks)))
    assert list(shown) == [0, 1, 2, 3]
    assert list(again) == [2, 3, 4]  # the third was shown, but not saved
    for epoch in (2, 3):
        jax.tree.map(np.testing.assert_array_equal, shown[epoch], again[epoch])
    jax.tree.map(np.testing.assert_array_equal, again[4][0], finished.params)


def found(penalties, **changes):
    """What an experiment finds: 4 marks, 2 seeds, 2 choices."""
    rng = np.random.default_rng(0)
    gone = rng.random((4, 2, len(SCORES), 20)) < 0.1
    return Found(
        steps=np.arange(1, 5),
        choices=(Choice("all", 0.1), Choice("midconv", 0.1)),
        followed=1,
        loss=rng.random((4, 2)),
        accuracies=rng.random((4, 2)),
        penalties=penalties,
        first=rng.random(penalties.shape[:-1]),
        gone=gone,
        squares=rng.integers(1, 9, (4, 2, len(SCORES), len(SQUARES) - 1)),
        tuning=(10,),
        tuned_steps=np.array([2, 4]),
        tuned=penalties[:2, :, 0, :3, :, None],
    )._replace(**changes)


def test_claims_follow_the_numbers():
    rng = np.random.default_rng(1)
    level = np.array([0.3, 0.2, 0.6, 0.1, 0.5, 0.09])[:, None]  # as the paper has it
    penalties = level * np.array([1.0, 0.5]) + 0.001 * rng.random((4, 2, 2, len(SCORES), 2))
    gone = np.zeros((4, 2, len(SCORES), 20), bool)
    gone[:, :, :, :3] = True
    gone[0, :, SCORES.index("rand")] = True
    squares = np.ones((4, 2, len(SCORES), len(SQUARES) - 1), int)
    squares[..., SCORES.index("mrs"), -1] = 100
    agreed = claims(found(penalties, gone=gone, squares=squares))
    assert [claim.statement for claim in agreed if not claim.holds] == []
    swapped = claims(found(penalties[..., ::-1], gone=gone[..., ::-1, :], squares=squares[..., ::-1, :]))
    assert not any(claim.holds for claim in swapped[:2])  # zeros are better
    opposite = np.array([0.6, 0.09, 0.3, 0.4, 0.2, 0.5])[:, None] * np.ones((4, 2, 2, 1, 2))
    reversed_ = claims(found(opposite, gone=gone[..., ::-1, :], squares=squares[..., ::-1, :]))
    assert not any(claim.holds for claim in reversed_[2:7])
    assert not any(claim.holds for claim in reversed_[-3:])


def test_equal_losses_count_for_nothing():
    assert lower(np.array([0.1, 0.2, -0.1, 1e-9, 0.0])) == 2 / 3
    assert np.isnan(lower(np.zeros(3)))


COMMAND = [
    *["mean_replacement", "--seeds", "2", "--epochs", "2", "--every", "15", "--images", "24", "--tuning", "2", "4"],
    *["--tuned", "1", "--amounts", "0.1", "1", "--layers", "midconv", "firstdense"],
]


@pytest.mark.slow
def test_the_experiment(tmp_path, capsys, monkeypatch):
    command = [*COMMAND, "--results", str(tmp_path)]
    # The network of the paper is a hundred times as large as this test needs.
    small = partial(models.SmallConv, widths=(10, 10, 10, 12, 10))
    monkeypatch.setitem(setup.MODELS, "small-conv", small)
    module, config = cli.parse(command)
    directory = module.main(config)
    report = (directory / "report.md").read_text()
    for line in ("3 measurements of 2 networks", "| all 0.1 ", "| midconv 0.1 ", "| abs_mrs |", "Figure 6b"):
        assert line in report
    record = json.loads((directory / "results.json").read_text())
    assert all(isinstance(claim["holds"], bool) for claim in record["claims"])
    pictures = {path.name for path in (directory / "figures").iterdir()}
    assert {f"figure{n}" for n in (2, 3, 4, 5, 6, 7, 9)} == {name.split("_")[0] for name in pictures}
    steps = [int(path.stem.split("_")[1]) for path in (directory / "measurements").iterdir()]
    assert sorted(steps) == [15, 30, 45]
    with np.load(directory / "measurements" / "step_45.npz") as last:
        assert last["penalties"].shape == (2, 4, len(SCORES), 2)
        assert last["tuned"].shape == (2, 3, 2, 2)
        assert last["gone"].sum(-1).tolist() == [[1] * len(SCORES)] * 2
        assert np.isfinite(last["penalties"]).all()
    again = module.main(config)  # found on disk
    assert (again / "report.md").read_text() == report
    with pytest.raises(ValueError, match=r"config\.images: 24 there, 20 now"):
        module.main(dataclasses.replace(config, images=20))
    (directory / "measurements" / "step_30.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"step_30\.npz is gone"):
        module.main(config)


def test_options_that_contradict_are_refused():
    for arguments in (["--amounts", "0.2"], ["--layers", "firstdense"]):
        _, config = cli.parse(["mean_replacement", *arguments])
        with pytest.raises(ValueError, match="followed"):
            mean_replacement.start(mean_replacement.settle(config))


@pytest.mark.parametrize("dataset", get_args(setup.DataName))
def test_every_data_set_has_a_setting(dataset):
    settled = mean_replacement.settle(mean_replacement.Config(dataset))
    assert None not in (settled.epochs, settled.every, settled.images, settled.tuned)


def test_the_paper_s_settings():
    _, config = cli.parse(["mean_replacement", "--paper", "--dataset", "cifar10", "--model", "vgg11"])
    settled = mean_replacement.settle(config)
    assert (settled.seeds, settled.every, settled.images, settled.at) == (8, 250, 1000, "activation")
    assert settled.amounts == settled.layer_amounts == (0.01, 0.05, 0.1, 0.2, 0.5, 1)
    _, config = cli.parse(["mean_replacement", "--paper", "--dataset", "imagenet2012"])
    settled = mean_replacement.settle(config)
    assert (settled.model, settled.every, settled.layers) == (
        "alexnet-valid",
        10_000,
        ("firstconv", "midconv", "firstdense"),
    )
