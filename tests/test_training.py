"""The training loop: what it computes, that it is a function of its arguments, and that its files can be trusted."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from experiments import feeds, orders, rates, steps, training
from experiments.data import Dataset, Split
from experiments.methods import Method, Recipe, dense
from experiments.models import Conv, LeNet300100, WideResNet
from experiments.training import train

MODEL = LeNet300100(10, widths=(16, 8))
RECIPE = Recipe(epochs=2, batch_size=64, learning_rate=0.05, seeds=2)
ONE = jax.devices()[:1]


def digits():
    images, labels = load_digits(return_X_y=True)
    images, labels = (images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1), labels.astype(np.int32)
    # Nothing may look at the test split while it trains.
    return Dataset(
        name="digits",
        train=Split(images[:500], labels[:500]),
        validation=Split(images[500:601], labels[500:601]),
        test=None,
        classes=10,
        mean=(0.3,),
        std=(0.4,),
    )


DIGITS = digits()


def quietly(method=None, recipe=RECIPE, model=MODEL, dataset=DIGITS, devices=ONE, **arguments):
    return train(model, method or dense(recipe), dataset, recipe, progress=False, devices=devices, **arguments)


@pytest.fixture(scope="module")
def plain():
    return quietly()


def equal(first, second):
    """Two trees, bit for bit."""
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, first), jax.tree.map(np.asarray, second))


# The parts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, 0) for name in ("epochs", "batch_size", "cycles", "seeds")],
        *[(name, -1) for name in ("learning_rate", "momentum", "weight_decay", "seed", "checkpoint_every")],
        ("cycles", 7),
    ],
)
def test_recipe_refuses(field, value):
    with pytest.raises(ValueError, match=f"{field}: got {value}"):
        Recipe(**{field: value})


def test_normalizer():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    mean, std = (0.5, 0.1, 0.2), (0.2, 0.3, 1.5)
    expected = (images.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(steps.normalizer(mean, std)(jnp.asarray(images)), expected, atol=1e-6)


def test_crop_and_flip_draws_every_crop_of_the_padded_image():
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 2, 2)
    padded = np.zeros((5, 4, 2), np.uint8)
    padded[1:4, 1:3] = image
    crops = {}
    for row in range(3):
        for column in range(3):
            crop = padded[row : row + 3, column : column + 2]
            crops[crop.tobytes()] = crops[crop[:, ::-1].tobytes()] = 0
    count = 3000
    found = jax.jit(steps.crop_and_flip, static_argnums=2)(jax.random.key(0), jnp.tile(image, (count, 1, 1, 1)), 1)
    for crop in np.asarray(found):
        crops[crop.tobytes()] += 1  # a KeyError would be an image that is no crop
    assert len(crops) == 18
    assert max(abs(n - count / 18) for n in crops.values()) < 5 * math.sqrt(count / 18)


# The numbers


def shuffled(seed, epoch, count, batch_size):
    order = np.asarray(jax.random.permutation(key(seed, steps.ORDER, epoch), count))
    return [order[start : start + batch_size] for start in range(0, count - batch_size + 1, batch_size)]


def halved(seed, epoch, count, batch_size):
    keys = key(seed, steps.RUN_ORDER, 0), key(seed, steps.ORDER, epoch)
    return np.asarray(orders.alternating_halves(*keys, count, batch_size))


def key(seed, purpose, epoch):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), epoch)


def softmax_regression(recipe, seed, params, images, labels, order):
    """SGD with momentum and L2 on a linear classifier, in float64 loops; returns the weights and losses by epoch."""
    weights, bias = (np.float64(params["Dense_0"][name]) for name in ("kernel", "bias"))
    inputs = ((images / 255 - 0.3) / 0.4).reshape(len(images), -1)
    momenta, losses = [np.zeros_like(weights), np.zeros_like(bias)], []
    for epoch in range(recipe.epochs):
        batches = order(seed, epoch, len(labels), recipe.batch_size)
        rate = recipe.learning_rate / 2 * (1 + math.cos(math.pi * epoch / recipe.epochs))
        total = 0.0
        for batch in batches:
            x, y = inputs[batch], labels[batch]
            logits = x @ weights + bias
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            total -= np.log(shares[np.arange(len(y)), y]).mean() / len(batches)
            error = (shares - np.eye(10)[y]) / len(y)
            for i, gradient in enumerate((x.T @ error, error.sum(0))):
                parameter = (weights, bias)[i]
                momenta[i] = recipe.momentum * momenta[i] + gradient + recipe.weight_decay * parameter
                parameter -= rate * momenta[i]
        losses.append(total)
    return weights, bias, losses


@pytest.mark.parametrize(
    ("order", "batches"), [(orders.shuffled, shuffled), (orders.alternating_halves, halved)], ids=["shuffled", "halves"]
)
def test_dense_training_is_sgd_with_momentum_and_l2(order, batches):
    recipe = dataclasses.replace(RECIPE, epochs=3, batch_size=48, weight_decay=0.01, seed=5)
    model = LeNet300100(10, widths=())
    rng = np.random.default_rng(0)
    start = {"Dense_0": {"kernel": rng.normal(size=(2, 64, 10)), "bias": rng.normal(size=(2, 10))}}
    start = jax.tree.map(np.float32, start)
    method = dataclasses.replace(dense(recipe), order=order)
    run = quietly(method, recipe, model, initial=(start, {}))
    for i in range(2):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], start)
        split = DIGITS.train
        weights, bias, losses = softmax_regression(recipe, 5 + i, params, split.images, split.labels, batches)
        np.testing.assert_allclose(run.params["Dense_0"]["kernel"][i], weights, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(run.params["Dense_0"]["bias"][i], bias, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose([row["train_loss"][i] for row in run.history], losses, rtol=1e-4)


def test_history(plain):
    assert [row["epoch"] for row in plain.history] == [1, 2]
    np.testing.assert_allclose([row["learning_rate"] for row in plain.history], [0.05, 0.025], rtol=1e-6)
    size = 64 * 16 + 16 + 16 * 8 + 8 + 8 * 10 + 10
    zero_biases = [
        sum(int((np.asarray(leaf[i]) == 0).sum()) for leaf in jax.tree.leaves(plain.params)) for i in range(2)
    ]
    assert plain.history[-1]["nonzeros"] == [size - zeros for zeros in zero_biases]
    assert plain.history[-1]["penalty"] == [0.0, 0.0]
    assert plain.seconds == sum(row["seconds"] for row in plain.history) > 0
    assert plain.compile_seconds > 0
    assert plain.failed == [False, False]
    assert plain.history[1]["val_loss"] < plain.history[0]["val_loss"]


def test_history_has_the_rate_of_the_schedule(plain):
    # Halves of 250 images give 2 x 3 batches of 64 an epoch, where shuffling gives 7 of 500: the rate follows.
    recipe = dataclasses.replace(RECIPE, schedule=rates.drops((1,), 0.2))
    method = dataclasses.replace(dense(recipe), order=orders.alternating_halves)
    method = dataclasses.replace(method, optimizer=counting(method.optimizer), observe=lambda _, state: {"n": state[0]})
    run = quietly(method, recipe)
    np.testing.assert_allclose([row["learning_rate"] for row in run.history], [0.05, 0.01], rtol=1e-6)
    assert [row["n"] for row in run.history] == [[6, 6], [12, 12]]


def counting(optimizer):
    """The optimizer, with the number of its updates in front of its state."""

    def make(schedule):
        inner = optimizer(schedule)

        def update(grads, state, params):
            updates, rest = inner.update(grads, state[1], params)
            return updates, (state[0] + 1, rest)

        return optax.GradientTransformation(lambda params: (jnp.zeros((), jnp.int32), inner.init(params)), update)

    return make


def predictions(params, images, seed):
    x = ((images / 255 - 0.3) / 0.4).reshape(len(images), -1)
    for name in ("Dense_0", "Dense_1", "Dense_2"):
        x = x @ np.float64(params[name]["kernel"][seed]) + np.float64(params[name]["bias"][seed])
        x = x if name == "Dense_2" else np.maximum(x, 0)
    return x


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch", [500, 30])
def test_evaluation_counts_every_image_once(plain, devices, batch, monkeypatch):
    # 101 images: 30 at a time leave a partial batch, and 8 devices one that is padded in any case.
    monkeypatch.setattr(feeds, "EVALUATION_BATCH", batch)
    split = DIGITS.validation
    scores = training.evaluate(MODEL, plain.params, {}, split, DIGITS, jax.devices()[:devices])
    for seed in range(2):
        logits = predictions(plain.params, split.images, seed)
        rank = (logits > logits[np.arange(101), split.labels][:, None]).sum(1)
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = {"accuracy": (rank == 0).mean(), "top5": (rank < 5).mean()}
        expected["loss"] = -np.log(shares[np.arange(101), split.labels]).mean()
        assert scores.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(scores[name][seed], value, rtol=1e-5)
        np.testing.assert_allclose(scores["accuracy"][seed], plain.history[-1]["val_accuracy"][seed], rtol=1e-6)
        np.testing.assert_allclose(scores["loss"][seed], plain.history[-1]["val_loss"][seed], rtol=1e-5)


def test_training_is_deterministic(plain):
    again = quietly()
    equal(plain.params, again.params)
    without_time = [{k: v for k, v in row.items() if k != "seconds"} for row in plain.history]
    assert without_time == [{k: v for k, v in row.items() if k != "seconds"} for row in again.history]


class Normalized(nn.Module):
    """A convolution with batch statistics; it has no `over_seeds`, so its seeds run one by one."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(Conv(3, (3, 3), strides=2)(images)))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def convolutional_run(**changes):
    recipe = dataclasses.replace(RECIPE, augment=True, **changes.pop("recipe", {}))
    return quietly(recipe=recipe, model=Normalized(), **changes)


def perceptron_run(**changes):
    return quietly(recipe=dataclasses.replace(RECIPE, **changes.pop("recipe", {})), **changes)


@pytest.mark.parametrize("start", [perceptron_run, convolutional_run])
def test_seeds_and_devices_do_not_change_the_numbers(start):
    both, alone, sharded = start(), start(recipe={"seed": 1, "seeds": 1}), start(devices=jax.devices())
    for name in ("params", "model_state"):
        everything = getattr(both, name)
        second = jax.tree.map(lambda leaf: leaf[1:], everything)
        chex.assert_trees_all_close(second, getattr(alone, name), rtol=1e-3, atol=1e-5)
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, everything), jax.tree.map(np.asarray, getattr(sharded, name)), rtol=1e-3, atol=1e-5
        )
    first, second = (jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), both.params) for i in range(2))
    assert all(
        (a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True) if a.ndim > 1
    )
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(sharded.trainable))
    assert len(jax.tree.leaves(sharded.params)[0].sharding.device_set) == 8


def test_batch_statistics_are_trained_and_used():
    model, few = (
        WideResNet(10, depth=10, widths=(2, 2, 3, 4)),
        Split(DIGITS.train.images[:128], DIGITS.train.labels[:128]),
    )
    run = quietly(
        recipe=dataclasses.replace(RECIPE, epochs=1), model=model, dataset=dataclasses.replace(DIGITS, train=few)
    )
    assert np.asarray(run.model_state["batch_stats"]["norm"]["mean"]).any()
    scores = training.evaluate(model, run.params, run.model_state, DIGITS.validation, DIGITS, ONE)
    np.testing.assert_allclose(scores["loss"], run.history[-1]["val_loss"], rtol=1e-5)


# The seam


class Shrunk(NamedTuple):
    """A trainable that is not params: a threshold beside the weights, and whose optimizer is stateful."""

    weights: chex.ArrayTree
    bound: jax.Array


def threshold(trained):
    return jax.tree.map(lambda leaf: jnp.where(jnp.abs(leaf) > trained.bound, leaf, 0), trained.weights)


def remember(learning_rate):
    """SGD from an accumulator that starts as the weights themselves, as gRDA's does."""

    def update(grads, state, params):
        count, accumulator = state
        accumulator = jax.tree.map(lambda a, g: a - learning_rate(count) * g, accumulator, grads)
        return jax.tree.map(lambda a, p: a - p, accumulator, params), (count + 1, accumulator)

    return optax.GradientTransformation(lambda params: (jnp.zeros((), jnp.int32), params), update)


def shrinking(traces):
    def penalty(trained):
        traces.append(1)
        return 3.0 * trained.bound**2

    return Method(
        name="shrinking",
        init=lambda key, params: Shrunk(params, 0.05 + 0.01 * jax.random.uniform(key)),
        forward=threshold,
        penalty=penalty,
        optimizer=remember,
        finalize=threshold,
    )


def test_a_method_may_train_anything():
    recipe = dataclasses.replace(RECIPE, learning_rate=0.01)
    run = quietly(shrinking([]), recipe)
    assert isinstance(run.trainable, Shrunk)
    bounds = np.asarray(run.trainable.bound)
    assert bounds[0] != bounds[1]
    for i in range(2):
        finalised = [np.asarray(leaf[i]) for leaf in jax.tree.leaves(run.params)]
        trained = [np.asarray(leaf[i]) for leaf in jax.tree.leaves(run.trainable.weights)]
        expected = [np.where(np.abs(leaf) > bounds[i], leaf, 0) for leaf in trained]
        for a, b in zip(finalised, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert run.history[-1]["nonzeros"][i] == sum(np.count_nonzero(leaf) for leaf in expected)
        assert 0 < run.history[-1]["nonzeros"][i] < sum(leaf.size for leaf in expected)
    # No gradient but the penalty's reaches the bound: b <- b (1 - 6 rate), 7 steps at 0.01 and 7 at 0.005.
    rates = [0.01] * 7 + [0.005] * 7
    before = [bounds[0] / np.prod([1 - 6 * rate for rate in rates])]
    for rate in rates[:-1]:
        before.append(before[-1] * (1 - 6 * rate))
    penalties = [3 * b**2 for b in before]
    np.testing.assert_allclose(run.history[0]["penalty"][0], np.mean(penalties[:7]), rtol=1e-4)
    np.testing.assert_allclose(run.history[1]["penalty"][0], np.mean(penalties[7:]), rtol=1e-4)


def test_a_run_is_traced_once():
    counts = {}
    for epochs in (1, 4):
        traces = []
        quietly(shrinking(traces), dataclasses.replace(RECIPE, epochs=epochs))
        counts[epochs] = len(traces)
    assert counts[1] == counts[4] > 0


def test_history_has_what_the_method_observes(plain, tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=0.01)

    def observe(trained, opt_state):
        return {"bound": trained.bound, "updates": opt_state[0]}

    method = dataclasses.replace(shrinking([]), observe=observe)
    run = quietly(method, recipe, directory=tmp_path / "run")
    assert [row["updates"] for row in run.history] == [[7, 7], [14, 14]]
    assert run.history[-1]["bound"] == np.asarray(run.trainable.bound).tolist()
    assert run.history[0]["bound"] != run.history[1]["bound"]
    assert set(run.history[0]) == {*plain.history[0], "bound", "updates"}
    assert quietly(method, recipe, directory=tmp_path / "run").history == run.history
    # Observing changes nothing.
    equal(run.trainable, quietly(shrinking([]), recipe).trainable)


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        *[({name: jnp.zeros(())}, f"'{name}' of shape \\(\\)") for name in ("nonzeros", "seconds", "epoch", "penalty")],
        ({"bounds": jnp.zeros(3)}, r"'bounds' of shape \(3,\)"),
    ],
)
def test_observations_must_be_new_scalars(tmp_path, observed, message):
    method = dataclasses.replace(dense(RECIPE), observe=lambda trainable, opt_state: observed)
    with pytest.raises(ValueError, match=rf"method.observe: got {message}.*epoch, learning_rate"):
        quietly(method, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Where it starts, and how it fails


def test_initial_is_where_training_starts_and_stays_the_callers(plain):
    # At learning rate 0 nothing moves; the arrays, on the device and on the host, must still be there afterwards.
    still = dataclasses.replace(RECIPE, learning_rate=0.0)
    host = jax.tree.map(np.array, plain.params)
    for params in (plain.params, host):
        run = quietly(recipe=still, initial=(params, plain.model_state))
        equal(run.params, host)
        equal(params, host)
    assert run.history[0]["val_accuracy"] == plain.history[-1]["val_accuracy"]


@pytest.mark.parametrize("change", ["seeds", "shape", "structure"])
def test_initial_must_fit(plain, change):
    params = jax.tree.map(np.asarray, plain.params)
    changed = {
        "seeds": jax.tree.map(lambda leaf: leaf[:1], params),
        "shape": {**params, "Dense_1": {"kernel": np.zeros((2, 3, 3)), "bias": params["Dense_1"]["bias"]}},
        "structure": {name: params[name] for name in ("Dense_0", "Dense_1")},
    }[change]
    with pytest.raises(ValueError, match=r"initial\[0\]\['Dense_.'\].*these seeds need"):
        quietly(initial=(changed, {}))


def test_a_failed_seed_is_recorded_and_leaves_the_others_alone(plain, tmp_path):
    start = jax.tree.map(np.array, plain.params)
    healthy = quietly(initial=(start, {}))
    broken = jax.tree.map(np.array, plain.params)
    broken["Dense_1"]["kernel"][1, 0, 0] = np.inf
    run = quietly(initial=(broken, {}), directory=tmp_path / "run")
    assert healthy.failed == [False, False]
    assert run.failed == [False, True]
    assert math.isnan(run.history[0]["train_loss"][1])
    assert run.history[0]["train_loss"][0] == healthy.history[0]["train_loss"][0]
    first = jax.tree.map(lambda leaf: np.asarray(leaf[0]), (run.params, healthy.params))
    equal(*first)
    again = quietly(initial=(broken, {}), directory=tmp_path / "run")
    assert again.failed == [False, True]


@pytest.mark.parametrize(
    ("batch_size", "devices", "message"),
    [(60, 8, "8 devices cannot share evenly"), (512, 1, "only 500 images")],
)
def test_batch_size_must_fit(batch_size, devices, message):
    recipe = dataclasses.replace(RECIPE, batch_size=batch_size)
    with pytest.raises(ValueError, match=f"recipe.batch_size: got {batch_size}.*{message}"):
        quietly(recipe=recipe, devices=jax.devices()[:devices])


@pytest.mark.parametrize(
    "order", [lambda *_: jnp.arange(64, dtype=jnp.int32), lambda *_: jnp.zeros((3, 64)), lambda *_: jnp.zeros((7, 63))]
)
def test_an_order_has_whole_batches_of_indices(order):
    with pytest.raises(ValueError, match=r"method.order: got .*; return int32 \(steps, 64\)"):
        quietly(dataclasses.replace(dense(RECIPE), order=order))


def test_dropout_draws_anew_for_every_seed_and_epoch():
    class Dropped(nn.Module):
        """Logits whose loss shows which of 64 inputs were dropped."""

        @nn.compact
        def __call__(self, images, train=False):
            ones = jnp.ones((images.shape[0], 64))
            kept = nn.Dropout(0.5, deterministic=not train)(ones).sum(1, keepdims=True)
            scale = self.param("scale", nn.initializers.ones, (1, 1))
            return kept * scale * jnp.arange(10.0)[None] / 64

    # With one label for all, the order of the data has no influence.
    same = Split(DIGITS.train.images, np.full_like(DIGITS.train.labels, 3))
    still = dataclasses.replace(RECIPE, learning_rate=0.0)
    run = quietly(model=Dropped(), recipe=still, dataset=dataclasses.replace(DIGITS, train=same))
    losses = [loss for row in run.history for loss in row["train_loss"]]
    assert len(set(losses)) == 4
    np.testing.assert_array_equal(run.params["scale"], 1)


# The files


def test_a_finished_run_is_read_and_not_trained(tmp_path, plain):
    written = quietly(directory=tmp_path / "run")
    equal(written.params, plain.params)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == written.history
    read = quietly(directory=tmp_path / "run")
    assert read.compile_seconds == 0
    assert (read.history, read.seconds, read.failed) == (written.history, written.seconds, written.failed)
    equal((read.params, read.trainable, read.model_state), (written.params, written.trainable, written.model_state))
    # On other devices, too.
    equal(quietly(directory=tmp_path / "run", devices=jax.devices()).params, written.params)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("recipe.momentum", {"recipe": dataclasses.replace(RECIPE, momentum=0.5)}),
        ("method", {"method": dataclasses.replace(dense(RECIPE), name="other")}),
        ("model", {"model": LeNet300100(10, widths=(16, 9))}),
        ("dataset.name", {"dataset": dataclasses.replace(DIGITS, name="letters")}),
        ("config.target", {"config": {"target": 0.9}}),
        ("config.more", {"config": {"target": 0.8, "more": None}}),
        ("initial", {"initial": True}),
        ("recipe.schedule", {"recipe": dataclasses.replace(RECIPE, schedule=rates.drops((1,)))}),
    ],
)
def test_a_folder_never_mixes_two_runs(tmp_path_factory, plain, field, change):
    directory = tmp_path_factory.getbasetemp() / "mixed"
    settings = {"config": {"target": 0.8}, "directory": directory}
    quietly(**settings)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    change = {"initial": (plain.params, {})} if "initial" in change else change
    with pytest.raises(ValueError, match=rf"another configuration \({field}: .*choose another directory or delete"):
        quietly(**{**settings, **change})
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a run's folder"):
        quietly(directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_settings_must_be_json(tmp_path):
    with pytest.raises(ValueError, match=r"config: .*not JSON serializable"):
        quietly(directory=tmp_path / "run", config={"bounds": np.zeros(2)})
    assert not (tmp_path / "run").exists()


CONSTANT = dataclasses.replace(RECIPE, epochs=3, schedule=rates.constant, learning_rate=0.01)


@pytest.mark.parametrize("keeps_files", [False, True])
def test_snapshots_are_the_networks_of_shorter_runs(tmp_path, keeps_files):
    def run(epochs, **changes):
        return quietly(shrinking([]), dataclasses.replace(CONSTANT, epochs=epochs), model=Normalized(), **changes)

    directory = tmp_path / "run" if keeps_files else None
    long = run(3, directory=directory, snapshots=[0, 2, 3, 2])
    assert list(long.snapshots) == [0, 2, 3]
    for epochs in (2, 3):
        shorter = run(epochs)
        equal(long.snapshots[epochs], (shorter.params, shorter.model_state))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(long.snapshots))
    equal(run(3).params, long.params)
    still = quietly(shrinking([]), dataclasses.replace(CONSTANT, learning_rate=0.0), Normalized())
    equal(long.snapshots[0][0], still.params)
    if keeps_files:
        equal(run(3, directory=directory, snapshots=[2, 0]).snapshots, {e: long.snapshots[e] for e in (0, 2)})
        # The end is a checkpoint anyway; what is in between is not.
        with pytest.raises(ValueError, match="snapshots: got 1, but the run in the directory is at epoch 3"):
            run(3, directory=directory, snapshots=[0, 1])


def test_a_finished_run_gives_a_snapshot_of_its_end(tmp_path):
    run = quietly(directory=tmp_path / "run")
    assert run.snapshots == {}
    again = quietly(directory=tmp_path / "run", snapshots=[2])
    assert again.compile_seconds == 0
    equal(again.snapshots[2], (run.params, run.model_state))


@pytest.mark.parametrize("epoch", [-1, 3])
def test_snapshots_are_of_epochs_that_the_run_has(tmp_path, epoch):
    with pytest.raises(ValueError, match=rf"snapshots: got {epoch}, but the run has epochs 0 .* to 2"):
        quietly(directory=tmp_path / "run", snapshots=[0, epoch])


def test_missing_metrics_are_an_error(tmp_path):
    quietly(directory=tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="has 1 epochs, but the checkpoint has 2"):
        quietly(directory=tmp_path / "run")


SNAPSHOTS = (0, 3, 5, 60)
LONG = Recipe(epochs=90, batch_size=64, learning_rate=0.05, seeds=2, checkpoint_every=4)


def kill_in_the_middle(directory):
    """Starts a run in another process, kills it at its sixth epoch, and returns what it has written."""
    tests = Path(__file__).parent
    code = f"import test_training as t; t.quietly(recipe=t.LONG, directory={str(directory)!r}, snapshots=t.SNAPSHOTS)"
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    metrics = directory / "metrics.jsonl"
    try:
        while child.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 6):
            time.sleep(0.005)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    return metrics.read_text().splitlines()


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_weights(tmp_path):
    directory = tmp_path / "run"
    lines = kill_in_the_middle(directory)
    saved = max(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit())
    assert 4 <= saved <= len(lines) < LONG.epochs
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1000, "tra')  # a kill in the middle of a line
    # A snapshot beyond the checkpoint, which the killed process may have written in another way.
    shutil.copytree(directory / "snapshots" / "0", directory / "snapshots" / "60")
    resumed = quietly(recipe=LONG, directory=directory, snapshots=SNAPSHOTS)
    whole = quietly(recipe=LONG, snapshots=SNAPSHOTS)
    equal(resumed.snapshots, whole.snapshots)
    assert list(resumed.snapshots) == list(SNAPSHOTS)
    equal(quietly(recipe=LONG, directory=directory, snapshots=SNAPSHOTS).snapshots, whole.snapshots)
    equal(resumed.params, whole.params)
    equal(resumed.trainable, whole.trainable)
    assert [row["epoch"] for row in resumed.history] == list(range(1, 91))
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in whole.history]
    # The epochs before the checkpoint are the killed process's own: their times are its times.
    assert resumed.history[:saved] == [json.loads(line) for line in lines[:saved]]
    assert [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()] == resumed.history
