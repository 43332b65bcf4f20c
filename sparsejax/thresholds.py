"""The threshold that prunes a wanted share of one array, by its Gaussian quantile or by binary search.

Retsinas et al., *Weight Pruning via Adaptive Sparsity Loss*, 2020, section 3.3. `sparsejax.bounds` offers both under
its own name, and builds on the statistics and checks at the end of this module.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from sparsejax import tree
from sparsejax._numbers import as_scalar
from sparsejax._types import wide_dtype


def gaussian(w: chex.Array, sparsity: chex.Numeric) -> jax.Array:
    """Returns the absolute bound that prunes a share of Gaussian weights: `sigma sqrt(2) erfinv(sparsity)`.

    No gradient flows through `sigma`.

    Args:
      w: weights of one layer, at least two, a float dtype.
      sparsity: share to prune, in [0, 1). May be traced.

    Returns:
      A scalar in the unit of the weights, float32 (or wider, like `w`).

    Raises:
      ValueError: `sparsity` is outside [0, 1), or `w` is empty, holds NaN or is not of a float dtype.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 3.

    >>> gaussian(jnp.array([-1.0, 0.0, 1.0]), 0.85).item()
    1.4395
    """
    check_layer("w", w)
    tree.check_no_nan("w", w)
    check_sparsity(sparsity, below_one=True)
    _, sigma = statistics(w)
    return sigma * relative(sparsity).astype(sigma.dtype)


def bisection(w: chex.Array, sparsity: chex.Numeric, tolerance: float = 1e-3) -> jax.Array:
    """Returns an absolute bound `b` with `| share of |w| < b  -  sparsity | < tolerance`, by binary search.

    The search halves the *bit patterns* of the non-negative floats, which order like the floats themselves: 31 counts
    at most single out the bound for any float32 data, however long its tails (the paper halves `[0, max |w|]`, whose
    resolution an outlier can spoil). It ends once within the tolerance. The result lies midway between the largest
    pruned and the smallest kept magnitude, so `<` and `<=` agree. Where ties make the tolerance unreachable it is the
    nearest share that some bound attains. No gradient.

    Args:
      w: weights of one layer, at least two, a float dtype.
      sparsity: share to prune, in [0, 1]. May be traced.
      tolerance: largest deviation accepted, as a share, > 0.

    Returns:
      A scalar in the unit of the weights, float32 (or wider, like `w`).

    Raises:
      ValueError: `sparsity` is outside [0, 1], `tolerance <= 0`, or `w` is empty, holds NaN or is not of a float dtype.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 2.

    >>> bisection(jnp.array([0.9, -0.05, 0.3, -0.7, 0.25]), 0.4).item()
    0.275
    """
    check_layer("w", w)
    tree.check_no_nan("w", w)
    check_sparsity(sparsity, below_one=False)
    if not as_scalar(tolerance) > 0:
        raise ValueError(f"tolerance={tolerance} must be > 0: it is the share of weights the search may be off by")
    magnitude = jnp.abs(jax.lax.stop_gradient(w)).astype(wide_dtype(w))
    wanted = jnp.asarray(sparsity).astype(magnitude.dtype)
    stop = tolerance - float(jnp.finfo(jnp.float32).eps)  # shares are rounded; the promise is strict
    bits, steps = (jnp.uint64, 63) if magnitude.dtype == jnp.float64 else (jnp.uint32, 31)

    def gap(pattern):
        trial = jax.lax.bitcast_convert_type(pattern, magnitude.dtype)
        return jnp.mean(magnitude < trial, dtype=magnitude.dtype) - wanted

    def searching(state):
        return (jnp.abs(state.error) >= stop) & (state.step < steps)

    def halve(state):
        middle = state.low + (state.high - state.low) // 2
        excess = gap(middle)
        low, high = jnp.where(excess < 0, middle, state.low), jnp.where(excess < 0, state.high, middle)
        closer = jnp.abs(excess) < jnp.abs(state.error)
        best, error = jnp.where(closer, middle, state.best), jnp.where(closer, excess, state.error)
        return _Search(state.step + 1, low, high, best, error)

    low = jnp.zeros((), bits)
    high = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, magnitude.dtype), bits)
    # The bound 0 prunes nothing; it stays the answer only where pruning nothing is near enough.
    found = jax.lax.while_loop(searching, halve, _Search(jnp.int32(0), low, high, low, -wanted))
    return _midway(magnitude, jax.lax.bitcast_convert_type(found.best, magnitude.dtype))


def statistics(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and standard deviation (ddof=1) of a layer, in float32 or wider, constants to autodiff."""
    w = jax.lax.stop_gradient(jnp.asarray(w))
    wide = w.astype(wide_dtype(w))
    return wide.mean(), wide.std(ddof=1)


def relative(sparsity: chex.Numeric) -> jax.Array:
    """Returns `sqrt(2) erfinv(sparsity)`: the bound in units of sigma, in float32 or wider."""
    sparsity = jnp.asarray(sparsity)
    wide = sparsity.astype(wide_dtype(sparsity))
    return math.sqrt(2) * jax.scipy.special.erfinv(wide)


def check_layer(name: str, w: chex.Array) -> None:
    """Raises `ValueError` unless a layer is of a float type and has a standard deviation."""
    tree.check_prunable(name, w, "leave it out")
    if math.prod(jnp.shape(w)) < 2:
        raise ValueError(f"leaf {name!r} has a single entry; a standard deviation needs two: leave it out")


def check_sparsity(sparsity: chex.Numeric, below_one: bool) -> None:
    """Raises `ValueError` unless a concrete sparsity is in [0, 1], or in [0, 1)."""
    if isinstance(sparsity, jax.core.Tracer):
        return
    share = as_scalar(sparsity)
    if not (0 <= share < 1 or (share == 1 and not below_one)):
        interval, reason = ("[0, 1)", "no bound prunes all of a Gaussian") if below_one else ("[0, 1]", "it is a share")
        shown = f"{sparsity!r:.80}" if math.isnan(share) else share
        raise ValueError(f"sparsity={shown} is outside {interval}: {reason}; for 85% pass 0.85")


class _Search(NamedTuple):
    """Bit patterns of the bracket and of the best bound so far, and that bound's excess share."""

    step: jax.Array
    low: jax.Array
    high: jax.Array
    best: jax.Array
    error: jax.Array


def _midway(magnitude: jax.Array, bound: jax.Array) -> jax.Array:
    """Moves a bound to the middle between the largest magnitude below it and the smallest that is not."""
    below = magnitude < bound
    largest = jnp.max(jnp.where(below, magnitude, -jnp.inf))
    smallest = jnp.min(jnp.where(below, jnp.inf, magnitude))
    # All pruned: half as much again as the largest. None pruned: 0.
    beyond = 2 * jnp.maximum(largest, jnp.finfo(bound.dtype).tiny)
    smallest = jnp.where(jnp.isinf(smallest), beyond, smallest)
    return jnp.where(jnp.isinf(largest), jnp.zeros_like(bound), largest + (smallest - largest) / 2)
