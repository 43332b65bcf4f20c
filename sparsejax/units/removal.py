"""Units removed from parameters of the same shapes: by zeros, or by their mean, which the next layers take over."""

from collections.abc import Mapping, Sequence
from functools import partial

import chex
import jax
import jax.numpy as jnp

from sparsejax import masks, tree
from sparsejax._checks import check_kind
from sparsejax._types import Params
from sparsejax.units.folding import Fold, contribution, folding, place
from sparsejax.units.graph import UnitGraph
from sparsejax.units.saliencies import Statistics
from sparsejax.units.sinks import Sink
from sparsejax.units.sites import Units

__all__ = ["remove", "unfoldable"]


def remove(
    graph: UnitGraph,
    params: Params,
    kept: Mapping[str, chex.Array],
    replace: str = "zero",
    stats: Statistics | None = None,
    *,
    unfolded: str = "raise",
) -> Params:
    """Returns parameters without the units that are not kept: zeros, and their mean activation in the next layers.

    With "mean", every edge that reads units (`graph.edges`) is given their means, and 0 for the units that stay; what
    it makes of them, `sum_u abar_u w_u`, is added to the bias behind it (Mean Replacement Pruning, submitted to ICLR
    2019, Eq. 4), or subtracted from the running mean of the batch norm behind it, times what parameters scale it with
    on the way (a layer scale). In a scan over stacked layers every layer's bias takes what is the layer's. This is
    exact for dense layers and VALID convolutions; with SAME padding it is the mean over positions (`bias_maps` is
    exact), in a recurrent cell the one over time, its first state included. A batch norm in training mode subtracts
    the batch's mean, so there a constant has no effect, and no place: trace, measure and fold in evaluation mode.

    Args:
      graph: the units.
      params: the parameters.
      kept: `{name: bool (size,)}`, `True` keeps; groups without an entry stay whole. May be traced.
      replace: "zero" or "mean".
      stats: for "mean", what `statistics` returns for these parameters.
      unfolded: what happens where a group in `kept` has a constant that no parameter can take (`unfoldable`): "raise",
        or "drop", which removes the units there as "zero" does.

    Returns:
      Parameters of the same structure, shapes and dtypes.

    Raises:
      ValueError: as `UnitGraph.push` does; a constant has no place; "mean" without statistics, or with those of other
        edges; or another word for `replace` or `unfolded`.

    >>> from sparsejax import units
    >>> params = {"in": jnp.ones((1, 2)), "out": jnp.array([[1.0], [3.0]]), "bias": jnp.zeros(1)}
    >>> fn = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"] + p["bias"]
    >>> graph, kept = units.trace(fn, params, jnp.ones((2, 1))), {"in": jnp.array([True, False])}
    >>> stats = units.statistics(graph, lambda p, x: fn(p, x).mean(), params, [jnp.array([[0.0], [50.0]])])
    >>> remove(graph, params, kept, "mean", stats)["bias"].tolist()
    [1.5]
    """
    if replace not in ("zero", "mean") or unfolded not in ("raise", "drop"):
        raise ValueError(
            f"replace={replace!r}, unfolded={unfolded!r}; replace is 'zero' or 'mean', unfolded 'raise' or 'drop'"
        )
    tree.check_structure(params, graph.params, "params")
    mask = graph.push(kept)
    if replace == "mean":
        if stats is None:
            raise ValueError("replace='mean' needs stats=sparsejax.units.statistics(graph, loss_fn, params, batches)")
        if unfolded == "raise":
            lost = {group: reasons for group, reasons in unfoldable(graph).items() if group in kept}
            if lost:
                raise ValueError(
                    f"the means of units of {list(lost)} have no parameter to go to: {lost}; leave these groups out of "
                    f"kept, give their readers a bias, keep them as bias maps (sparsejax.units.bias_maps), or lose the "
                    f"means there with unfolded='drop'"
                )
        folds = tuple(fold for fold in reading(graph, kept) if isinstance(fold.sink, Sink))
        kept = {name: jnp.asarray(alive) for name, alive in kept.items()}
        params = folded(graph, folds, params, kept, known_means(folds, stats))
    return masks.apply(mask, params)


def unfoldable(graph: UnitGraph) -> dict[str, tuple[str, ...]]:
    """Returns what becomes of the constants of units that no parameter can take over, and why.

    Args:
      graph: the units.

    Returns:
      `{group: reasons}`, with an entry for groups that `remove` with "mean" refuses: one reason for each edge that has
      no bias or running mean behind it, and one if the units meet other data where no parameter reads them (queries and
      keys).

    >>> from sparsejax import units
    >>> params = {"in": jnp.ones((1, 2)), "out": jnp.ones((2, 1))}
    >>> unfoldable(units.trace(lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"], params, jnp.ones((2, 1))))
    {'in': ('out[0]: its result is returned before a parameter is added',)}
    """
    reasons: dict[str, list[str]] = {}
    for fold in folding(graph).folds:
        if isinstance(fold.sink, str):
            for group in fold.site.units:
                reasons.setdefault(group, []).append(f"{fold.name}: {fold.sink}")
    for group, reason in folding(graph).unread.items():
        if group in graph.groups:
            reasons.setdefault(group, []).append(reason)
    return {group: tuple(found) for group, found in reasons.items()}


def reading(graph: UnitGraph, kept: Mapping[str, chex.Array]) -> list[Fold]:
    """Returns the edges that read units of groups in `kept`."""
    return [fold for fold in folding(graph).folds if not fold.site.units.keys().isdisjoint(kept)]


def known_means(folds: Sequence[Fold], stats: Statistics) -> dict[str, jax.Array]:
    """Returns the means of the inputs of edges; raises if there are none, or those of other shapes."""
    check_kind("stats", stats, Statistics, "pass sparsejax.units.statistics(graph, loss_fn, params, batches)")
    if missing := sorted({fold.name for fold in folds} - stats.inputs.keys()):
        raise ValueError(
            f"stats knows nothing of what {missing} read; take statistics with a loss that runs the traced function, "
            f"and leave groups out of kept that statistics has dropped"
        )
    for fold in folds:
        own, full = stats.inputs[fold.name].shape, (*(loop.params["length"] for loop in fold.turns), *fold.shape)
        if not broadcasts(own, full):
            raise ValueError(
                f"stats.inputs[{fold.name!r}] has shape {own}, but where the graph was traced it reads {full}; trace "
                f"and take statistics at the same sizes, or without at='position'"
            )
    return {fold.name: stats.inputs[fold.name] for fold in folds}


def broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Returns whether a shape has the rank of another, and its lengths or 1."""
    return len(shape) == len(full) and all(own in (1, size) for own, size in zip(shape, full, strict=True))


@partial(jax.jit, static_argnums=(0, 1))
def folded(
    graph: UnitGraph,
    folds: tuple[Fold, ...],
    params: Params,
    kept: dict[str, jax.Array],
    means: dict[str, jax.Array],
) -> Params:
    """Returns the parameters that have taken the constants of units that are not kept, from edges with a sink."""
    found, leaves = folding(graph), tree.named(params)
    known = {graph.program.leaves[name]: jnp.asarray(leaf) for name, leaf in leaves.items()}
    for fold in folds:
        sink = fold.sink
        constant = contribution(found, fold, known, constants(fold, kept, means[fold.name]))
        leaves[sink.leaf] = place(found, fold, known | {sink.parameter: jnp.asarray(leaves[sink.leaf])}, constant)
    return tree.replace(params, leaves)


def constants(fold: Fold, kept: Mapping[str, jax.Array], means: jax.Array) -> jax.Array:
    """Returns the means of the units of an edge that are not kept, and 0 for others; axes as in `Statistics.inputs`."""
    first = means.ndim - len(fold.shape)
    units = {group: (first + fold.site.axes[place], along) for group, (place, along) in fold.site.units.items()}
    return jnp.where(gone(units, kept, means.ndim), means, jnp.zeros((), means.dtype))


def gone(units: Units, kept: Mapping[str, jax.Array], rank: int) -> jax.Array:
    """Returns which places of an array of a rank hold units that are not kept, with length 1 along other axes."""
    removed = jnp.zeros((1,) * rank, bool)
    for group, (axis, along) in units.items():
        if group in kept:
            here = jnp.where(along >= 0, ~kept[group][along], False)
            removed |= here.reshape([-1 if place == axis else 1 for place in range(rank)])
    return removed
