"""What `training.train` refuses before it starts."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments.steps import Metrics, Networks

COLUMNS = ("epoch", "learning_rate", *Metrics._fields, "val_loss", "val_accuracy", "nonzeros", "seconds")
"""What every row of a history has; a method's observations have other names."""


def order(batches: jax.ShapeDtypeStruct, count: int, batch_size: int, name: str) -> None:
    """Raises `ValueError` if an order of `count` images of the data set `name` has other batches than asked for."""
    if batches.ndim != 2 or batches.shape[1] != batch_size or batches.dtype != np.int32:
        raise ValueError(
            f"method.order: got {batches.dtype} indices of shape {batches.shape}; return int32 (steps, {batch_size})"
        )
    if not len(batches):
        raise ValueError(
            f"recipe.batch_size: got {batch_size}, but the training split of {name} has only {count} images; choose a "
            "smaller batch"
        )


def initial(networks: Networks | None, shapes: Networks) -> None:
    """Raises `ValueError` if initial networks have other leaves or shapes than the model."""
    if networks is None:
        return
    given, wanted = (jax.tree_util.tree_leaves_with_path(tree) for tree in (tuple(networks), shapes))
    given, wanted = ({jax.tree_util.keystr(p): np.shape(leaf) for p, leaf in leaves} for leaves in (given, wanted))
    for name in sorted(given.keys() | wanted.keys()):
        if given.get(name) != wanted.get(name):
            raise ValueError(
                f"initial{name}: got shape {given.get(name)}, but this model and these seeds need {wanted.get(name)}; "
                "pass (params, model_state) of the same model, with a leading axis of recipe.seeds"
            )


def observed(values: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Raises `ValueError` if a method observes, for every seed, something else than scalars of their own names."""
    for name, value in values.items():
        if name in COLUMNS or value.ndim != 1:
            raise ValueError(
                f"method.observe: got {name!r} of shape {value.shape[1:]}, but it returns scalars, by other names than "
                f"{', '.join(COLUMNS)}"
            )


def snapshots(wanted: Sequence[int], epochs: int, done: int, has: Callable[[int], bool]) -> None:
    """Raises `ValueError` for epochs that the run lacks, or is past without having (`has`) a snapshot of them."""
    for epoch in wanted:
        if not 0 <= epoch <= epochs:
            raise ValueError(f"snapshots: got {epoch}, but the run has epochs 0 (its start) to {epochs}")
        if epoch < done and not has(epoch):
            raise ValueError(
                f"snapshots: got {epoch}, but the run in the directory is at epoch {done} and was not asked for a "
                "snapshot of that epoch; choose another directory or delete this one"
            )
