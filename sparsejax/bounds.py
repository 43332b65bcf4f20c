"""Bounds of magnitude pruning: found for a wanted sparsity, or learned with the network.

A bound is *relative*: it is in standard deviations of its layer, so that it stays meaningful while the weights move.
`shrink` prunes the weights nearer to their layer's mean than `bound * sigma`. Bounds live in a flat dict
`{leaf name: scalar}`; leaves without an entry are left alone. The variations of the paper are:

    fixed-GA     shrink(params, b), b = init(params, s) held constant
    fixed-BS     shrink(params, search(params, s)), searched at every step
    learned      b = init(params, 0.6 s) trained with the network, under a loss of `sparsejax.losses`
    without STE  shrink(params, b, operator=sparsejax.ops.hard_threshold)

and ours, for weights that are not Gaussian: learned, under the density of what is really `kept`.

Train learned bounds with a lower rate (the authors: a hundredth) and no weight decay, kept in range:

    optax.partition({"weights": weights_tx, "bounds": optax.chain(optax.sgd(lr / 100, 0.9), keep_in_range())}, labels)

Bounds are float32 whatever the dtype of the weights: in bfloat16 a small step would leave them where they are.

Retsinas et al., *Weight Pruning via Adaptive Sparsity Loss*, 2020. Like the authors' code, and unlike the paper's
notation, the bound multiplies sigma everywhere; sigma is taken about the mean with `ddof=1`; weights are centred.
"""

import math
from collections.abc import Iterable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import ops, thresholds, tree
from sparsejax._numbers import check_not_negative_if_known
from sparsejax._types import Bounds, Operator, Params, Where
from sparsejax.thresholds import bisection, gaussian

__all__ = ["bisection", "finalize", "gaussian", "init", "keep_in_range", "kept", "search", "shrink", "sparsities"]


def init(params: Params, sparsity: chex.Numeric, where: Where = None, min_size: int = 1000) -> dict[str, jax.Array]:
    """Returns one relative bound a layer, `sqrt(2) erfinv(sparsity)`, to hold constant or to learn.

    Args:
      params: the tree of parameters; `jax.ShapeDtypeStruct` leaves will do.
      sparsity: share to prune in every layer, in [0, 1). May be traced. Bounds that are to be learned start below
        their target: the authors begin at 0.6 of it.
      where: which leaves, see `sparsejax.tree.select`.
      min_size: leaves with fewer entries stay dense, as in the authors' code.

    Returns:
      `{name: float32 scalar}`, in standard deviations.

    Raises:
      ValueError: no leaf is selected, `sparsity` is outside [0, 1), or a selected leaf is empty, holds NaN, is not of
        a float dtype, or has a single entry.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 3 in units of sigma.

    >>> init({"kernel": jnp.ones((30, 40)), "bias": jnp.ones(40)}, 0.85)["kernel"].item()
    1.4395
    """
    thresholds.check_sparsity(sparsity, below_one=True)
    bound = thresholds.relative(sparsity).astype(jnp.float32)
    return {name: jnp.array(bound) for name in _layers(params, where, min_size)}


def search(
    params: Params,
    sparsity: chex.Numeric,
    where: Where = None,
    min_size: int = 1000,
    center: bool = True,
    tolerance: float = 1e-3,
) -> dict[str, jax.Array]:
    """Returns the relative bounds that prune a share of every layer as it is now: `bisection(w - mean(w)) / sigma`.

    Args:
      params: the tree of parameters.
      sparsity: share to prune in every layer, in [0, 1]. May be traced.
      where: which leaves, see `sparsejax.tree.select`.
      min_size: leaves with fewer entries stay dense.
      center: whether `shrink` will centre the weights.
      tolerance: largest deviation of a layer's share, > 0.

    Returns:
      `{name: scalar}`, in standard deviations; valid for these weights only.

    Raises:
      ValueError: as `init` and `bisection` do.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 2, "fixed-BS".

    >>> params = {"kernel": jnp.arange(1200.0).reshape(30, 40)}
    >>> jnp.mean(shrink(params, search(params, 0.75))["kernel"] == 0).item()
    0.75
    """

    def bound(w: jax.Array) -> jax.Array:
        mean, sigma = thresholds.statistics(w)
        centred = w - mean.astype(w.dtype) if center else w
        found = bisection(centred, sparsity, tolerance)
        return found / jnp.where(sigma == 0, jnp.ones_like(sigma), sigma)

    leaves = tree.named(params)
    return {name: bound(leaves[name]) for name in _layers(params, where, min_size)}


def shrink(params: Params, bounds: Bounds, center: bool = True, operator: Operator = ops.hard_shrink) -> Params:
    """Returns the pruned parameters that the network runs with; differentiable in both arguments.

    `operator(w - mean(w), b sigma)` for every leaf with a bound. With `hard_shrink` the gradient reaches every weight
    unchanged and the bound gets `sum((out - w) / b * g)`; none flows through mean or sigma.

    Args:
      params: the tree of parameters that is trained; it stays dense.
      bounds: `{name: b}`, relative bounds; leaves without an entry are passed on as they are.
      center: whether to subtract the mean of each leaf, as the authors' code does. Say the same to `finalize`.
      operator: one of `sparsejax.ops`: `hard_shrink`, `hard_threshold` (no straight-through), `soft_threshold`.

    Returns:
      A tree like `params`, same dtypes.

    Raises:
      ValueError: a bound's name is not in `params`, it is a Python number below 0, or its leaf is not of a float dtype
        or has fewer than two entries.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 14-18.

    >>> params, bounds = {"kernel": jnp.array([[0.3, -0.1, 0.05, -0.6]])}, {"kernel": jnp.float32(1.0)}
    >>> shrink(params, bounds)["kernel"].tolist()
    [[0.3875, 0.0, 0.0, -0.5125]]
    """
    tree.check_names(bounds, params, "bounds")
    leaves = tree.named(params)
    return tree.replace(params, {name: _shrink(name, leaves[name], b, center, operator) for name, b in bounds.items()})


def finalize(params: Params, bounds: Bounds, center: bool = True, operator: Operator = ops.hard_shrink) -> Params:
    """Returns the parameters with real zeros, for export: what `shrink` computes, checked and without a gradient.

    Do it once, at the end: the weights that are left have another mean and sigma, so shrinking them again prunes more.

    Args:
      params: the tree of parameters that was trained.
      bounds: `{name: b}`, relative bounds.
      center: as in training.
      operator: as in training.

    Returns:
      A tree like `params`, same dtypes.

    Raises:
      ValueError: as `shrink` does; or a leaf or a bound holds NaN, or a bound is negative.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, section 3.4.

    >>> params, bounds = {"kernel": jnp.array([[0.3, -0.1, 0.05, -0.6]])}, {"kernel": jnp.float32(1.0)}
    >>> (finalize(params, bounds)["kernel"] == 0).tolist()
    [[False, True, True, False]]
    """
    leaves = tree.named(params)
    for name, bound in bounds.items():
        if name in leaves:
            tree.check_no_nan(name, leaves[name])
        if not isinstance(bound, jax.core.Tracer) and not (np.asarray(bound) >= 0).all():
            raise ValueError(
                f"the bound of {name!r} is {bound}; a bound is >= 0 and not NaN. Train it with keep_in_range()"
            )
    return jax.lax.stop_gradient(shrink(params, bounds, center, operator))


def sparsities(bounds: Bounds) -> dict[str, jax.Array]:
    """Returns the share of zeros that each bound leaves in Gaussian weights: `erf(b / sqrt(2))`.

    This is the model the loss works with; count the zeros of `finalize` with `sparsejax.report` for the truth.

    Args:
      bounds: `{name: b}`, relative bounds.

    Returns:
      `{name: share}`, of the bounds' dtypes.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 5.

    >>> sparsities({"kernel": jnp.float32(1.0)})["kernel"].item()
    0.6827
    """
    return {name: jax.scipy.special.erf(jnp.asarray(b) / math.sqrt(2)) for name, b in bounds.items()}


def kept(params: Params, bounds: Bounds, center: bool = True) -> dict[str, jax.Array]:
    """Returns the share of weights that each bound really keeps, by counting.

    Where weights are not Gaussian it differs from `1 - erf(b / sqrt(2))`; given to `sparsejax.losses.density` it makes
    a budget hold for the weights as they are.

    Args:
      params: the tree of parameters that is trained.
      bounds: `{name: b}`, relative bounds.
      center: as in `shrink`.

    Returns:
      `{name: share}`, float32, without a gradient.

    Raises:
      ValueError: as `shrink` does.

    Source: ours; the paper's loss is about the model's share only.

    >>> kept({"kernel": jnp.array([[0.3, -0.1, 0.05, -0.6]])}, {"kernel": jnp.float32(1.0)})["kernel"].item()
    0.5
    """
    pruned = tree.named(jax.lax.stop_gradient(shrink(params, bounds, center)))
    return {name: jnp.mean(pruned[name] != 0, dtype=jnp.float32) for name in bounds}


def keep_in_range(low: float = 1e-3, high: float = 5.0) -> optax.GradientTransformation:
    """Returns the optax transformation that keeps parameters in `[low, high]`: `clip(p + u, low, high) - p`.

    The last of a chain: whatever follows it could leave the range again. Updates that stay in range pass bit for bit.

    Args:
      low: smallest value allowed; above 0, because the gradient of a bound is divided by the bound.
      high: largest value allowed, > low; five standard deviations prune all but 6 in 10 million Gaussian weights.

    Returns:
      A stateless transformation whose `update` needs `params`.

    Raises:
      ValueError: not `low < high`; or, from `update`, `params` is None.

    Source: the clamp of the authors' code for Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, which
    acts in the forward pass; as a projection it leaves loss and forward pass in agreement.

    >>> tx = keep_in_range()
    >>> updates, _ = tx.update({"kernel": jnp.float32(-3.0)}, tx.init(None), {"kernel": jnp.float32(2.0)})
    >>> optax.apply_updates({"kernel": jnp.float32(2.0)}, updates)["kernel"].item()
    0.001
    """
    if not low < high:
        raise ValueError(f"low={low} must be below high={high}, or no value would be in range")

    def inside(u: jax.Array, p: jax.Array) -> jax.Array:
        target = p + u
        clipped = jnp.clip(target, low, high) - p
        # p + (c - p) may round to the wrong side of c; one step towards the inside mends it.
        clipped = jnp.where(p + clipped > high, jnp.nextafter(clipped, jnp.full_like(u, -jnp.inf)), clipped)
        clipped = jnp.where(p + clipped < low, jnp.nextafter(clipped, jnp.full_like(u, jnp.inf)), clipped)
        return jnp.where((target < low) | (target > high), clipped, u)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params=None, but keep_in_range needs them: call tx.update(grads, state, params)")
        return jax.tree.map(inside, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _layers(params: Params, where: Where, min_size: int) -> Iterable[str]:
    """Returns the names of the selected leaves that are large enough, checked."""
    leaves = tree.named(params)
    selected = tree.select(params, where)
    names = [name for name in selected if math.prod(jnp.shape(leaves[name])) >= min_size]
    if not names:
        sizes = {name: math.prod(jnp.shape(leaves[name])) for name in selected}
        raise ValueError(f"min_size={min_size} leaves no layer to prune; the selected leaves have {sizes} entries")
    for name in names:
        thresholds.check_layer(name, leaves[name])
        tree.check_no_nan(name, leaves[name])
    return names


def _shrink(name: str, w: chex.Array, bound: chex.Numeric, center: bool, operator: Operator) -> jax.Array:
    thresholds.check_layer(name, w)
    check_not_negative_if_known(f"bounds[{name!r}]", bound)
    w = jnp.asarray(w)
    mean, sigma = thresholds.statistics(w)
    centred = w - mean.astype(w.dtype) if center else w
    return operator(centred, jnp.asarray(bound).astype(sigma.dtype) * sigma)
