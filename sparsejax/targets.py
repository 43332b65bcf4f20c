"""When AutoPrune has pruned enough, and gates that meet the budget exactly.

    budget = budgets.compression(params, 310.0)                  # parameters: a 310th of all there are
    budget = budgets.multiply_adds(params, dense, 0.07)          # 7 per cent of the multiply-adds that were counted
    target = weights(budget)        or        units(budget, groups)

`target.reached(gated)` is true as soon as the gates that are open cost no more than the limit. A step closes many gates
at once, so that by then too many may be closed: `settle` opens the closed gates with the largest auxiliary parameters
again, as many as the limit allows. A count of weights is thus met to the last one; a count that comes in lumps (units,
multiply-adds) is met as nearly from below as a threshold on the auxiliary parameters can. Gates that cost more than the
limit are never closed by force: `settle` leaves a network that has not reached its target as it is, `reached` says so,
and so does `sparsejax.report.check_sparsity`. `sparsejax.transforms.freeze_at` does all this in training.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import _checks, search, tree, unit_gates
from sparsejax import groups as grouping
from sparsejax._types import Mask, Params, wide_dtype
from sparsejax.budgets import Budget, check_budget, within
from sparsejax.gates import Gated, check_gated
from sparsejax.groups import Groups

__all__ = ["Target", "settle", "units", "weights"]

Kept = dict[str, jax.Array]
"""Which gates are open: bool arrays, keyed like the auxiliary parameters."""


class Target(NamedTuple):
    """A place to stop: two functions of a `Gated`, usable inside `jit`.

    >>> target = weights(Budget({"kernel": 1}, limit=1))
    >>> target.reached(Gated({"kernel": jnp.ones(3)}, {"kernel": jnp.array([0.1, -0.1, 0.2])})).item()
    False
    """

    reached: Callable[[Gated], jax.Array]
    """Whether the gates that are open cost no more than the limit: a bool scalar."""
    choose: Callable[[Gated], Kept]
    """Which gates to leave open so that they cost as nearly as can be the limit, and no more."""


def weights(budget: Budget) -> Target:
    """Returns the target of gates of single weights (`sparsejax.gates`).

    Args:
      budget: what entries cost, and the limit.

    Returns:
      A `Target`. Of equal auxiliary parameters the earlier leaf's and the lower index stay.

    Raises:
      ValueError: `budget` is none; from its functions: leaves without gates cost more than the limit, or names do not
        fit.

    >>> gated = Gated({"kernel": jnp.ones(4)}, {"kernel": jnp.array([-0.2, 0.1, -0.1, -0.3])})
    >>> weights(Budget({"kernel": 1}, limit=2)).choose(gated)["kernel"].tolist()
    [False, True, True, False]
    """

    def push(open_gates: Kept, params: Params) -> Mask:
        everything = jax.tree.map(lambda _: jnp.asarray(True), params)
        tree.check_names(open_gates, params, "aux")
        return tree.replace(everything, open_gates)

    return _target(budget, push, protect=lambda _: jnp.asarray(False))


def units(budget: Budget, groups: Groups) -> Target:
    """Returns the target of gates of units (`sparsejax.unit_gates`).

    Args:
      budget: what entries cost, and the limit.
      groups: `{name: group}`, see `sparsejax.groups`.

    Returns:
      A `Target`; every group keeps a unit.

    Raises:
      ValueError: `budget` is none; from its functions: one unit a group costs more than the limit, or names do not fit.

    >>> hidden = {"hidden": grouping.Group(3, (grouping.Member("kernel", 1),))}
    >>> gated = Gated({"kernel": jnp.ones((2, 3))}, {"hidden": jnp.array([-0.2, -0.3, -0.1])})
    >>> units(Budget({"kernel": 1}, limit=5), hidden).choose(gated)["hidden"].tolist()
    [True, False, True]
    """
    return _target(budget, functools.partial(grouping.push, groups), protect=unit_gates.last)


def settle(target: Target, gated: Gated) -> Gated:
    """Returns gates that meet a target exactly if it has been reached, and the same gates if it has not.

    Gates are opened by turning the sign of their auxiliary parameter; see the head of the module for which.

    Args:
      target: from `weights` or `units`.
      gated: weights, and auxiliary parameters.

    Returns:
      A `Gated` with the same weights.

    Raises:
      ValueError: as the target's functions do.

    >>> gated = Gated({"kernel": jnp.ones(4)}, {"kernel": jnp.array([-0.2, 0.1, -0.1, -0.3])})
    >>> settle(weights(Budget({"kernel": 1}, limit=2)), gated).aux["kernel"].tolist()
    [-0.2, 0.1, 0.1, -0.3]
    """
    _checks.check_kind("target", target, Target, "pass sparsejax.targets.weights(budget) or units(budget, groups)")
    check_gated(gated)
    moved = moves(gated, target.choose(gated))
    reached = target.reached(gated)
    return gated._replace(aux={name: jnp.where(reached, m + moved[name], m) for name, m in gated.aux.items()})


def moves(gated: Gated, chosen: Kept) -> dict[str, jax.Array]:
    """Returns what to add to auxiliary parameters to open the chosen gates and close the others, free of rounding."""

    def move(m: jax.Array, stays: jax.Array) -> jax.Array:
        # m - 2 m is -m and m - m is 0, however the sum is compiled; 1e-3 stands for the sign that 0 has not.
        opened = jnp.where(m < 0, -2 * m, jnp.full_like(m, 1e-3))
        return jnp.where(stays == (m > 0), jnp.zeros_like(m), jnp.where(stays, opened, -m))

    return {name: move(m, chosen[name]) for name, m in gated.aux.items()}


def _target(budget: Budget, push: Callable[[Kept, Params], Mask], protect: Callable[[jax.Array], jax.Array]) -> Target:
    """Returns the target of gates that `push` takes to a mask, of which `protect` tells those that never close."""

    check_budget(budget)

    def affordable(open_gates: Kept, aux: dict[str, jax.Array], params: Params) -> jax.Array:
        safe = {name: gates | protect(aux[name]) for name, gates in open_gates.items()}
        return within(budget, push(safe, params), params)

    def reached(gated: Gated) -> jax.Array:
        _check_reachable(budget, gated, affordable)
        return affordable({name: m > 0 for name, m in gated.aux.items()}, gated.aux, gated.weights)

    def choose(gated: Gated) -> Kept:
        _check_reachable(budget, gated, affordable)
        names, leaves = list(gated.aux), list(gated.aux.values())
        dtype, size = wide_dtype(*leaves), sum(m.size for m in leaves)
        scores = [m.astype(dtype) for m in leaves]

        def largest(count: jax.Array) -> Kept:
            best = search.best_of_each(scores, count[None], (0,) * len(scores))
            return dict(zip(names, best, strict=True))

        def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = high - (high - low) // 2
            enough = affordable(largest(middle), gated.aux, gated.weights)
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

        bounds = (jnp.zeros((), jnp.int32), jnp.full((), size, jnp.int32))
        count, _ = jax.lax.fori_loop(0, size.bit_length(), halve, bounds)
        best = largest(count)
        return {name: best[name] | protect(m) for name, m in gated.aux.items()}

    return Target(reached, choose)


def _check_reachable(budget: Budget, gated: Gated, affordable: Callable[..., jax.Array]) -> None:
    """Raises unless the limit suffices when every gate that can be closed is closed; a traced one is not looked at."""
    check_gated(gated)
    if isinstance(budget.limit, jax.core.Tracer):
        return
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), gated.weights)
    with jax.ensure_compile_time_eval():
        aux = {name: np.zeros(m.shape, m.dtype) for name, m in gated.aux.items()}
        closed = {name: np.asarray(False) for name in aux}
        possible = bool(jax.jit(lambda closed, aux: affordable(closed, aux, params))(closed, aux))  # compiled as one
    if not possible:
        raise ValueError(
            f"limit={budget.limit} cannot be reached: what has no gate, and the last unit of every group, cost more; "
            f"gate more leaves, or allow more"
        )
