"""Units removed from parameters of the same shapes: by zeros, or by their mean, which the next layers take over."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from sparsejax import masks, quotas, tree
from sparsejax._types import Params
from sparsejax.units.folding import Fold, contribution, folds, place, unread
from sparsejax.units.graph import UnitGraph
from sparsejax.units.program import Value
from sparsejax.units.replay import run
from sparsejax.units.resizing import Plan
from sparsejax.units.saliencies import Statistics

__all__ = ["lowest", "remove", "unfoldable"]


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
    2019, Eq. 4), or subtracted from the running mean of the batch norm behind it. This is exact for dense layers and
    VALID convolutions; with SAME padding it is the mean over positions. A batch norm in training mode subtracts the
    batch's mean, so there a constant has no effect, and no place: trace, measure and fold in evaluation mode.

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
            _check_foldable(graph, kept)
        found = {fold.name for fold in _used(graph, kept)}
        if missing := sorted(found - stats.inputs.keys()):
            raise ValueError(
                f"stats knows nothing of what {missing} read; take statistics with a loss that runs the traced function"
            )
        inputs = {name: stats.inputs[name] for name in found}
        params = _folded(graph, params, {name: jnp.asarray(alive) for name, alive in kept.items()}, inputs)
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
    for fold in folds(graph):
        if isinstance(fold.sink, str):
            for group in fold.site.units:
                reasons.setdefault(group, []).append(f"{fold.name}: {fold.sink}")
    for group, reason in unread(graph).items():
        if group in graph.groups:
            reasons.setdefault(group, []).append(reason)
    return {group: tuple(found) for group, found in reasons.items()}


def lowest(scores: Mapping[str, chex.Array], fraction: chex.Numeric) -> dict[str, jax.Array]:
    """Returns which units stay if those of the lowest scores go, `floor(fraction n)` of the n of every group.

    Mean Replacement Pruning (submitted to ICLR 2019), Section 4. Other competitions of units are those of weights, on
    the same scores: `select.globally(scores, 0.5)`.

    Args:
      scores: `{group: (size,)}`, such as `stats.abs_mrs`; of equal ones the lower index stays, as in all
        competitions; NaN goes.
      fraction: the share that goes, in [0, 1), the decimal that it is written as.

    Returns:
      `{group: bool (size,)}`, `True` keeps.

    Raises:
      ValueError: `fraction` is out of its range.

    >>> lowest({"hidden": jnp.array([0.3, 0.1, 0.2, 0.4, 0.1])}, 0.2)["hidden"].tolist()
    [True, True, True, True, False]
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction={fraction} is no share of units that can go; it is at least 0 and less than 1")
    kept = {}
    for name, values in scores.items():
        count = int(quotas.fraction(fraction) * values.size)
        order = jnp.argsort(-values)  # stable, and NaN is last
        kept[name] = jnp.zeros(values.shape, bool).at[order].set(jnp.arange(values.size) < values.size - count)
    return kept


def _check_foldable(graph: UnitGraph, kept: Mapping[str, chex.Array]) -> None:
    lost = {group: reasons for group, reasons in unfoldable(graph).items() if group in kept}
    if lost:
        raise ValueError(
            f"the means of units of {list(lost)} have no parameter to go to: {lost}; leave these groups out of kept, "
            f"give their readers a bias, or lose the means there with unfolded='drop'"
        )


def _used(graph: UnitGraph, kept: Mapping[str, chex.Array]) -> list[Fold]:
    """Returns the edges whose constants are folded."""
    return [
        fold for fold in folds(graph) if not isinstance(fold.sink, str) and not fold.site.units.keys().isdisjoint(kept)
    ]


@partial(jax.jit, static_argnums=0)
def _folded(graph: UnitGraph, params: Params, kept: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> Params:
    """Returns the parameters that have taken the constants of units that are not kept."""
    used = _used(graph, kept)
    weights = _weights(graph, params, used)
    leaves = tree.named(params)
    for fold in used:
        site = fold.site
        removed = jnp.zeros(site.shape, bool)
        for group, (axis, units) in site.units.items():
            if group in kept:
                gone = jnp.where(units >= 0, ~kept[group][units], False)
                removed |= gone.reshape([-1 if place == axis else 1 for place in range(len(site.shape))])
        constants = jnp.where(removed, inputs[fold.name], jnp.zeros((), inputs[fold.name].dtype))
        constant = contribution(fold, constants, weights[fold.name])
        leaves[fold.sink.leaf] = place(fold, constant, leaves[fold.sink.leaf])
    return tree.replace(params, leaves)


def _weights(graph: UnitGraph, params: Params, used: list[Fold]) -> dict[str, jax.Array]:
    """Returns the other operand of every edge; XLA computes nothing of the rest."""
    found: dict[str, jax.Array] = {}

    def watch(fold: Fold):
        def probe(operands: list[Any]) -> list[Any]:
            found[fold.name] = operands[1 - fold.edge.data]
            return operands

        return probe

    body = graph.program.body
    leaves = jax.tree.leaves(params)
    arrays = [jnp.asarray(x) for x in leaves] + [_zeros(value) for value in body.inputs[len(leaves) :]]
    run(body, arrays, Plan({}), {fold.edge.equation: watch(fold) for fold in used})
    return found


def _zeros(value: Value) -> jax.Array:
    return jax.lax.full(value.shape, 0, value.dtype)
