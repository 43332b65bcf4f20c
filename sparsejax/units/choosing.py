"""Which units stay: the best of every group, or of all groups as many as a budget of what they cost allows."""

import math
import numbers
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import groups, quotas, targets
from sparsejax._numbers import as_scalar
from sparsejax.budgets import Budget, check_budget, within
from sparsejax.gates import Gated
from sparsejax.groups import Group
from sparsejax.units.graph import UnitGraph

__all__ = ["affordable", "lowest"]


def affordable(
    graph: UnitGraph, scores: Mapping[str, chex.Array], budget: Budget, floor: float = 0.0
) -> dict[str, jax.Array]:
    """Returns which units stay if the best do, all groups in one competition, as many as a budget allows.

    An entry of a parameter costs something while all its units stay: a kernel gets cheaper with its inputs and with its
    outputs. Of equal scores the earlier group's and the lower index stay. Works inside `jit` and `vmap`.

    Args:
      graph: the units.
      scores: `{group: (size,)}`, floats on one scale, such as `scores.normalized(stats.abs_mrs)`; groups without an
        entry stay whole, and NaN goes.
      budget: of the graph's parameters, such as `budgets.multiply_adds(params, report.multiply_adds(fn, params, *args),
        0.5)`, which the smaller network meets, or `budgets.compression(params, 2.0)`.
      floor: the share of the units of every group that stays, whatever the scores of the others, in [0, 1]; rounded
        up, and one at least.

    Returns:
      `{group: bool (size,)}`, `True` keeps, for `remove`, `shrink` and `UnitGraph.push`.

    Raises:
      ValueError: `scores` is empty, or has another entry than the graph's groups, or one of another size; the floors,
        and what cannot be removed, cost more than the budget; `floor` is out of its range; or names in the budget do
        not fit.

    >>> from sparsejax import units
    >>> params = {"in": jnp.ones((2, 3)), "out": jnp.ones((3, 1))}
    >>> graph = units.trace(lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"], params, jnp.ones((1, 2)))
    >>> affordable(graph, {"in": jnp.array([0.2, 0.1, 0.3])}, Budget({"in": 1, "out": 1}, limit=6))["in"].tolist()
    [True, False, True]
    """
    graph.check(scores, "scores")
    check_budget(budget)
    if not scores:
        raise ValueError(f"scores={scores} has no group, so no unit can go; the graph has {list(graph.groups)}")
    least = {name: _least(groups.lookup(graph.groups, name, "scores"), floor) for name in scores}
    for name, values in scores.items():
        if jnp.shape(values) != (graph.groups[name].size,):
            raise ValueError(
                f"scores[{name!r}] is of shape {jnp.shape(values)}, but the group has {graph.groups[name].size} units; "
                f"pass one score a unit, such as graph.pull(...) or a part of sparsejax.units.statistics"
            )
    _check_reachable(graph, least, budget, floor)
    aux = {name: _protected(jnp.asarray(values), least[name]) for name, values in scores.items()}
    return targets.units(budget, graph.groups).choose(Gated(graph.params, aux))


def lowest(scores: Mapping[str, chex.Array], amount: float) -> dict[str, jax.Array]:
    """Returns which units stay if those of the lowest scores go, `floor(amount n)` of the n of every group.

    Mean Replacement Pruning (submitted to ICLR 2019), Section 4. Other competitions of units are those of weights, on
    the same scores: `select.globally(scores, 0.5)`.

    Args:
      scores: `{group: (size,)}`, such as `stats.abs_mrs`; of equal ones the lower index stays, as in all
        competitions; NaN goes.
      amount: the share that goes, a float in [0, 1), the decimal that it is written as; or how many go of every group,
        an integer.

    Returns:
      `{group: bool (size,)}`, `True` keeps.

    Raises:
      ValueError: `amount` is out of its range, or leaves nothing of a group, or scores are no vector.

    >>> lowest({"hidden": jnp.array([0.3, 0.1, 0.2, 0.4, 0.1])}, 0.2)["hidden"].tolist()
    [True, True, True, True, False]
    """
    counted = isinstance(amount, numbers.Integral)
    if not as_scalar(amount) >= 0 or (amount >= 1 and not counted):
        raise ValueError(
            f"amount={amount!r} is no share of units that can go, which is at least 0 and less than 1, nor a number of "
            f"units, which is an integer"
        )
    kept = {}
    for name, values in scores.items():
        values = jnp.asarray(values)
        if values.ndim != 1:
            raise ValueError(
                f"scores[{name!r}] has shape {values.shape}; it must be (size,), one score a unit: graph.pull(...) "
                f"sums those of weights"
            )
        count = int(amount) if counted else int(quotas.fraction(amount) * values.size)
        if count >= values.size > 0:
            raise ValueError(f"amount={amount} leaves nothing of the {values.size} units of {name!r}; remove fewer")
        kept[name] = _best(values, values.size - count)
    return kept


def _least(group: Group, floor: float) -> int:
    """Returns how many units of a group stay."""
    if not 0 <= as_scalar(floor) <= 1:
        raise ValueError(f"floor={floor} must be in [0, 1], the share of the units of every group that stays")
    return max(1, math.ceil(quotas.fraction(floor) * group.size))


def _check_reachable(graph: UnitGraph, least: Mapping[str, int], budget: Budget, floor: float) -> None:
    """Raises unless the limit suffices for the units that stay at least; a traced one is not looked at."""
    if isinstance(budget.limit, jax.core.Tracer):
        return
    floors = {name: np.arange(graph.groups[name].size) < count for name, count in least.items()}
    with jax.ensure_compile_time_eval():
        possible = bool(jax.jit(lambda kept: within(budget, graph.push(kept), graph.params))(floors))
    if not possible:
        raise ValueError(
            f"budget.limit={budget.limit} cannot be met: floor={floor} of every group, and what cannot be removed, "
            f"cost more; allow more, or lower the floor"
        )


def _protected(scores: jax.Array, least: int) -> jax.Array:
    """Returns scores in which the best units, as many as stay at least, beat all others."""
    return jnp.where(_best(scores, least), jnp.inf, scores)


def _best(scores: jax.Array, count: int) -> jax.Array:
    """Returns which scores are among the best, by number; of equal ones those of the lower index."""
    order = jnp.argsort(-scores)  # stable, and NaN is last
    return jnp.zeros(scores.shape, bool).at[order[:count]].set(True)
