"""Budgets: what the entries of each leaf cost, and what those that stay may cost together, counted exactly.

Everything that takes a mask works inside `jit`. Entries are counted exactly in leaves of fewer than 2^32, costs below
2^64.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import _checks, _integers, tree
from sparsejax import masks as masking
from sparsejax._numbers import as_scalar, meant
from sparsejax._types import Mask, Params
from sparsejax.multiply_adds import MultiplyAdds

__all__ = ["Budget", "compression", "kept", "left", "multiply_adds", "spent", "within"]


class Budget(NamedTuple):
    """A budget: what entries cost, and what those that stay may cost together. Any costs and any limit will do.

    >>> Budget({"kernel": 1}, limit=1389).limit
    1389
    """

    costs: Mapping[str, int]
    """`{leaf name: cost of an entry}`; the entries of other leaves cost nothing."""
    limit: int | jax.Array
    """The most that the entries which stay may cost together: a Python int, or a traced int32 or uint32 scalar."""


def compression(params: Params, ratio: float) -> Budget:
    """Returns the budget of parameters at a compression ratio: all parameters to those that stay.

    `floor(parameters / ratio)` may stay, leaves without gates included. For the ratio of the gated weights alone, as
    papers often count, give `Budget({name: 1 for name in gated.aux}, limit)`.

    Args:
      params: the tree of parameters; only shapes are read.
      ratio: the compression, > 1; 310.0 leaves a 310th.

    Returns:
      A `Budget`.

    Raises:
      ValueError: `ratio` is not > 1, or less than one parameter would stay.

    >>> compression({"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, 2.0)
    Budget(costs={'bias': 1, 'kernel': 1}, limit=8)
    """
    sizes = _sizes(params)
    if not 1 < as_scalar(ratio) <= sum(sizes.values()):
        raise ValueError(
            f"ratio={ratio!s:.80} must be above 1 and at most {sum(sizes.values())}, the number of parameters; it is "
            f"all parameters to those that stay: 10.0 keeps a tenth"
        )
    return Budget(dict.fromkeys(sizes, 1), math.floor(sum(sizes.values()) / meant(ratio)))


def multiply_adds(params: Params, dense: MultiplyAdds, share: float) -> Budget:
    """Returns the budget of multiply-adds: a share of those of the dense network.

    An entry costs the multiply-adds of its leaf divided by the leaf's size: in dense layers and convolutions each is
    used equally often. A convolution thus costs `kh kw Cin Cout Hout Wout` of the channels that stay. Multiply-adds of
    no leaf are always spent.

    Args:
      params: the tree of parameters; only shapes are read.
      dense: `sparsejax.report.multiply_adds(fn, params, *args)`.
      share: of all its multiply-adds, in (0, 1).

    Returns:
      A `Budget`.

    Raises:
      ValueError: `share` is out of range; `dense` is that of another tree, or uses the entries of a leaf unequally; or
        what belongs to no leaf costs more than the share.

    >>> dense = MultiplyAdds({"kernel": 120, "bias": 0})
    >>> multiply_adds({"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, dense, 0.5)
    Budget(costs={'kernel': 10, 'bias': 0}, limit=60)
    """
    if not 0 < as_scalar(share) < 1:
        raise ValueError(f"share={share} must be in (0, 1), the share of the multiply-adds that may stay: 0.5 is half")
    _checks.check_kind("dense", dense, MultiplyAdds, "pass sparsejax.report.multiply_adds(fn, params, *args)")
    sizes = _sizes(params)
    if difference := sorted(dense.by_leaf.keys() ^ sizes.keys()):
        raise ValueError(f"dense belongs to another tree: {difference} are in one only; count it from these params")
    for name, products in dense.by_leaf.items():
        if products and products % sizes[name]:
            raise ValueError(
                f"dense: the {products} multiply-adds of {name!r} are not a multiple of its {sizes[name]} entries, so "
                f"they are not used equally often; give a Budget with costs of your own"
            )
    limit = math.floor(dense.total * meant(share)) - dense.unattributed
    if limit <= 0:
        raise ValueError(f"share={share} leaves nothing: {dense.unattributed} of {dense.total} belong to no leaf")
    return Budget({name: products // max(sizes[name], 1) for name, products in dense.by_leaf.items()}, limit)


def kept(mask: Mask, params: Params) -> dict[str, jax.Array]:
    """Returns how many entries of each leaf a mask keeps, exactly.

    Args:
      mask: see `sparsejax.masks`.
      params: the parameters it belongs to; only shapes are read.

    Returns:
      `{leaf name: uint32 scalar}`, for every leaf.

    Raises:
      ValueError: `mask` is not a mask for `params`, or a leaf has 2^32 entries or more.

    >>> kept({"kernel": jnp.array([[True, False]])}, {"kernel": jnp.ones((3, 2))})["kernel"].item()
    3
    """
    masking.check(mask, params)
    sizes, counts = _sizes(params), {}
    for name, leaf in tree.named(mask).items():
        repeats = sizes[name] // max(jnp.size(leaf), 1)
        counts[name] = jnp.sum(leaf, dtype=jnp.uint32) * jnp.uint32(repeats)
    return counts


def spent(budget: Budget, mask: Mask, params: Params) -> jax.Array:
    """Returns what the entries that a mask keeps cost together, exactly.

    Args:
      budget: costs an entry.
      mask: see `sparsejax.masks`, such as `sparsejax.gates.masks(gated)` or `sparsejax.unit_gates.masks`.
      params: the parameters it belongs to; only shapes are read.

    Returns:
      uint32 (2,): the high and the low 32 bits.

    Raises:
      ValueError: as `kept` does, or `budget` is none of whole numbers >= 0, or names a leaf that is not there.

    >>> mask = {"kernel": jnp.array([True, False, True])}
    >>> spent(Budget({"kernel": 2**31}, 0), mask, {"kernel": jnp.ones(3)}).tolist()
    [1, 0]
    """
    check_budget(budget)
    tree.check_names(budget.costs, params, "budget.costs")
    counts = kept(mask, params)
    parts = [_integers.times(counts[name], cost) for name, cost in budget.costs.items() if cost]
    return functools.reduce(_integers.add, parts, jnp.asarray(_integers.of(0)))


def within(budget: Budget, mask: Mask, params: Params) -> jax.Array:
    """Returns whether what a mask keeps costs no more than the limit.

    Args:
      budget: costs an entry, and the limit.
      mask: see `sparsejax.masks`.
      params: the parameters it belongs to; only shapes are read.

    Returns:
      A bool scalar.

    Raises:
      ValueError: as `spent` does.

    >>> within(Budget({"kernel": 7}, 14), {"kernel": jnp.array([True, False, True])}, {"kernel": jnp.ones(3)}).item()
    True
    """
    check_budget(budget)
    if isinstance(budget.limit, jax.Array):
        limit = _integers.add_small(jnp.asarray(_integers.of(0)), budget.limit.astype(jnp.uint32))
    else:
        limit = _integers.of(budget.limit)
    return _integers.at_most(spent(budget, mask, params), limit)


def left(budget: Budget, mask: Mask, params: Params) -> jax.Array:
    """Returns the share of the dense network's cost that a mask leaves; its inverse is the compression.

    Args:
      budget: costs an entry.
      mask: see `sparsejax.masks`.
      params: the parameters it belongs to; only shapes are read.

    Returns:
      A float32 scalar in [0, 1]; for comparisons use `spent`.

    Raises:
      ValueError: as `spent` does, or nothing costs anything.

    >>> left(Budget({"kernel": 7}, 0), {"kernel": jnp.array([True, False])}, {"kernel": jnp.ones(2)}).item()
    0.5
    """
    check_budget(budget)
    sizes = _sizes(params)
    dense = sum(cost * sizes[name] for name, cost in budget.costs.items() if name in sizes)
    if not dense:
        raise ValueError(f"budget.costs={dict(budget.costs)} makes everything free, so there is no share of it")
    high, low = spent(budget, mask, params).astype(jnp.float32)
    return high * jnp.float32(2**32 / dense) + low * jnp.float32(1 / dense)


def check_budget(budget: Any) -> None:
    """Raises `ValueError` unless a value is a `Budget` of whole numbers; a traced limit is not looked at."""
    _checks.check_kind("budget", budget, Budget, "make one with sparsejax.budgets.compression(params, 10.0), say")
    for name, cost in budget.costs.items():
        _checks.check_integer(f"budget.costs[{name!r}]", cost, 0, "costs are counts, multiply all of them if need be")
    if not isinstance(budget.limit, jax.core.Tracer):
        _checks.check_integer("budget.limit", budget.limit, 0, "it is what may be spent together: pass int(...) of it")


def _sizes(params: Params) -> dict[str, int]:
    sizes = {name: math.prod(jnp.shape(leaf)) for name, leaf in tree.named(params).items()}
    for name, size in sizes.items():
        if size >= 2**32:
            raise ValueError(f"leaf {name!r} has {size} entries; 2^32 or more are not counted exactly: split the leaf")
    return sizes
