"""One training loop for every network and every pruning method.

Seeds are an axis: every array of a run's state has a leading seeds axis, and a model says (`over_seeds`) whether its
seeds run in parallel or one after another. Batches are sharded over the devices; the state is replicated.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from tqdm import tqdm

from experiments import checks, feeds, gradients, histories, logs, processes, steps
from experiments.methods import Method, Recipe, Trainable
from experiments.splits import Dataset, Split, Stream
from experiments.steps import Networks, Programs, State


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run; every array has a leading seeds axis, and lists run over seeds."""

    trainable: Trainable
    """What the method trained, as it is after the last epoch."""
    params: chex.ArrayTree
    """The finalised parameters, with real zeros."""
    model_state: chex.ArrayTree
    """The model's other collections, such as batch_stats; {} if it has none."""
    history: list[dict[str, Any]]
    """One row an epoch: `epoch` (from 1); `learning_rate`; `train_loss` and `penalty`, means over the epoch's steps,
    each before its update; `val_loss`, `val_accuracy` and `nonzeros` of the finalised parameters after it; what the
    method observes after it; `seconds` of training. Values that differ from seed to seed are lists."""
    seconds: float
    """Training time of all seeds together, without compilation and evaluation."""
    compile_seconds: float
    """Compilation time in this process; 0 if the finished run was found on disk."""
    failed: list[bool]
    """Whether a loss or the penalty was infinite or NaN in any epoch."""
    snapshots: dict[int, Networks] = dataclasses.field(default_factory=dict)
    """(finalised params, model_state) after each of the epochs that were asked for, as NumPy arrays."""

    @property
    def networks(self) -> Networks:
        """The finalised networks, such as others start from."""
        return self.params, self.model_state


def train(
    model: nn.Module,
    method: Method,
    dataset: Dataset,
    recipe: Recipe,
    directory: os.PathLike | str | None = None,
    initial: Networks | None = None,
    progress: bool = True,
    config: dict[str, Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
    snapshots: Sequence[int] = (),
    visit: Callable[[int, Networks], None] | None = None,
) -> Run:
    """Trains `recipe.seeds` networks on the training split and follows them on the validation split.

    The test split is never touched. The result is a function of the arguments: a run that was killed continues from
    its newest checkpoint to the same weights, bit for bit on the same machine, and a finished one is read from disk.
    Several processes call this alike; each gets the whole result, as NumPy arrays, and the first one has the files.

    Args:
      model: `apply(variables, images float32 (n, h, w, c), train)` -> logits (n, classes).
      method: what is trained, and how.
      dataset: with splits in memory, whose arrays must fit on a device, or streams. From a stream, all seeds take the
        same images, in the order and with the host's transformations of the first seed.
      recipe: how long, how fast, how many.
      directory: for configuration, metrics and checkpoints; None keeps no files.
      initial: (params, model_state) with a leading seeds axis to start from; None initialises every seed.
      progress: whether to show a bar.
      config: JSON-serialisable settings that the method was made with; a directory never mixes two.
      devices: to shard batches over; None takes those of all processes.
      snapshots: numbers of epochs after which the networks are kept, 0 for the initial ones, in `Run.snapshots` and in
        the directory.
      visit: is called with the number of complete epochs and the finalised (params, model_state), which are gone when
        it returns: first with those from which the run starts or goes on, then after every epoch, before a checkpoint
        makes a killed run go on from there.

    Returns:
      A `Run`.

    Raises:
      ValueError: if the batch is larger than the training split or not divisible by the number of devices, if
        `initial` does not fit the model and the seeds, if the method observes something that is no scalar or has the
        name of another column of the history, if the directory holds another run, if it is past an epoch of which it
        has no snapshot, or if processes call this with different arguments.
    """
    sharding = feeds.batch_sharding(devices, recipe.batch_size, recipe.accumulate)
    replicated = feeds.replicated(sharding)
    programs, rate = _programs(model, method, dataset, recipe, sharding)
    seeds = jnp.arange(recipe.seed, recipe.seed + recipe.seeds, dtype=jnp.uint32)
    fresh = steps.fresh(model, dataset.train.image_shape)
    shapes = jax.eval_shape(fresh, seeds)
    checks.initial(initial, shapes)
    template = jax.tree.map(partial(_placed, sharding=replicated), jax.eval_shape(programs.begin, seeds, *shapes))
    checks.observed(jax.eval_shape(programs.inspect, template)[1])
    description = logs.describe(model, method, dataset, recipe, initial, config)
    processes.check_alike((description, directory is None, snapshots))
    folder = logs.Nowhere() if directory is None else logs.Folder(directory, description)

    state, history = folder.restore(template)
    checks.snapshots(snapshots, recipe.epochs, len(history), folder.has)
    if state is None:
        start = processes.share((seeds, *(initial or fresh(seeds))), replicated)
        state = jax.jit(programs.begin, out_shardings=replicated)(*start)
    finalize = jax.jit(programs.finalize, out_shardings=replicated)

    def networks() -> Networks:
        return processes.reachable((finalize(state.trainable), state.model_state))

    def keep() -> None:
        if len(history) in snapshots:
            folder.keep(len(history), networks())

    def show() -> None:
        if visit is not None:
            visit(len(history), networks())

    if not folder.has(len(history)):
        keep()
    show()
    compile_seconds, every = 0.0, recipe.checkpoint_every
    if len(history) < recipe.epochs:
        advance, compile_seconds = _compile(programs, state, method, dataset, recipe, sharding)
        hidden, size = not (progress and processes.is_first()), sum(leaf.size for leaf in jax.tree.leaves(shapes[0]))
        with tqdm(desc=method.name, total=recipe.epochs, initial=len(history), disable=hidden) as bar:
            while len(history) < recipe.epochs:
                state, row = advance(state)
                history.append({"epoch": len(history) + 1, "learning_rate": rate(len(history)), **row})
                folder.log(history[-1])
                keep()  # before the checkpoint, beyond which a killed run repeats everything
                show()
                if len(history) == recipe.epochs or (every and len(history) % every == 0):
                    folder.save(len(history), state)
                bar.set_postfix(histories.summary(history[-1], size), refresh=False)
                bar.update()
    params, model_state = networks()
    shapes = jax.tree.map(partial(_placed, sharding=replicated), (params, model_state))
    return Run(
        trainable=processes.reachable(state.trainable),
        params=params,
        model_state=model_state,
        history=history,
        seconds=sum(row["seconds"] for row in history),
        compile_seconds=compile_seconds,
        failed=[histories.failed(history, seed) for seed in range(recipe.seeds)],
        snapshots={epoch: folder.snapshot(epoch, shapes) for epoch in sorted(set(snapshots))},
    )


def evaluate(
    model: nn.Module,
    params: chex.ArrayTree,
    model_state: chex.ArrayTree,
    split: Split | Stream,
    dataset: Dataset,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, np.ndarray]:
    """Returns how well trained networks do on a split; experiments call it for the test split, once, at the end.

    Args:
      model: as for `train`.
      params: with a leading seeds axis, as in `Run.params`.
      model_state: with a leading seeds axis, as in `Run.model_state`.
      split: images and labels, in memory or as a stream.
      dataset: its `mean` and `std` normalise the images.
      devices: to shard batches over; None takes those of all processes.

    Returns:
      {"accuracy": (seeds,), "top5": (seeds,), "loss": (seeds,)}, float32; accuracies in [0, 1].
    """
    sharding = feeds.batch_sharding(devices)
    networks = processes.share((params, model_state), feeds.replicated(sharding))
    scores = feeds.feed(split, sharding).scores(model, (dataset.mean, dataset.std), networks)
    return {name: np.asarray(score) for name, score in scores._asdict().items()}


def _programs(model, method, dataset, recipe, sharding) -> tuple[Programs, Callable[[int], float]]:
    """Returns the functions to compile, and the learning rate as a function of the epoch, from 0."""
    order = partial(steps.epoch_order, method.order, count=len(dataset.train), batch_size=recipe.batch_size)
    batches = jax.eval_shape(order, 0, 0)
    checks.order(batches, len(dataset.train), recipe.batch_size, dataset.name)
    steps_per_epoch = len(batches)
    schedule = recipe.schedule(recipe, steps_per_epoch)
    programs = steps.make_programs(
        model,
        method,
        optimizer=method.optimizer(schedule),
        normalize=steps.normalizer(dataset.mean, dataset.std),
        augment=steps.crop_and_flip if recipe.augment else lambda key, images: images,
        batch_size=recipe.batch_size,
        sharding=sharding,
        losses=gradients.cross_entropy(recipe.label_smoothing),
        precision=gradients.bfloat16 if recipe.bfloat16 else gradients.as_it_is,
        accumulate=recipe.accumulate,
    )
    return programs, lambda epoch: float(schedule(epoch * steps_per_epoch))


def _compile(
    programs: Programs, state: State, method: Method, dataset: Dataset, recipe: Recipe, sharding: NamedSharding
) -> tuple[Callable[[State], tuple[State, dict[str, Any]]], float]:
    """Returns state -> (state after an epoch, its row of the history), compiled, and how many seconds that took."""
    started = time.perf_counter()
    training, validation = (feeds.feed(split, sharding) for split in (dataset.train, dataset.validation))
    epoch = training.train(programs, state, method.order, recipe.seed, recipe.batch_size)
    validate = validation.validate(programs, state)
    compile_seconds = time.perf_counter() - started

    def advance(state: State) -> tuple[State, dict[str, Any]]:
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(epoch(state))
        seconds = time.perf_counter() - started
        scores, nonzeros, observed = validate(state)
        values = {**metrics._asdict(), "val_loss": scores.loss, "val_accuracy": scores.accuracy, "nonzeros": nonzeros}
        values |= observed
        return state, {**{name: np.asarray(value).tolist() for name, value in values.items()}, "seconds": seconds}

    return advance, compile_seconds


def _placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
