"""Operators on arrays: what a weight becomes in the forward pass, and what its gradient is in the backward pass.

    operator          forward                     gradient of the weights    gradient of the second argument
    hard_shrink       w where |w| > bound         g, to every weight         sum of (out - w) / bound * g
    hard_threshold    w where |w| > threshold     g where kept               none
    soft_threshold    sign(w) max(|w| - t, 0)     g where kept               sum of -sign(out) g
    straight_through  w where mask                g, to every weight         none
    gate              w where m > 0               g where kept               g sign(w) |w|^power surrogate(m)
    gate_units        x where kept                g where kept               slope sum of x g

A threshold is a scalar, or an array that broadcasts to the weights (one bound per layer of a scanned stack, say).
Comparisons are made in float32 or wider; the result has the dtype of the weights. Kept weights pass bit for
bit (but for subnormal ones, which XLA may flush), pruned ones are exactly 0, and so is a NaN that meets a threshold.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax._numbers import check_not_negative_if_known
from sparsejax._types import prepare, reduce_to, wide_dtype
from sparsejax.gate_ops import gate, gate_units

__all__ = ["gate", "gate_units", "hard_shrink", "hard_threshold", "soft_threshold", "straight_through"]


def hard_shrink(w: chex.Array, bound: chex.Numeric) -> jax.Array:
    """Returns `w` where `|w| > bound` and 0 elsewhere, with the straight-through gradient.

    Backward, for the gradient `g` of the result: `g` to every weight, pruned or not, and
    `sum((out - w) / bound * g)` to the bound, to which only pruned weights contribute; 0 where `bound == 0`.

    Args:
      w: weights, any shape, a float dtype.
      bound: absolute threshold in the unit of the weights, >= 0; broadcasts to `w`.

    Returns:
      An array of the shape and dtype of `w`.

    Raises:
      ValueError: `w` is not of a float dtype, or `bound` does not broadcast to it, or is a Python number below 0.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 1, 16, 18. The paper keeps
    `|w| == bound`; its authors' code prunes it, and so do we.

    >>> w = jnp.array([0.5, -0.2, 0.1, -1.0])
    >>> hard_shrink(w, 0.2).tolist()
    [0.5, 0.0, 0.0, -1.0]
    >>> jax.grad(lambda b: hard_shrink(w, b).sum())(0.25).item()
    0.4
    """
    check_not_negative_if_known("bound", bound)
    w, bound = prepare(w, bound, "bound")
    return _hard_shrink(w, bound)


def hard_threshold(w: chex.Array, threshold: chex.Numeric) -> jax.Array:
    """Returns `w` where `|w| > threshold` and 0 elsewhere, with the ordinary derivative.

    Pruned weights get no gradient and the threshold gets none at all: `hard_shrink` without its straight-through
    estimator, for the ablation of Fig. 3 and section 3.3.3.

    Args:
      w: weights, any shape, a float dtype.
      threshold: absolute threshold in the unit of the weights, >= 0; broadcasts to `w`.

    Returns:
      An array of the shape and dtype of `w`.

    Raises:
      ValueError: `w` is not of a float dtype, or `threshold` does not broadcast to it, or is a Python number
        below 0.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, section 3.3.3.

    >>> jax.grad(lambda w: hard_threshold(w, 0.2).sum())(jnp.array([0.5, -0.2, 0.1, -1.0])).tolist()
    [1.0, 0.0, 0.0, 1.0]
    """
    check_not_negative_if_known("threshold", threshold)
    w, threshold = prepare(w, threshold, "threshold")
    return jnp.where(_exceeds(w, threshold), w, jnp.zeros_like(w))


def soft_threshold(w: chex.Array, threshold: chex.Numeric) -> jax.Array:
    """Returns `sign(w) max(|w| - threshold, 0) = argmin_x 1/2 (x - w)^2 + threshold |x|`, with its ordinary derivative.

    Args:
      w: weights, any shape, a float dtype.
      threshold: absolute threshold in the unit of the weights; broadcasts to `w`. A negative one pushes weights
        away from zero, as the directional-pruning minimiser needs.

    Returns:
      An array of the shape and dtype of `w`.

    Raises:
      ValueError: `w` is not of a float dtype, or `threshold` does not broadcast to it.

    Source: Chao et al., Directional Pruning of Deep Neural Networks, 2020, the operator S of the gRDA recursion.

    >>> soft_threshold(jnp.array([0.5, -0.25, 0.125, -1.0]), 0.25).tolist()
    [0.25, 0.0, 0.0, -0.75]
    """
    w, threshold = prepare(w, threshold, "threshold")
    dtype = wide_dtype(w, threshold)
    x, t = w.astype(dtype), threshold.astype(dtype)
    # where, not max: at a tie max splits the gradient between its arguments, and it lets a NaN through.
    return jnp.where(jnp.abs(x) > t, x - jnp.sign(x) * t, jnp.zeros_like(x)).astype(w.dtype)


def straight_through(w: chex.Array, mask: chex.Array) -> jax.Array:
    """Returns `w` where `mask` is true and 0 elsewhere; backward, the gradient reaches every weight.

    Args:
      w: weights, any shape, a float dtype.
      mask: bool, broadcasts to `w`; `True` keeps.

    Returns:
      An array of the shape and dtype of `w`.

    Raises:
      ValueError: `mask` is not bool or does not broadcast to `w`, or `w` is not of a float dtype.

    Source: Bengio, Leonard, Courville, Estimating or Propagating Gradients Through Stochastic Neurons, 2013.

    >>> f = lambda w: straight_through(w, jnp.array([True, False])).sum()
    >>> f(jnp.array([2.0, 3.0])).item(), jax.grad(f)(jnp.array([2.0, 3.0])).tolist()
    (2.0, [1.0, 1.0])
    """
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask has dtype {mask.dtype}; a mask is bool, True keeps: pass mask != 0")
    w, mask = prepare(w, mask, "mask")
    return _straight_through(w, mask)


def _exceeds(w: jax.Array, threshold: jax.Array) -> jax.Array:
    dtype = wide_dtype(w, threshold)
    return jnp.abs(w).astype(dtype) > threshold.astype(dtype)


@jax.custom_vjp
def _hard_shrink(w, bound):
    return jnp.where(_exceeds(w, bound), w, jnp.zeros_like(w))


def _hard_shrink_forward(w, bound):
    return _hard_shrink(w, bound), (w, bound)


def _hard_shrink_backward(residuals, g):
    w, bound = residuals
    dtype = wide_dtype(w, bound)
    pruned = jnp.where(_exceeds(w, bound), jnp.zeros_like(w), w).astype(dtype)  # w - out
    b = bound.astype(dtype)
    slope = reduce_to(pruned * g.astype(dtype), b)
    safe = jnp.where(b == 0, jnp.ones_like(b), b)
    return g, jnp.where(b == 0, jnp.zeros_like(b), -slope / safe).astype(bound.dtype)


_hard_shrink.defvjp(_hard_shrink_forward, _hard_shrink_backward)


@jax.custom_vjp
def _straight_through(w, mask):
    return jnp.where(mask, w, jnp.zeros_like(w))


def _straight_through_forward(w, mask):
    return _straight_through(w, mask), mask


def _straight_through_backward(mask, g):
    return g, np.zeros(mask.shape, jax.dtypes.float0)


_straight_through.defvjp(_straight_through_forward, _straight_through_backward)
