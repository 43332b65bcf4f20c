"""Streams: crops against loops, batches as promised, and a training loop that computes what the one in memory does."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments import data, feeds, orders, training
from experiments.crops import CentreCrop, RandomResizedCrop, as_it_is
from experiments.methods import Recipe, dense
from experiments.splits import Dataset, Split, Stream

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


class Examples:
    """Arrays as a source: what tfds and array_record offer, without files."""

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split.labels)

    def __getitems__(self, indices):
        return [{"image": self.split.images[i], "label": self.split.labels[i]} for i in indices]


def digits(number):
    images, labels = load_digits(return_X_y=True)
    images = (images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    splits = {"train": slice(number), "validation": slice(500, 601), "test": slice(700, 801)}
    splits = {name: Split(images[part], labels[part].astype(np.int32)) for name, part in splits.items()}
    return Dataset(name="digits", classes=10, mean=(0.3,), std=(0.4,), **splits)


def streamed(dataset, transform=as_it_is, **changes):
    def stream(split, transform):
        return Stream(Examples(split), transform, split.image_shape, threads=3, **changes)

    splits = {name: stream(getattr(dataset, name), as_it_is) for name in ("validation", "test")}
    return dataclasses.replace(dataset, train=stream(dataset.train, transform), **splits)


# Crops


def photograph(height, width):
    """Pixels that say where they are."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(height)[:, None], np.arange(width)
    return image


def test_random_resized_crop_is_a_box_or_its_mirror_image():
    # A square box of the image's area, on a square image: all of it, at its own size.
    image = photograph(20, 20)
    crop = RandomResizedCrop(20, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    rng = np.random.default_rng(0)
    mirrored = 0
    for _ in range(400):
        found = crop(image, rng)
        mirrored += int(np.array_equal(found, image[:, ::-1]))
        assert np.array_equal(found, image) or np.array_equal(found, image[:, ::-1])
    assert abs(mirrored - 200) < 5 * math.sqrt(400) / 2


@pytest.mark.parametrize(("height", "width"), [(300, 400), (123, 64)])
def test_boxes_are_uniform_in_area_logarithm_of_ratio_and_place(height, width):
    crop, rng = RandomResizedCrop(scale=(0.1, 0.4)), np.random.default_rng(0)
    boxes = np.array([crop.box(height, width, rng) for _ in range(4000)], np.float64)
    top, left, h, w = boxes.T
    assert np.all(np.concatenate([top, left]) >= 0)
    assert np.all(top + h <= height)
    assert np.all(left + w <= width)
    shares, ratios = h * w / (height * width), np.log(w / h) / math.log(4 / 3)
    expected = [
        (shares, 0.1, 0.4),
        (ratios, -1, 1),
        ((top + 0.5) / (height - h + 1), 0, 1),
        ((left + 0.5) / (width - w + 1), 0, 1),
    ]
    for found, low, high in expected:
        # A box is of whole pixels, at least 20 of them on a side; quartiles of 4000 draws are off by a percent.
        margin = 0.06 * (high - low)
        quartiles = np.quantile(found, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quartiles, np.linspace(low, high, 5), atol=margin)


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10)), (1, 30, (0, 14, 1, 1))]
)
def test_a_box_that_never_fits_is_in_the_centre(height, width, box):
    assert RandomResizedCrop(scale=(0.9, 1.0)).box(height, width, np.random.default_rng(0)) == box


@pytest.mark.parametrize(("shape", "channels"), [((400, 300), 3), ((64, 64), 3), ((8, 8), 1)])
def test_crops_have_their_shape_and_dtype(shape, channels):
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    for crop in (RandomResizedCrop(), CentreCrop()):
        found = crop(image, np.random.default_rng(0))
        assert (found.shape, found.dtype) == ((224, 224, channels), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(60, 40), (40, 71), (40, 40)])
def test_centre_crop(height, width):
    image = photograph(height, width)
    top, left = round((height - 30) / 2), round((width - 30) / 2)
    found = CentreCrop(30, 40)(image, np.random.default_rng(0))
    np.testing.assert_array_equal(found, image[top : top + 30, left : left + 30])
    # At half the size a pixel is an average around the middle between two, away from the border.
    half = CentreCrop(15, 20)(image, np.random.default_rng(0)).astype(float)
    rows, columns = (
        2 * (np.arange(15) + round((height // 2 - 15) / 2)),
        2 * (np.arange(15) + round((width // 2 - 15) / 2)),
    )
    np.testing.assert_allclose(half[..., 0], np.tile(rows[:, None] + 0.5, (1, 15)), atol=1)
    np.testing.assert_allclose(half[..., 1], np.tile(columns + 0.5, (15, 1)), atol=1)


def test_centre_crop_must_fit():
    with pytest.raises(ValueError, match="size: got 224, which is larger than resize, 200"):
        CentreCrop(224, 200)


# Batches


def noisy(image, rng):
    """Shows which random numbers it got."""
    return image + rng.integers(0, 100, image.shape, dtype=np.uint8)


def read(stream, order, seed):
    with stream.batches(np.array(order), seed) as batches:
        return list(batches)


SMALL = digits(40)
ORDER = np.random.default_rng(0).permutation(40)[:36].reshape(9, 4)


def test_batches_have_the_images_in_order_and_padding():
    order = ORDER.copy()
    order[-1, 2:] = -1
    batches = read(streamed(SMALL).train, order, (3, 1))
    assert len(batches) == 9
    for (images, labels), indices in zip(batches, order, strict=True):
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        for image, label, i in zip(images, labels, indices, strict=True):
            np.testing.assert_array_equal(image, SMALL.train.images[i] if i >= 0 else 0)
            assert label == (SMALL.train.labels[i] if i >= 0 else -1)


@pytest.mark.parametrize("threads", [1, 3])
def test_random_numbers_are_a_function_of_seed_and_batch(threads):
    stream = dataclasses.replace(streamed(SMALL, noisy).train, threads=threads)
    noise = {}
    for seed in ((3, 1), (3, 2), (4, 1)):
        batches = read(stream, ORDER, seed)
        for number, (images, labels) in enumerate(batches):
            np.testing.assert_array_equal(labels, SMALL.train.labels[ORDER[number]])
            drawn = np.random.default_rng((*seed, number))
            for image, i in zip(images, ORDER[number], strict=True):
                np.testing.assert_array_equal(image, noisy(SMALL.train.images[i], drawn))
            noise[seed, number] = (images - SMALL.train.images[ORDER[number]]).tobytes()
    assert len(set(noise.values())) == 27


@pytest.mark.slow
def test_processes_prepare_the_same_batches(prepared):
    stream = Stream(data.source("digits", "train", prepared), RandomResizedCrop(8), (8, 8, 1))
    here, there = (read(dataclasses.replace(stream, workers=workers), ORDER, (1, 2)) for workers in (0, 2))
    assert len(here) == len(there) == 9
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
        assert other[0].any()


def test_a_stream_may_be_left_early():
    with streamed(SMALL).train.batches(ORDER, (0,)) as batches:
        first = next(batches)
    np.testing.assert_array_equal(first[1], SMALL.train.labels[ORDER[0]])


def grey(image, rng):
    return image[..., :1]


@pytest.mark.parametrize(
    ("change", "label", "message"),
    [
        ({"image_shape": (8, 8, 3)}, 0, r"transform: got a uint8 image of shape \(8, 8, 1\).*\(8, 8, 3\)"),
        ({"transform": lambda image, rng: image / 255}, 0, "transform: got a float64 image"),
        ({}, -1, "source: got label -1, as in a split without labels"),
    ],
)
def test_wrong_examples_are_refused(change, label, message):
    split = Split(SMALL.train.images, np.full(40, label, np.int32))
    stream = dataclasses.replace(streamed(dataclasses.replace(SMALL, train=split)).train, **change)
    with pytest.raises(ValueError, match=message):
        read(stream, ORDER, (0,))


# Training


class Noisy(nn.Module):
    """Batch statistics and dropout: everything that an epoch threads through its steps."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(12)(images.reshape(images.shape[0], -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))


def in_turn(run_key, epoch_key, count, batch_size):
    return jnp.arange(count // batch_size * batch_size, dtype=jnp.int32).reshape(-1, batch_size)


RECIPE = Recipe(epochs=3, batch_size=48, learning_rate=0.05, augment=True, seed=4)


def train(dataset, order=orders.shuffled, recipe=RECIPE, devices=ONE, **arguments):
    method = dataclasses.replace(
        dense(recipe),
        order=order,
        observe=lambda trainable, _: {"first": jnp.abs(trainable["Dense_0"]["kernel"]).max()},
    )
    return training.train(Noisy(), method, dataset, recipe, progress=False, devices=devices, **arguments)


@pytest.mark.parametrize(
    ("order", "seeds", "devices"),
    [(orders.shuffled, 1, 1), (orders.alternating_halves, 1, 8), (in_turn, 2, 8)],
    ids=["shuffled", "halves", "two seeds"],
)
def test_a_stream_trains_what_the_images_in_memory_do(order, seeds, devices, monkeypatch):
    monkeypatch.setattr(feeds, "EVALUATION_BATCH", 40)  # 101 images: the last batch is padded
    dataset, recipe = digits(500), dataclasses.replace(RECIPE, seeds=seeds)
    both = [train(d, order, recipe, jax.devices()[:devices]) for d in (dataset, streamed(dataset))]
    here, there = both
    for name in ("params", "model_state", "trainable"):
        chex.assert_trees_all_close(getattr(here, name), getattr(there, name), rtol=1e-4, atol=1e-6)
    for one, other in zip(here.history, there.history, strict=True):
        assert list(one) == list(other)
        for name in one.keys() - {"seconds"}:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, err_msg=name)
    assert there.failed == [False] * seeds
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(there.trainable))
    scores = [
        training.evaluate(Noisy(), here.params, here.model_state, d.test, d, jax.devices()[:devices])
        for d in (dataset, streamed(dataset))
    ]
    assert list(scores[0]) == list(scores[1])
    for name in scores[0]:
        assert scores[0][name].dtype == scores[1][name].dtype == np.float32
        np.testing.assert_allclose(scores[0][name], scores[1][name], rtol=1e-5)


def test_a_folder_never_mixes_two_transforms(tmp_path):
    train(streamed(SMALL), recipe=dataclasses.replace(RECIPE, batch_size=16), directory=tmp_path)
    with pytest.raises(ValueError, match=r"dataset.train.transform: 'as_it_is' there, 'noisy' now"):
        train(streamed(SMALL, noisy), recipe=dataclasses.replace(RECIPE, batch_size=16), directory=tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())["dataset"]["train"]
    assert described == {"shape": [40, 8, 8, 1], "transform": "as_it_is"}


COUNTER = itertools.count(1)
KILLED = Recipe(epochs=4, batch_size=100, learning_rate=0.05, seeds=2, checkpoint_every=1)


def deadly(image, rng):
    """Mirrors an image or not; kills the process at a number of images that the environment names."""
    if next(COUNTER) == int(os.environ.get("DEADLY_IMAGE", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    return image[:, ::-1] if rng.random() < 0.5 else image


def deadly_run(directory=None):
    return train(streamed(digits(500), deadly), recipe=KILLED, directory=directory, snapshots=[1, 4])


@pytest.mark.slow
def test_a_killed_stream_continues_to_the_same_weights(tmp_path):
    tests = Path(__file__).parent
    code = f"import test_streaming as t; t.deadly_run({str(tmp_path / 'run')!r})"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "DEADLY_IMAGE": "1250",  # in the third epoch
    }
    killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    resumed, whole = deadly_run(tmp_path / "run"), deadly_run()
    for name in ("params", "trainable", "model_state", "snapshots"):
        chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, getattr(run, name)) for run in (resumed, whole)))
    assert resumed.history[:2] == rows
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in whole.history]


# Data sets


def test_a_data_set_on_disk_is_trained_from_a_stream(prepared):
    whole = data.load("digits", prepared)
    dataset = data.stream(
        "digits",
        prepared,
        "train[:80%]",
        "train[80%:]",
        "test",
        RandomResizedCrop(8, (0.5, 1.0)),
        CentreCrop(8, 8),
        whole.mean,
        whole.std,
    )
    sizes = [len(getattr(dataset, split)) for split in ("train", "validation", "test")]
    assert sizes == [1150, 288, 359]
    assert (dataset.train.image_shape, dataset.classes, dataset.name) == ((8, 8, 1), 10, "digits")
    run = train(dataset, recipe=dataclasses.replace(RECIPE, augment=False, epochs=4, seeds=1))
    assert run.history[-1]["val_accuracy"][0] > 0.5  # guessing gives 0.1
    scores = training.evaluate(Noisy(), run.params, run.model_state, dataset.test, dataset, ONE)
    again = training.evaluate(Noisy(), run.params, run.model_state, whole.test, whole, ONE)
    np.testing.assert_allclose(scores["loss"], again["loss"], rtol=1e-5)


class Tiny(nn.Module):
    """Reads photographs quickly."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(1000)(images[:, ::32, ::32].reshape(images.shape[0], -1))


def test_imagenet(random_data):
    # Whatever the split, the fake data set has eight images, of shapes of their own.
    dataset = data.stream(train="train", validation="validation")
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [8, 8, 8]
    assert (dataset.train.image_shape, dataset.classes) == ((224, 224, 3), 1000)
    assert dataset.train.describe() == {
        "shape": (8, 224, 224, 3),
        "transform": "RandomResizedCrop(size=224, scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333))",
    }
    recipe = Recipe(epochs=2, batch_size=4, learning_rate=0.01, seeds=1)
    run = training.train(Tiny(), dense(recipe), dataset, recipe, progress=False, devices=ONE)
    assert np.isfinite([row["val_loss"] for row in run.history]).all()
    assert run.history[1]["train_loss"] != run.history[0]["train_loss"]
