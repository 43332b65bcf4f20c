"""Trains on eight devices that belong to one process or to two.

    python experiment_processes.py RANK COUNT PORT FOLDER ACTION ...

Actions are functions below, which write what they find into the folder, for `test_processes` to compare. Not a test by
itself.
"""

import dataclasses
import os
import pickle
import signal
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import numpy as np

from experiments import processes, steps, training
from experiments.methods import Recipe, dense
from experiments.processes import Processes
from experiments.splits import Dataset, Split, Stream

RECIPE = Recipe(epochs=3, batch_size=48, learning_rate=0.05, augment=True, seeds=2, checkpoint_every=1)
RNG = np.random.default_rng(0)


def split(count):
    # Larger numbers are brighter, so that there is something to learn.
    labels = RNG.integers(0, 10, count).astype(np.int32)
    images = 20 * labels[:, None, None, None] + RNG.integers(0, 56, (count, 6, 6, 1))
    return Split(images.astype(np.uint8), labels)


MEMORY = Dataset("numbers", split(150), split(41), split(37), 10, (0.3,), (0.4,))


class Examples:
    """Arrays as a source that says what was read of it."""

    def __init__(self, split):
        self.split, self.seen = split, []

    def __len__(self):
        return len(self.split)

    def __getitems__(self, indices):
        self.seen += indices
        return [{"image": self.split.images[i], "label": self.split.labels[i]} for i in indices]


def noisy(image, rng):
    return image + rng.integers(0, 30, image.shape, dtype=np.uint8)


STREAM = dataclasses.replace(
    MEMORY,
    **{
        name: Stream(Examples(getattr(MEMORY, name)), noisy, (6, 6, 1), threads=2)
        for name in ("train", "validation", "test")
    },
)


class Network(nn.Module):
    """Batch statistics and dropout, which both know of the whole batch."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(12)(images.reshape(images.shape[0], -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))


def run(folder, dataset=MEMORY, recipe=RECIPE, **arguments):
    if folder is not None and not processes.is_first():
        folder = Path(os.devnull) / "folder"  # which cannot be written to
    return training.train(Network(), dense(recipe), dataset, recipe, folder, progress=False, **arguments)


def found(run, dataset):
    """What a run comes to, as NumPy arrays and numbers."""
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]
    scores = training.evaluate(Network(), *run.networks, dataset.test, dataset)
    networks = processes.on_host((run.params, run.model_state, run.trainable))
    second = jax.jit(lambda networks: steps.one(networks, 1))(run.networks)  # what follows is each process's own
    return networks, history, run.snapshots, run.failed, scores, processes.on_host(second)


def refused(**arguments):
    try:
        run(**arguments)
    except ValueError as error:
        return str(error)


def whole(folder, count, rank):
    """Trains in memory, goes on from there with a stream, in two parts a batch, and asks for what is to be refused."""
    trained, first = (run(folder / f"memory_{count}", snapshots=[0, 2]) for _ in range(2))
    assert trained.compile_seconds > first.compile_seconds == 0, "a finished run is read"
    second = run(None, STREAM, dataclasses.replace(RECIPE, accumulate=2), initial=first.networks)
    read = list(STREAM.train.source.seen)
    refusals = refused(folder=folder / f"memory_{count}", config={"a": 1}), refused(folder=None, config={"rank": rank})
    chex.assert_trees_all_equal(found(first, MEMORY), found(trained, MEMORY))
    return found(first, MEMORY), found(second, STREAM), read, refusals


def killed(folder, count, rank):
    """Is killed in its second epoch, between its metrics and its checkpoint."""
    run(folder / f"killed_{count}", visit=lambda epoch, _: os.kill(os.getpid(), signal.SIGKILL) if epoch == 2 else None)


def resumed(folder, count, rank):
    """Goes on with what the other number of processes was killed at."""
    return found(run(folder / f"killed_{3 - count}"), MEMORY)


def main(rank, count, port, folder, *actions):
    jax.config.update("jax_num_cpu_devices", 8 // count)
    # One process joins itself, too, so that it adds up gradients in the order that two do.
    processes.start(Processes(coordinator=f"127.0.0.1:{port}", processes=count, process=rank))
    assert (len(jax.devices()), len(jax.local_devices())) == (8, 8 // count)
    for action in actions:
        results = globals()[action](folder, count, rank)
        (folder / f"{action}_{count}_{rank}").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    rank, count, port, folder, *actions = sys.argv[1:]
    main(int(rank), int(count), int(port), Path(folder), *actions)
