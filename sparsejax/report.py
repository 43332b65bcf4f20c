"""What is left of a network: exact counts of a tree of parameters, and a check that it is as sparse as it should be."""

import math
import operator
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import tree
from sparsejax._checks import check_integer, check_kind
from sparsejax._numbers import meant
from sparsejax._types import Params, Sparsities, Where
from sparsejax.budgets import Budget, check_budget
from sparsejax.counts import Leaf, Report
from sparsejax.multiply_adds import MultiplyAdds, multiply_adds

__all__ = ["Leaf", "MultiplyAdds", "Report", "check_sparsity", "count", "dense_equivalent_width", "multiply_adds"]

_TOGETHER = "the prunable leaves"


def count(
    params: Params,
    where: Where = None,
    multiply_adds: MultiplyAdds | None = None,
    asked: float | Sparsities | None = None,
    budget: Budget | None = None,
) -> Report:
    """Counts the parameters of a tree, exactly.

    Pass `variables["params"]`: statistics and counters in the tree would count as parameters, if not as prunable ones.

    Args:
      params: the tree; arrays of JAX (sharded or not), of NumPy, or Python numbers.
      where: which leaves are prunable, as for `sparsejax.tree.select`.
      multiply_adds: `multiply_adds(fn, params, *args)` of the same tree, for the costs.
      asked: what was asked, to stand beside what was reached: a tree of sparsities, as from `sparsejax.allocate`; or
        the share of the prunable leaves together, where what each of them has is left to a competition of all.
      budget: what the non-zeros may cost together, to stand beside what they do.

    Returns:
      A `Report`.

    Raises:
      ValueError: a leaf holds a NaN, or has no value (inside `jit`, or a `jax.ShapeDtypeStruct`); `where` selects
        nothing; `multiply_adds`, `asked` or `budget` is that of another tree; something is asked of a leaf that
        `where` does not select, or a share is not in [0, 1].

    >>> report = count({"kernel": jnp.eye(4), "bias": jnp.ones(4)}, asked={"kernel": 0.8, "bias": 0.0})
    >>> report.prunable_sparsity, report.prunable_asked, report.compression
    (0.75, 0.8, 2.5)
    """
    leaves = tree.named(params)
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
            raise ValueError(f"leaf {name!r} has no value to count, it is {leaf}; call this outside jit, grad and vmap")
    if multiply_adds is not None:
        way_out = "pass sparsejax.report.multiply_adds(fn, params, *args)"
        check_kind("multiply_adds", multiply_adds, MultiplyAdds, way_out)
    if multiply_adds is not None and (difference := sorted(multiply_adds.by_leaf.keys() ^ leaves.keys())):
        raise ValueError(f"multiply_adds belongs to another tree: {difference} are in one only; count both from params")
    prunable, nonzeros = tree.select(params, where), _count_nonzeros(leaves)
    shares, together = _wanted(asked, params, prunable)
    limit, spent = (None, None) if budget is None else _balance(budget, params, nonzeros)
    rows = []
    for name, leaf in leaves.items():
        dtype = str(getattr(leaf, "dtype", jnp.result_type(leaf)))
        cost = None if multiply_adds is None else multiply_adds.by_leaf[name]
        numbers = jnp.size(leaf), nonzeros.get(name), name in prunable, cost, shares.get(name)
        rows.append(Leaf(name, jnp.shape(leaf), dtype, *numbers))
    costs = (None, ()) if multiply_adds is None else (multiply_adds.unattributed, multiply_adds.notes)
    return Report(tuple(rows), *costs, together, limit, spent)


def check_sparsity(
    params: Params, expected: float | Mapping[str, float], tolerance: float = 0.001, where: Where = None
) -> Report:
    """Returns the report of a tree that is as sparse as it should be; raises if it is not.

    `|zeros / size - expected| <= tolerance`, over all prunable leaves together or a leaf at a time. The default is a
    tenth of a percentage point: what rounding to whole weights needs in a leaf of 500, and what `bounds.bisection`
    leaves. Give a larger one where the method is not exact (whole channels, learned thresholds), with care for high
    sparsities: at 0.99 a tolerance of 0.005 lets half as many weights again pass.

    Args:
      params: the tree, as for `count`.
      expected: the share of zeros among the prunable parameters, in [0, 1]; or `{leaf name: share}`, which checks the
        leaves it names, prunable or not, and no others.
      tolerance: the largest difference allowed, in [0, 1].
      where: which leaves are prunable, as for `sparsejax.tree.select`.

    Returns:
      The `Report`.

    Raises:
      ValueError: the sparsity is not the expected one (the message holds the table); `expected` or `tolerance` is not
        in its range, or `expected` names no leaf or what is not one; or as `count` does.

    >>> check_sparsity({"kernel": jnp.eye(4)}, 0.75).nonzeros
    4
    """
    tolerance = _share("tolerance", tolerance)
    shares = expected if isinstance(expected, Mapping) else {_TOGETHER: expected}
    if not shares:
        raise ValueError("expected={} names no leaf, so nothing is checked; give a number or {leaf name: number}")
    shares = {name: _share(f"expected (for {name})", share) for name, share in shares.items()}
    report = count(params, where)
    measured = {leaf.name: leaf.sparsity for leaf in report.leaves if leaf.sparsity is not None}
    measured = measured if isinstance(expected, Mapping) else {_TOGETHER: report.prunable_sparsity}
    tree.check_names(shares, measured, "expected")
    # A difference of two floats may be off in its last digit, which is no reason to fail.
    wrong = [name for name, share in shares.items() if abs(measured[name] - share) > tolerance + 1e-12]
    if wrong:
        lines = [f"  {name}: measured {measured[name]:.6g}, expected {shares[name]:.6g}" for name in wrong]
        raise ValueError(
            "\n".join([f"the sparsity is not within {tolerance:g} of the expected one", *lines, str(report)])
            + "\nThe usual reasons: an optimizer step after the pruning (momentum alone moves zeros); an "
            "average (EMA) of the weights; soft or masked weights that were not finalised; another `where`"
        )
    return report


def dense_equivalent_width(width: int, kept: float) -> int:
    """Returns the width that a dense layer has if scaling both its sides leaves it a share of its parameters.

    `max(1, floor(sqrt(kept) * width))`, in exact arithmetic: 0.49 of 100 is 70.

    The input of the first layer and the classes of the last keep their widths.
    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 12.

    Args:
      width: channels or neurons of the layer, at least 1.
      kept: the share of the parameters that is left, in (0, 1].

    Returns:
      The number of channels or neurons.

    Raises:
      ValueError: `width` or `kept` is out of range.

    >>> [dense_equivalent_width(width, 0.15) for width in (16, 128, 256, 512)]
    [6, 49, 99, 198]
    """
    share = meant(_share("kept", kept))
    if kept == 0 or width < 1:
        raise ValueError(f"kept={kept} must be in (0, 1] and width={width} at least 1: nothing is left to be a layer")
    check_integer("width", width, 1, "it counts channels or neurons")
    return max(1, math.isqrt(share.numerator * operator.index(width) ** 2 // share.denominator))


def _wanted(asked: float | Sparsities | None, params: Params, prunable: tuple[str, ...]) -> tuple[dict, float | None]:
    """Returns the share that was asked of each leaf, where that is known, and of the prunable leaves together."""
    if asked is None:
        return {}, None
    if jax.tree.structure(asked) == jax.tree.structure(0.0):
        return {}, _share("asked", asked)
    tree.check_structure(asked, params, "asked")
    shares = {name: _share(f"asked (for {name!r})", share) for name, share in tree.named(asked).items()}
    if others := [name for name, share in shares.items() if share and name not in prunable]:
        raise ValueError(f"asked prunes {others}, which are not prunable here; let `where` select them too")
    sizes = {name: jnp.size(leaf) for name, leaf in tree.named(params).items()}
    zeros = sum(meant(shares[name]) * sizes[name] for name in prunable)
    return shares, float(zeros / sum(sizes[name] for name in prunable))


def _balance(budget: Budget, params: Params, nonzeros: Mapping[str, int]) -> tuple[int, int]:
    """Returns what may be spent, and what the non-zeros cost."""
    check_budget(budget)
    tree.check_names(budget.costs, params, "budget.costs")
    return int(budget.limit), sum(cost * nonzeros.get(name, 0) for name, cost in budget.costs.items())


def _count_nonzeros(leaves: Mapping[str, Any]) -> dict[str, int]:
    counts: dict[str, Any] = {}
    on_devices: dict[frozenset, dict[str, jax.Array]] = defaultdict(dict)
    for name, leaf in leaves.items():
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.extended):
            continue
        if isinstance(leaf, jax.Array):
            on_devices[frozenset(leaf.sharding.device_set)][name] = leaf
        else:  # NumPy counts where the array lies, and JAX would round float64
            values = np.asarray(leaf)
            counts[name] = np.count_nonzero(values), np.any(values != values)
    for group in on_devices.values():  # one compiled call takes the arrays of one set of devices
        counts |= jax.device_get(_count_arrays(group))
    for name, (_, nan) in counts.items():
        if nan:
            tree.check_no_nan(name, leaves[name])
    return {name: int(np.sum(nonzeros, dtype=np.int64)) for name, (nonzeros, _) in counts.items()}


@jax.jit
def _count_arrays(arrays: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {name: (_partial_counts(array), jnp.any(array != array)) for name, array in arrays.items()}


def _partial_counts(array: jax.Array) -> jax.Array:
    # int32 holds the count of fewer than 2**31 entries, so as many axes are summed here; the host adds up the others.
    axes, entries = [], 1
    for axis in reversed(range(array.ndim)):
        if entries * array.shape[axis] < 2**31:
            entries *= array.shape[axis]
            axes.append(axis)
    return jnp.sum(_is_nonzero(array), axis=tuple(axes), dtype=jnp.int32)


def _is_nonzero(array: jax.Array) -> jax.Array:
    if not jnp.issubdtype(array.dtype, jnp.floating) or jnp.finfo(array.dtype).bits <= 8:
        return array != jnp.zeros((), array.dtype)
    # XLA takes subnormal floats for zero where the device does. The bits do not, once the sign is shifted out.
    bits = jax.lax.bitcast_convert_type(array, f"uint{jnp.finfo(array.dtype).bits}")
    return bits << 1 != 0


def _share(argument: str, value: float) -> float:
    try:
        share = math.nan if isinstance(value, str) else float(value)
    except TypeError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"{argument} must be a number in [0, 1], not {value!r}; 0.9 stands for 90 per cent")
    return share
