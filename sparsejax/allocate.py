"""One budget for a network, a sparsity for every leaf of it.

An allocation has two parts: the *relative densities* of the leaves, and *what the budget is a share of*. The density
of a leaf is `min(1, max(floor, e r))` for its relative density `r`, and `e` is the one number that meets the budget:
a leaf that would be denser than dense stays dense, and what it cannot take goes to the others in proportion. Solved in
rational arithmetic, from shapes alone.
"""

import bisect
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import jax
import jax.numpy as jnp

from sparsejax import _checks, tree
from sparsejax._numbers import as_scalar
from sparsejax._types import Params, Sparsities, Where
from sparsejax.multiply_adds import MultiplyAdds

__all__ = ["all_parameters", "erdos_renyi", "multiply_adds", "proportional", "prunable_parameters", "uniform"]

Sizes = Mapping[str, int]

Budget = Callable[[Sizes, tuple[str, ...]], tuple[Sizes, int]]
"""`(sizes of all leaves, names of the prunable ones) -> (cost of every leaf when dense, total the budget is of)`."""

Floor = float | Mapping[str, float]
"""The least share that a leaf keeps, in [0, 1]: one number, or `{leaf name: number}` with 0 for the others."""


def prunable_parameters(sizes: Sizes, prunable: tuple[str, ...]) -> tuple[Sizes, int]:
    """Returns the budget of the parameters that may be pruned: `Report.prunable_sparsity` becomes what was asked.

    Args:
      sizes: `{name: entries}` of every leaf.
      prunable: the names of the leaves that may be pruned.

    Returns:
      `(sizes, their sum over the prunable leaves)`.

    >>> prunable_parameters({"kernel": 8, "bias": 4}, ("kernel",))[1]
    8
    """
    return sizes, sum(sizes[name] for name in prunable)


def all_parameters(sizes: Sizes, prunable: tuple[str, ...]) -> tuple[Sizes, int]:
    """Returns the budget of all parameters, those that may not be pruned too: `Report.sparsity` becomes what was asked.

    Compression `c` is the sparsity `1 - 1 / c` of it.

    Args:
      sizes: `{name: entries}` of every leaf.
      prunable: not used.

    Returns:
      `(sizes, their sum)`.

    >>> all_parameters({"kernel": 8, "bias": 4}, ("kernel",))[1]
    12
    """
    del prunable
    return sizes, sum(sizes.values())


def multiply_adds(counts: MultiplyAdds) -> Budget:
    """Returns the budget of a network's multiply-adds, those of no leaf too: `theoretical_speedup` is `1 / (1 - s)`.

    A leaf of density `d` is taken to cost `d` of its dense multiply-adds, as `sparsejax.report` counts them.

    Args:
      counts: `sparsejax.report.multiply_adds(fn, params, *args)` of the same tree.

    Returns:
      `(sizes, prunable) -> (multiply-adds by leaf, their total)`.

    Raises:
      ValueError: `counts` is no such thing; when called, it belongs to another tree.

    >>> multiply_adds(MultiplyAdds({"kernel": 80}, unattributed=20))({"kernel": 8}, ("kernel",))
    ({'kernel': 80}, 100)
    """

    _checks.check_kind("counts", counts, MultiplyAdds, "pass sparsejax.report.multiply_adds(fn, params, *args)")

    def budget(sizes: Sizes, prunable: tuple[str, ...]) -> tuple[Sizes, int]:
        del prunable
        if difference := sorted(counts.by_leaf.keys() ^ sizes.keys()):
            raise ValueError(f"counts belongs to another tree: {difference} are in one only; count both from params")
        return counts.by_leaf, counts.total

    return budget


def uniform(
    params: Params, sparsity: float, where: Where = None, *, of: Budget = prunable_parameters, floor: Floor = 0.0
) -> Sparsities:
    """Returns one sparsity for all leaves that may be pruned.

    It is `sparsity` itself for a budget of the prunable parameters without floors, and higher where leaves that may
    not be pruned, or floors, take more than their share.

    Args:
      params: the tree of parameters; `jax.ShapeDtypeStruct` leaves will do.
      sparsity: the share of the budget to prune, in [0, 1).
      where: which leaves may be pruned, as for `sparsejax.tree.select`.
      of: what the budget is a share of: `prunable_parameters`, `all_parameters`, or `multiply_adds(counts)`.
      floor: the least share of itself that a leaf keeps, in [0, 1]; or `{leaf name: share}`.

    Returns:
      A tree like `params` of Python floats; 0.0 leaves the leaf alone.

    Raises:
      ValueError: as for `proportional`.

    >>> params = {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}
    >>> uniform(params, 0.5), uniform(params, 0.5, of=all_parameters)["kernel"]
    ({'bias': 0.0, 'kernel': 0.5}, 0.625)
    """
    return proportional(params, sparsity, lambda name, shape: 1, where, of=of, floor=floor)


def erdos_renyi(
    params: Params, sparsity: float, where: Where = None, *, of: Budget = prunable_parameters, floor: Floor = 0.0
) -> Sparsities:
    """Returns a sparsity a leaf that is lower for small leaves: the Erdos-Renyi-kernel (ERK) distribution.

    `density = min(1, e sum(shape) / prod(shape))`, with the `e` that meets the budget. Every leaf that is not dense
    keeps in proportion to the sum of its axes: to its neurons rather than to their connections.

    Source: Evci, Gale, Menick, Castro, Elsen, Rigging the Lottery, ICML 2020, section 3 (1), after Mocanu et al.,
    Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity, 2018.

    Args:
      params: the tree of parameters; `jax.ShapeDtypeStruct` leaves will do.
      sparsity: the share of the budget to prune, in [0, 1).
      where: which leaves may be pruned, as for `sparsejax.tree.select`.
      of: what the budget is a share of: `prunable_parameters`, `all_parameters`, or `multiply_adds(counts)`.
      floor: the least share of itself that a leaf keeps, in [0, 1]; or `{leaf name: share}`.

    Returns:
      A tree like `params` of Python floats; 0.0 leaves the leaf alone.

    Raises:
      ValueError: as for `proportional`.

    >>> params = {"a": jnp.ones((2, 4)), "b": jnp.ones((3, 6)), "c": jnp.ones((2, 4, 6))}
    >>> erdos_renyi(params, 0.5)
    {'a': 0.0, 'b': 0.3095, 'c': 0.6548}
    """
    return proportional(
        params, sparsity, lambda name, shape: Fraction(sum(shape), math.prod(shape)), where, of=of, floor=floor
    )


def proportional(
    params: Params,
    sparsity: float,
    relative: Callable[[str, tuple[int, ...]], float | Fraction],
    where: Where = None,
    *,
    of: Budget = prunable_parameters,
    floor: Floor = 0.0,
) -> Sparsities:
    """Returns the sparsities whose densities have given ratios, except where a leaf is dense or at its floor.

    `sum_l cost_l min(1, max(floor_l, e r_l)) = (1 - sparsity) total`, over all leaves, solved for `e`; `r_l` is
    infinite for leaves that may not be pruned. What is chosen by the sparsities is off by the rounding to whole
    weights, at most half a weight (or channel, ...) a leaf.

    Args:
      params: the tree of parameters; `jax.ShapeDtypeStruct` leaves will do.
      sparsity: the share of the budget to prune, in [0, 1).
      relative: `(leaf name, shape) -> r > 0`, in any unit. Of layers stacked along a leading axis, use `shape[1:]`.
      where: which leaves may be pruned, as for `sparsejax.tree.select`.
      of: what the budget is a share of: `prunable_parameters`, `all_parameters`, or `multiply_adds(counts)`.
      floor: the least share of itself that a leaf keeps, in [0, 1]; or `{leaf name: share}`.

    Returns:
      A tree like `params` of Python floats; 0.0 leaves the leaf alone.

    Raises:
      ValueError: the budget cannot be met (the message names the highest sparsity that can), a number is out of its
        range, `floor` names what is not prunable, or `where` selects nothing.

    >>> shapes = {"first": jnp.ones((2, 10)), "last": jnp.ones((10, 2))}
    >>> proportional(shapes, 0.5, lambda name, shape: 3 if name == "last" else 1)
    {'first': 0.75, 'last': 0.25}
    """
    if isinstance(sparsity, jax.core.Tracer) or not 0 <= as_scalar(sparsity) < 1:
        raise ValueError(f"sparsity={sparsity!s:.80} must be a number in [0, 1), known when tracing; for 90% pass 0.9")
    _checks.check_function("of", of, "wrap counts as sparsejax.allocate.multiply_adds(counts)")
    sparsity = sparsity if isinstance(sparsity, Fraction) else float(sparsity)
    prunable = tree.select(params, where)
    leaves = tree.named(params)
    shapes = {name: tuple(map(int, jnp.shape(leaf))) for name, leaf in leaves.items() if _holds_numbers(leaf)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    costs, total = of(sizes, prunable)
    left = (1 - Fraction(sparsity)) * total - (total - sum(costs[name] for name in prunable))
    floors = _floors(floor, prunable)
    least = sum(costs[name] * floors[name] for name in prunable)
    if left < least or not any(costs[name] for name in prunable):
        raise ValueError(_infeasible(sparsity, costs, total, prunable, least))
    ratios = {name: _ratio(name, relative(name, shapes[name])) for name in prunable}
    densities = _fill([(costs[name], ratios[name], floors[name]) for name in prunable], left)
    found = {name: float(1 - density) for name, density in zip(prunable, densities, strict=True)}
    return tree.replace(params, dict.fromkeys(leaves, 0.0) | found)


def _fill(leaves: list[tuple[int, Fraction, Fraction]], left: Fraction) -> list[Fraction]:
    """Returns the densities of leaves `(cost, relative density, floor)` that together cost `left`."""

    def densities(e: Fraction) -> list[Fraction]:
        return [min(Fraction(1), max(floor, e * ratio)) for _, ratio, floor in leaves]

    def spent(e: Fraction) -> Fraction:
        return sum(cost * density for (cost, *_), density in zip(leaves, densities(e), strict=True))

    # What is spent grows with e, and is linear between the points where a leaf leaves its floor or becomes dense.
    corners = sorted({bound / ratio for _, ratio, floor in leaves for bound in (floor, Fraction(1))})
    corner = corners[bisect.bisect_left(corners, left, key=spent)]
    growing = sum(cost * ratio for cost, ratio, floor in leaves if floor < corner * ratio and corner * ratio <= 1)
    return densities(corner - (spent(corner) - left) / growing if growing else corner)


def _holds_numbers(leaf) -> bool:
    return not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.extended)


def _ratio(name: str, ratio: float | Fraction) -> Fraction:
    if not 0 < ratio < math.inf:
        raise ValueError(f"relative({name!r}, ...) is {ratio}; it must be > 0: leave out with `where` what stays dense")
    return Fraction(ratio)


def _floors(floor: Floor, prunable: tuple[str, ...]) -> dict[str, Fraction]:
    named = floor if isinstance(floor, Mapping) else dict.fromkeys(prunable, floor)
    tree.check_names(named, dict.fromkeys(prunable, 0), "floor")
    for name, share in named.items():
        if not 0 <= share <= 1:
            raise ValueError(f"floor={share} of leaf {name!r} must be in [0, 1]: it is the least share that is kept")
    return {name: Fraction(named.get(name, 0.0)) for name in prunable}


def _infeasible(sparsity: float, costs: Sizes, total: int, prunable: tuple[str, ...], least: Fraction) -> str:
    dense = sum(costs[name] for name in prunable)
    best = float((dense - least) / total) if total else 0.0
    return (
        f"sparsity={sparsity} cannot be met: the prunable leaves {list(prunable)} are {dense:,} of the {total:,} that "
        f"the budget is of, and their floors keep {float(least):,.0f}; at most {math.floor(best * 1e6) / 1e6:g} is "
        f"reachable. Ask for less, lower `floor`, or let `where` select more"
    )
