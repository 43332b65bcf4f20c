"""One training loop for every network and every pruning method.

Seeds are an axis: every array of a run's state has a leading seeds axis, and a model says (`over_seeds`) whether its
seeds run in parallel or one after another. Batches are sharded over the devices; the state is replicated.
"""

import dataclasses
import math
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
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from experiments import logs, steps
from experiments.data import Dataset, Split
from experiments.methods import Method, Recipe, Trainable, cosine_cycles
from experiments.steps import Programs, State

EVALUATION_BATCH = 500

Initial = tuple[chex.ArrayTree, chex.ArrayTree]
"""(params, model_state), with a leading seeds axis."""


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
    each before its update; `val_loss`, `val_accuracy` and `nonzeros` of the finalised parameters after it; `seconds`
    of training. Values that differ from seed to seed are lists."""
    seconds: float
    """Training time of all seeds together, without compilation and evaluation."""
    compile_seconds: float
    """Compilation time in this process; 0 if the finished run was found on disk."""
    failed: list[bool]
    """Whether a loss or the penalty was infinite or NaN in any epoch."""


def train(
    model: nn.Module,
    method: Method,
    dataset: Dataset,
    recipe: Recipe,
    directory: os.PathLike | str | None = None,
    initial: Initial | None = None,
    progress: bool = True,
    config: dict[str, Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Run:
    """Trains `recipe.seeds` networks on the training split and follows them on the validation split.

    The test split is never touched. The result is a function of the arguments: a run that was killed continues from
    its newest checkpoint to the same weights, bit for bit on the same machine, and a finished one is read from disk.

    Args:
      model: `apply(variables, images float32 (n, h, w, c), train)` -> logits (n, classes).
      method: what is trained, and how.
      dataset: its arrays must fit on a device.
      recipe: how long, how fast, how many.
      directory: for configuration, metrics and checkpoints; None keeps no files.
      initial: (params, model_state) with a leading seeds axis to start from; None initialises every seed.
      progress: whether to show a bar.
      config: JSON-serialisable settings that the method was made with; a directory never mixes two.
      devices: to shard batches over; None takes all local ones.

    Returns:
      A `Run`.

    Raises:
      ValueError: if the batch is larger than the training split or not divisible by the number of devices, if
        `initial` does not fit the model and the seeds, or if the directory holds another run.
    """
    sharding = _batch_sharding(devices, recipe.batch_size)
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    programs, rate = _programs(model, method, dataset, recipe, sharding)
    seeds = jnp.arange(recipe.seed, recipe.seed + recipe.seeds, dtype=jnp.uint32)
    shapes = jax.eval_shape(programs.fresh, seeds)
    _check_initial(initial, shapes)
    description = logs.describe(model, method, dataset, recipe, initial, config)
    folder = logs.Nowhere() if directory is None else logs.Folder(directory, description)

    template = jax.eval_shape(programs.begin, seeds, *shapes)
    state, history = folder.restore(jax.tree.map(partial(_placed, sharding=replicated), template))
    if state is None:
        start = jax.device_put(initial or jax.jit(programs.fresh)(seeds), replicated)
        state = jax.jit(programs.begin, out_shardings=replicated)(seeds, *start)
    compile_seconds = 0.0
    if len(history) < recipe.epochs:
        advance, compile_seconds = _compile(programs, state, dataset, sharding)
        with tqdm(desc=method.name, total=recipe.epochs, initial=len(history), disable=not progress) as bar:
            while len(history) < recipe.epochs:
                state, row = advance(state)
                history.append({"epoch": len(history) + 1, "learning_rate": rate(len(history)), **row})
                folder.log(history[-1])
                if len(history) == recipe.epochs or _due(len(history), recipe.checkpoint_every):
                    folder.save(len(history), state)
                bar.set_postfix(_summary(history[-1], shapes[0]), refresh=False)
                bar.update()
    return Run(
        trainable=state.trainable,
        params=jax.jit(programs.finalize, out_shardings=replicated)(state.trainable),
        model_state=state.model_state,
        history=history,
        seconds=sum(row["seconds"] for row in history),
        compile_seconds=compile_seconds,
        failed=[_failed(history, seed) for seed in range(recipe.seeds)],
    )


def evaluate(
    model: nn.Module,
    params: chex.ArrayTree,
    model_state: chex.ArrayTree,
    split: Split,
    dataset: Dataset,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, np.ndarray]:
    """Returns how well trained networks do on a split; experiments call it for the test split, once, at the end.

    Args:
      model: as for `train`.
      params: with a leading seeds axis, as in `Run.params`.
      model_state: with a leading seeds axis, as in `Run.model_state`.
      split: images and labels.
      dataset: its `mean` and `std` normalise the images.
      devices: to shard batches over; None takes all local ones.

    Returns:
      {"accuracy": (seeds,), "top5": (seeds,), "loss": (seeds,)}, float32; accuracies in [0, 1].
    """
    sharding = _batch_sharding(devices)
    variables = jax.device_put((params, model_state), NamedSharding(sharding.mesh, PartitionSpec()))
    scores = _evaluate(model, dataset.mean, dataset.std, *variables, *_chunks(split, sharding))
    return {name: np.asarray(score) for name, score in scores._asdict().items()}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _evaluate(model, mean, std, params, model_state, images, labels) -> steps.Scores:
    one = steps.evaluation(model, steps.normalizer(mean, std))
    return steps.over_seeds(model)(lambda params, state: one(params, state, images, labels))(params, model_state)


def _batch_sharding(devices: Sequence[jax.Device] | None, batch_size: int = 0) -> NamedSharding:
    devices = jax.local_devices() if devices is None else devices
    if batch_size % len(devices):
        raise ValueError(
            f"recipe.batch_size: got {batch_size}, which {len(devices)} devices cannot share evenly; "
            f"choose a multiple of {len(devices)}, or pass fewer devices"
        )
    mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec("batch"))


def _programs(model, method, dataset, recipe, sharding) -> tuple[Programs, Callable[[int], float]]:
    """Returns the functions to compile, and the learning rate as a function of the epoch, from 0."""
    steps_per_epoch = len(dataset.train.labels) // recipe.batch_size
    if not steps_per_epoch:
        raise ValueError(
            f"recipe.batch_size: got {recipe.batch_size}, but the training split of {dataset.name} has only "
            f"{len(dataset.train.labels)} images; choose a smaller batch"
        )
    schedule = cosine_cycles(recipe, steps_per_epoch)
    programs = steps.make_programs(
        model,
        method,
        optimizer=method.optimizer(schedule),
        normalize=steps.normalizer(dataset.mean, dataset.std),
        augment=steps.crop_and_flip if recipe.augment else lambda key, images: images,
        image_shape=dataset.train.images.shape[1:],
        batch_size=recipe.batch_size,
        sharding=sharding,
    )
    return programs, lambda epoch: float(schedule(epoch * steps_per_epoch))


def _compile(
    programs: Programs, state: State, dataset: Dataset, sharding: NamedSharding
) -> tuple[Callable[[State], tuple[State, dict[str, Any]]], float]:
    """Returns state -> (state after an epoch, its row of the history), compiled, and how many seconds that took."""
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    training = jax.device_put((dataset.train.images, dataset.train.labels), replicated)
    validation = _chunks(dataset.validation, sharding)
    started = time.perf_counter()
    epoch = jax.jit(programs.epoch, donate_argnums=0, out_shardings=replicated).lower(state, *training).compile()
    validate = jax.jit(programs.validate).lower(state, *validation).compile()
    compile_seconds = time.perf_counter() - started

    def advance(state: State) -> tuple[State, dict[str, Any]]:
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(epoch(state, *training))
        seconds = time.perf_counter() - started
        scores, nonzeros = validate(state, *validation)
        values = {**metrics._asdict(), "val_loss": scores.loss, "val_accuracy": scores.accuracy, "nonzeros": nonzeros}
        return state, {**{name: np.asarray(value).tolist() for name, value in values.items()}, "seconds": seconds}

    return advance, compile_seconds


def _chunks(split: Split, sharding: NamedSharding) -> tuple[jax.Array, jax.Array]:
    """Returns images (chunks, n, h, w, c) and labels (chunks, n) on the devices, padded with images of label -1."""
    count, devices = len(split.labels), sharding.mesh.size
    size = math.ceil(min(count, EVALUATION_BATCH) / devices) * devices
    missing = -count % size
    images = np.pad(split.images, ((0, missing), (0, 0), (0, 0), (0, 0))).reshape(-1, size, *split.images.shape[1:])
    labels = np.pad(split.labels, (0, missing), constant_values=-1).reshape(-1, size)
    return jax.device_put((images, labels), NamedSharding(sharding.mesh, PartitionSpec(None, "batch")))


def _placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_initial(initial: Initial | None, shapes: Initial) -> None:
    if initial is None:
        return
    given, wanted = (jax.tree_util.tree_leaves_with_path(tree) for tree in (tuple(initial), shapes))
    given, wanted = ({jax.tree_util.keystr(p): np.shape(leaf) for p, leaf in leaves} for leaves in (given, wanted))
    for name in sorted(given.keys() | wanted.keys()):
        if given.get(name) != wanted.get(name):
            raise ValueError(
                f"initial{name}: got shape {given.get(name)}, but this model and these seeds need {wanted.get(name)}; "
                "pass (params, model_state) of the same model, with a leading axis of recipe.seeds"
            )


def _due(epochs: int, every: int) -> bool:
    return every > 0 and epochs % every == 0


def _summary(row: dict[str, Any], params: chex.ArrayTree) -> dict[str, str]:
    """Returns what the progress bar shows: means over seeds."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {
        "loss": f"{np.mean(row['train_loss']):.3f}",
        "accuracy": f"{np.mean(row['val_accuracy']):.2%}",
        "sparsity": f"{1 - sum(row['nonzeros']) / size:.2%}",
    }


def _failed(history: list[dict[str, Any]], seed: int) -> bool:
    names = ("train_loss", "penalty", "val_loss")
    return not all(math.isfinite(row[name][seed]) for row in history for name in names)
