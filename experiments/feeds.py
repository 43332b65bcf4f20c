"""Feeds a run's programs with images: those in memory are put on the devices once, streams come batch by batch."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments import evaluation, processes, steps
from experiments.evaluation import Scores
from experiments.orders import Order
from experiments.splits import Split, Stream
from experiments.steps import Metrics, Networks, Programs, State

EVALUATION_BATCH = 500

Train = Callable[[State], tuple[State, Metrics]]
"""state -> the state after an epoch, and its metrics; the argument's buffers are overwritten."""

Validate = Callable[[State], tuple[Scores, jax.Array, dict[str, jax.Array]]]
"""state -> the finalised parameters' scores and numbers of non-zeros, and what the method observes."""


def batch_sharding(devices: Sequence[jax.Device] | None, batch_size: int = 0, parts: int = 1) -> NamedSharding:
    """Returns the sharding of a batch over devices (None: those of all processes), along its first axis.

    Raises:
      ValueError: if the devices cannot share the batch, in so many parts, evenly.
    """
    devices = jax.devices() if devices is None else devices
    least = len(devices) * parts
    if batch_size % least:
        raise ValueError(
            f"recipe.batch_size: got {batch_size}, which {len(devices)} devices cannot share evenly"
            f"{f' in {parts} parts (recipe.accumulate)' if parts > 1 else ''}; choose a multiple of {least}, or pass "
            "fewer devices"
        )
    mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec("batch"))


def replicated(sharding: NamedSharding) -> NamedSharding:
    """Returns the sharding of what every device has whole."""
    return NamedSharding(sharding.mesh, PartitionSpec())


class InMemory:
    """Feeds the images of a `Split`."""

    def __init__(self, split: Split, sharding: NamedSharding):
        self.split, self.sharding = split, sharding

    def train(self, programs: Programs, state: State, order: Order, seed: int, batch_size: int) -> Train:
        """Compiles an epoch, in which every seed has an order of its own; `seed` and the rest are the programs'."""
        every = replicated(self.sharding)
        data = processes.spread((self.split.images, self.split.labels), every)
        epoch = jax.jit(programs.epoch, donate_argnums=0, out_shardings=every).lower(state, *data).compile()
        return lambda state: epoch(state, *data)

    def validate(self, programs: Programs, state: State) -> Validate:
        """Compiles the evaluation of a state."""
        data = self._chunks()
        every = replicated(self.sharding)
        validate = jax.jit(programs.validate, out_shardings=every).lower(state, *data).compile()
        return lambda state: validate(state, *data)

    def scores(self, model: nn.Module, normalize: tuple[tuple[float, ...], ...], networks: Networks) -> Scores:
        """Evaluates networks; `normalize` is (mean, std)."""
        return _scorer(evaluation.means, model, normalize, self.sharding)(*networks, *self._chunks())

    def _chunks(self) -> tuple[jax.Array, jax.Array]:
        """Returns images (chunks, n, h, w, c) and labels (chunks, n) on the devices, padded with label -1."""
        split, size = self.split, _evaluation_batch(self.split, self.sharding)
        missing = -len(split) % size
        images = np.pad(split.images, ((0, missing), (0, 0), (0, 0), (0, 0))).reshape(-1, size, *split.image_shape)
        labels = np.pad(split.labels, (0, missing), constant_values=-1).reshape(-1, size)
        return processes.spread((images, labels), NamedSharding(self.sharding.mesh, PartitionSpec(None, "batch")))


class Streamed:
    """Feeds the images of a `Stream`."""

    def __init__(self, split: Stream, sharding: NamedSharding):
        self.split, self.sharding = split, sharding

    def train(self, programs: Programs, state: State, order: Order, seed: int, batch_size: int) -> Train:
        """Compiles a step. All seeds share an epoch's images: the order and host transformations of `seed`."""
        every, count = replicated(self.sharding), len(self.split)
        indices = jax.jit(lambda epoch: steps.epoch_order(order, seed, epoch, count, batch_size))
        zeros = processes.spread(Metrics(*np.zeros((2, len(state.seed)), np.float32)), every)
        length = len(jax.eval_shape(indices, 0))
        compiled = jax.jit(partial(programs.step, steps=length), donate_argnums=0, out_shardings=every)
        step = compiled.lower(state, zeros, *self._batch(batch_size), np.int32(0)).compile()

        def epoch(state: State) -> tuple[State, Metrics]:
            number, sums = int(np.asarray(state.epoch)[0]), zeros
            with self._batches(np.asarray(indices(number)), (seed, number)) as batches:
                for i, batch in enumerate(batches):
                    before = sums
                    state, sums = step(state, before, *batch, np.int32(i))
                    # The device has its next batch by now; without waiting, the host would fill it with batches.
                    jax.block_until_ready(before)
            return state, jax.tree.map(lambda total: total / length, sums)

        return epoch

    def validate(self, programs: Programs, state: State) -> Validate:
        """Compiles the evaluation of a state."""
        compiled = partial(jax.jit, out_shardings=replicated(self.sharding))
        finalize = compiled(programs.finalize).lower(state.trainable).compile()
        inspect = compiled(programs.inspect).lower(state).compile()
        networks = finalize(state.trainable), state.model_state
        size = _evaluation_batch(self.split, self.sharding)
        evaluate = compiled(programs.evaluate).lower(*networks, *self._batch(size)).compile()

        def validate(state: State) -> tuple[Scores, jax.Array, dict[str, jax.Array]]:
            networks = finalize(state.trainable), state.model_state
            return self._average(partial(evaluate, *networks)), *inspect(state)

        return validate

    def scores(self, model: nn.Module, normalize: tuple[tuple[float, ...], ...], networks: Networks) -> Scores:
        """Evaluates networks; `normalize` is (mean, std)."""
        return self._average(partial(_scorer(evaluation.sums, model, normalize, self.sharding), *networks))

    def _batch(self, size: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Returns the shapes of a batch."""
        images = jax.ShapeDtypeStruct((size, *self.split.image_shape), np.uint8, sharding=self.sharding)
        return images, jax.ShapeDtypeStruct((size,), np.int32, sharding=self.sharding)

    def _average(self, evaluate: Callable[..., Scores]) -> Scores:
        """Returns means over the split of what `evaluate` sums over a batch."""
        size, count = _evaluation_batch(self.split, self.sharding), len(self.split)
        order = np.pad(np.arange(count), (0, -count % size), constant_values=-1).reshape(-1, size)
        total = 0.0
        with self._batches(order, (0,)) as batches:
            for batch in batches:
                total += np.array(evaluate(*batch), np.float64)
        return Scores(*(total / count).astype(np.float32))

    @contextmanager
    def _batches(self, order: np.ndarray, seed: tuple[int, ...]) -> Iterator[Iterator[tuple[jax.Array, jax.Array]]]:
        """Opens batches on the devices, of which each process reads the parts of its own.

        A device's part is a batch to the stream: its random numbers are the same whichever process reads it.
        """
        devices = list(self.sharding.mesh.devices.flat)
        places = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
        parts = order.reshape(len(order) * len(devices), -1)
        numbers = [batch * len(devices) + place for batch in range(len(order)) for place in places]

        def assembled(arrays: Sequence[np.ndarray]) -> jax.Array:
            shape = order.shape[1], *arrays[0].shape[1:]
            placed = jax.device_put(list(arrays), [devices[place] for place in places])
            return jax.make_array_from_single_device_arrays(shape, self.sharding, placed)

        with self.split.batches(parts, seed, numbers) as read:
            yield (tuple(map(assembled, zip(*(next(read) for _ in places), strict=True))) for _ in order)


def feed(split: Split | Stream, sharding: NamedSharding) -> InMemory | Streamed:
    """Returns the feed of a split whose batches are sharded so."""
    return (Streamed if isinstance(split, Stream) else InMemory)(split, sharding)


def _evaluation_batch(split: Split | Stream, sharding: NamedSharding) -> int:
    """Returns the number of images in a batch of an evaluation, which the devices share evenly."""
    return math.ceil(min(len(split), EVALUATION_BATCH) / sharding.mesh.size) * sharding.mesh.size


@functools.cache
def _scorer(score, model, normalize, sharding) -> Callable[..., Scores]:
    """Returns (params, model_state, images, labels) -> what `score`, of `evaluation`, finds, on every device."""
    one = score(model, steps.normalizer(*normalize))

    def scores(params, model_state, *data) -> Scores:
        return steps.over_seeds(model)(lambda *network: one(*network, *data))(params, model_state)

    return jax.jit(scores, out_shardings=replicated(sharding))
