"""The gradient of a batch: smoothed labels, networks in bfloat16, and batches in parts."""

import dataclasses
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_data import tiny

from experiments import __main__ as cli
from experiments import feeds, gradients, models, orders, setup
from experiments.methods import Recipe, dense
from experiments.training import train

MODEL = models.LeNet300100(3, widths=(7,))
RECIPE = Recipe(epochs=2, batch_size=32, learning_rate=0.1, seeds=2)
DATA = tiny()
ONE = jax.devices()[:1]


def run(recipe=RECIPE, model=MODEL, devices=ONE, **changes):
    method = dataclasses.replace(dense(recipe), **changes)
    return train(model, method, DATA, recipe, progress=False, devices=devices)


def logits_of(params, seed, cast=lambda array: array):
    """LeNet-300-100 of one seed in float64, with what it multiplies rounded by `cast`."""
    x = (DATA.train.images.reshape(64, -1) / 255 - 0.5) / 0.25
    for name in ("Dense_0", "Dense_1"):
        kernel, bias = (np.asarray(params[name][leaf][seed], np.float64) for leaf in ("kernel", "bias"))
        x = cast(x) @ cast(kernel) + cast(bias)
        x = x if name == "Dense_1" else np.maximum(x, 0)
    return x


def smoothed_loss(logits, labels, smoothing):
    """The mean cross-entropy, in loops."""
    total, classes = 0.0, logits.shape[1]
    for row, label in zip(np.float64(logits), labels, strict=True):
        for i in range(classes):
            share = (1 - smoothing) * (i == label) + smoothing / classes
            total -= share * (row[i] - np.log(np.exp(row).sum()))
    return total / len(labels)


# Labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 5)).astype(np.float32), rng.integers(0, 5, 20).astype(np.int32)
    losses = gradients.cross_entropy(smoothing)(jnp.asarray(logits), jnp.asarray(labels))
    assert losses.shape == (20,)
    np.testing.assert_allclose(losses.mean(), smoothed_loss(logits, labels, smoothing), rtol=1e-5)


def test_labels_are_smoothed_in_training_only():
    # At learning rate 0 the loss of an epoch is that of its start, over all images: two batches of 32 are all 64.
    still = run(dataclasses.replace(RECIPE, learning_rate=0.0, label_smoothing=0.3))
    for seed in range(2):
        logits = logits_of(still.params, seed)
        wanted = [smoothed_loss(logits, DATA.train.labels, smoothing) for smoothing in (0.3, 0.0)]
        assert abs(wanted[0] - wanted[1]) > 1e-3
        for row in still.history:
            found = [row[name][seed] for name in ("train_loss", "val_loss")]
            np.testing.assert_allclose(found, wanted, rtol=1e-4)


# Precision


class Watched(nn.Module):
    """Batch norm between two layers; says in which types they compute."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(6)(images.reshape(images.shape[0], -1))
        y = nn.BatchNorm(use_running_average=not train)(x)
        logits = nn.Dense(3)(nn.relu(y))
        if train:
            TYPES.append([str(array.dtype) for array in (images, x, y, logits)])
        return logits


TYPES = []


@pytest.mark.usefixtures("relaxed")
def test_networks_train_in_bfloat16_and_are_kept_in_float32():
    TYPES.clear()
    both = [run(dataclasses.replace(RECIPE, bfloat16=bfloat16), Watched()) for bfloat16 in (False, True)]
    assert TYPES[0] == ["float32"] * 4
    assert TYPES[-1] == ["bfloat16"] * 4
    for name in ("params", "model_state", "trainable"):
        whole, half = (jax.tree.map(np.asarray, getattr(run, name)) for run in both)
        assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype(np.float32)}
        # Eight bits of precision over four steps.
        chex.assert_trees_all_close(whole, half, rtol=0.1, atol=0.05)
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), both[0].params, both[1].params)
    assert all(jax.tree.leaves(differs))


def test_the_loss_is_that_of_rounded_numbers():
    def rounded(array):
        return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)

    still = run(dataclasses.replace(RECIPE, learning_rate=0.0, bfloat16=True))
    for seed in range(2):
        row = still.history[0]
        exact, coarse = (
            smoothed_loss(logits_of(still.params, seed, c), DATA.train.labels, 0.0) for c in (float64, rounded)
        )
        np.testing.assert_allclose(row["train_loss"][seed], coarse, rtol=3e-3)
        np.testing.assert_allclose(row["val_loss"][seed], exact, rtol=1e-5)


def float64(array):
    return array


def test_small_steps_are_not_lost():
    # A step of 1e-4 of a weight is below what bfloat16 resolves of it.
    moved = run(dataclasses.replace(RECIPE, learning_rate=1e-4, weight_decay=0.0, bfloat16=True))
    still = run(dataclasses.replace(RECIPE, learning_rate=0.0, bfloat16=True))
    kernel, start = (np.asarray(run.params["Dense_1"]["kernel"]) for run in (moved, still))
    assert 0 < np.abs(kernel - start).max() < 1e-3
    assert (kernel != start).mean() > 0.9


@pytest.mark.usefixtures("relaxed")
def test_batch_norm_averages_in_float32():
    images = jnp.asarray(np.random.default_rng(0).normal(3.0, 1.0, (4096, 2)), jnp.bfloat16)
    norm = nn.BatchNorm(use_running_average=False, momentum=0.0, use_scale=False, use_bias=False)
    _, state = norm.apply({"batch_stats": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}, images, mutable=["batch_stats"])
    exact = np.asarray(images, np.float64)
    np.testing.assert_allclose(state["batch_stats"]["mean"], exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"], exact.var(0), rtol=1e-4)


@pytest.mark.parametrize("name", ["lenet5", "small-conv", "wrn-16-2", "vgg-like", "mobilenetv2"])
@pytest.mark.usefixtures("relaxed")
def test_the_networks_compute_in_bfloat16(name):
    model, images = setup.MODELS[name](10), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = dict(jax.eval_shape(model.init, jax.random.key(0), images))
    found = []

    def apply(params, state, images):
        with nn.intercept_methods(record(found)):
            settings = {"train": True, "mutable": list(state), "rngs": {"dropout": jax.random.key(0)}}
            return model.apply({"params": gradients.bfloat16(params), **state}, images, **settings)

    half = jax.ShapeDtypeStruct(images.shape, jnp.bfloat16)
    logits, state = jax.eval_shape(apply, variables.pop("params"), variables, half)
    assert set(found) == {"bfloat16"}
    assert logits.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))


def record(found):
    def interceptor(next_function, args, kwargs, context):
        result = next_function(*args, **kwargs)
        found.extend(str(leaf.dtype) for leaf in jax.tree.leaves(result) if hasattr(leaf, "dtype"))
        return result

    return interceptor


# Parts


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_in_parts_is_a_loop(parts):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(8, 3)).astype(np.float32), np.arange(8, dtype=np.float32)

    def gradient(scale, state, images, labels, key):
        noise = jax.random.uniform(key)
        return (scale * images.mean(0), (labels**2).mean() + noise), 0.5 * state + images.sum()

    sharding = feeds.batch_sharding(ONE, 8, parts)
    whole = jax.jit(gradients.in_parts(gradient, parts, sharding))
    (found, metric), state = whole(jnp.float32(2.0), jnp.float32(1.0), images, labels, jax.random.key(3))

    keys = [jax.random.key(3)] if parts == 1 else jax.random.split(jax.random.key(3), parts)
    noise = np.mean([jax.random.uniform(key) for key in keys])
    expected = 1.0
    for part in range(parts):
        expected = 0.5 * expected + images[part::parts].sum()
    np.testing.assert_allclose(found, 2 * images.mean(0), rtol=1e-5)
    np.testing.assert_allclose(metric, (labels**2).mean() + noise, rtol=1e-5)
    np.testing.assert_allclose(state, expected, rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("order", [orders.shuffled, orders.alternating_halves])
def test_parts_change_nothing_but_rounding(devices, order):
    def observe(trainable, opt_state):
        return {"updates": opt_state[-1][-1].count}

    some = jax.devices()[:devices]
    recipe = dataclasses.replace(RECIPE, augment=True)
    both = [
        run(dataclasses.replace(recipe, accumulate=parts), devices=some, order=order, observe=observe)
        for parts in (1, 4)
    ]
    chex.assert_trees_all_close(both[0].params, both[1].params, rtol=1e-4, atol=1e-6)
    for one, other in zip(*(run.history for run in both), strict=True):
        assert one["updates"] == other["updates"] == [2 * one["epoch"]] * 2
        np.testing.assert_allclose(one["train_loss"], other["train_loss"], rtol=1e-5)


def test_no_image_moves_to_another_device_for_its_part():
    sharding = feeds.batch_sharding(None, 64, 4)
    images = jax.device_put(np.zeros((64, 6), np.float32), sharding)
    labels = jax.device_put(np.zeros(64, np.float32), sharding)

    def gradient(scale, state, images, labels, key):
        return scale * images.mean(), state

    program = jax.jit(
        gradients.in_parts(gradient, 4, sharding), out_shardings=NamedSharding(sharding.mesh, PartitionSpec())
    )
    text = program.lower(jnp.float32(1.0), jnp.float32(0.0), images, labels, jax.random.key(0)).compile().as_text()
    assert re.search(r"all-reduce", text)
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)


# What is asked for


@pytest.mark.parametrize(
    ("field", "value"), [("label_smoothing", -0.1), ("label_smoothing", 1.0), ("accumulate", 0), ("accumulate", -2)]
)
def test_recipe_refuses(field, value):
    with pytest.raises(ValueError, match=f"{field}: got {value}"):
        Recipe(**{field: value})


@pytest.mark.parametrize(("devices", "parts"), [(1, 3), (8, 8)])
def test_parts_must_fit(devices, parts):
    message = rf"recipe.batch_size: got 32, which {devices} devices cannot share evenly in {parts} parts"
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(RECIPE, accumulate=parts), devices=jax.devices()[:devices])


def test_options(tmp_path):
    options = ["--label-smoothing", "0.1", "--bfloat16", "--accumulate", "2", "--data-dir", str(tmp_path)]
    _, config = cli.parse(["quickstart", *options])
    recipe = setup.resolve(config)[2]
    assert (recipe.label_smoothing, recipe.bfloat16, recipe.accumulate) == (0.1, True, 2)
    recipe = setup.resolve(cli.parse(["quickstart", "--data-dir", str(tmp_path)])[1])[2]
    assert (recipe.label_smoothing, recipe.bfloat16, recipe.accumulate) == (0.0, False, 1)
