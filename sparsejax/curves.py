"""Curves through parameter space: is there a path between two solutions along which the loss stays low?

A loss here is any function `(params, *batch) -> scalar`. What must be computed anew at every point belongs inside it:
running statistics of batch normalisation, which at a point between two networks are neither's, say; `evaluate` and
`recompute` being yours,

    loss_along(lambda params, images, labels: evaluate(params, recompute(params, images), labels), start, ...)

Garipov et al., *Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs*, 2018; Chao et al., *Directional Pruning
of Deep Neural Networks*, 2020, Fig. 1, 5 and 11.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import optax

from sparsejax import _checks, linear_algebra, tree
from sparsejax._types import Params
from sparsejax.hessian import Loss, count_batches, scalar


def bezier(start: Params, middle: Params, end: Params, t: chex.Numeric) -> Params:
    """Returns a point on the quadratic Bezier curve: `(1 - t)^2 start + 2 t (1 - t) middle + t^2 end`.

    Args:
      start: the tree of parameters at `t = 0`.
      middle: the control point, a tree like `start`; the curve does not pass through it.
      end: the tree at `t = 1`.
      t: a scalar, in [0, 1] between the ends. May be traced.

    Returns:
      A tree like `start`, same dtypes, combined in float32 or wider.

    Raises:
      ValueError: `middle` or `end` has not the structure or shapes of `start`, or `t` is not a scalar.

    Source: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, Eq. 4.

    >>> bezier(jnp.array([0.0, 0.0]), jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0]), 0.25).tolist()
    [0.5, 0.75]
    """
    if jnp.ndim(t):
        raise ValueError(f"t has shape {jnp.shape(t)}; it is one number: use jax.vmap, or loss_along, for several")
    tree.check_like(middle, start, "middle")
    tree.check_like(end, start, "end")
    return linear_algebra.combine(start, ((1 - t) ** 2, start), (2 * t * (1 - t), middle), (t**2, end))


def midpoint(start: Params, end: Params) -> Params:
    """Returns the middle of the segment, `(start + end) / 2`; with it as the control point a curve is the segment.

    Args:
      start: a tree of parameters.
      end: a tree like `start`.

    Returns:
      A tree like `start`, same dtypes.

    Raises:
      ValueError: `end` has not the structure or shapes of `start`.

    >>> midpoint(jnp.array([0.0, 4.0]), jnp.array([2.0, 0.0])).tolist()
    [1.0, 2.0]
    """
    tree.check_like(end, start, "end")
    return linear_algebra.combine(start, (0.5, start), (0.5, end))


def connect(
    loss: Loss,
    start: Params,
    end: Params,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: chex.PRNGKey,
    *batches: chex.ArrayTree,
) -> Params:
    """Returns the control point of a Bezier curve between two solutions, trained for a low loss along the curve.

    It descends `E_t loss(bezier(start, middle, end, t), *batch)` with one `t ~ U(0, 1)` and one batch a step, the ends
    fixed, from `midpoint(start, end)`. The whole training is one compiled loop.

    Args:
      loss: `(params, *batch) -> scalar`.
      start: the tree of parameters at `t = 0`.
      end: the tree at `t = 1`, like `start`.
      optimizer: any optax transformation; the authors use SGD with rate 0.1.
      steps: how many, >= 1.
      key: a PRNG key, for `t`.
      batches: further arguments of the loss, each with one more, leading axis that counts the batches; step `i` takes
        number `i` modulo their count. None if the loss takes only parameters.

    Returns:
      A tree like `start`, same dtypes.

    Raises:
      ValueError: `end` has not the structure or shapes of `start`, `optimizer` is none, `steps < 1`, the leading axes
        differ, or the loss is no scalar.

    Source: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, Eq. 2.

    >>> valley = lambda w: (w[0] ** 2 + w[1] - 1) ** 2  # low along a parabola
    >>> middle = connect(valley, jnp.array([-1.0, 0.0]), jnp.array([1.0, 0.0]), optax.sgd(0.1), 300, jax.random.key(0))
    >>> bool(valley(bezier(jnp.array([-1.0, 0.0]), middle, jnp.array([1.0, 0.0]), 0.5)) < 0.01)
    True
    """
    _checks.check_optimizer("optimizer", optimizer)
    if steps < 1:
        raise ValueError(f"steps={steps} must be >= 1; the control point before training is midpoint(start, end)")
    linear_algebra.check_float(start)
    if batches:
        count_batches(batches)
    return _connect(loss, optimizer, steps, jax.tree.map(jnp.asarray, start), end, key, batches)


def loss_along(
    loss: Loss, start: Params, middle: Params, end: Params, ts: chex.Array, *batch: chex.ArrayTree
) -> jax.Array:
    """Returns the loss at points of a Bezier curve, one after the other, compiled.

    The straight segment is the curve whose control point is `midpoint(start, end)`.

    Args:
      loss: `(params, *batch) -> scalar`, including whatever must be recomputed at every point.
      start: the tree of parameters at `t = 0`.
      middle: the control point, a tree like `start`.
      end: the tree at `t = 1`.
      ts: array (m,); the authors take 61 points, `jnp.linspace(0, 1, 61)`.
      batch: further arguments of the loss.

    Returns:
      An array (m,), of the loss's dtype.

    Raises:
      ValueError: `ts` is not one-dimensional, a tree has not the structure or shapes of `start`, or the loss is no
        scalar.

    >>> hill = lambda w: 1 - w[0] ** 2
    >>> loss_along(hill, jnp.array([-1.0]), jnp.array([0.0]), jnp.array([1.0]), jnp.array([0.0, 0.5, 1.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    if jnp.ndim(ts) != 1:
        raise ValueError(f"ts has shape {jnp.shape(ts)}; it is a list of points: pass an array with one axis")
    return _loss_along(loss, start, middle, end, jnp.asarray(ts), batch)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _connect(loss, optimizer, steps, start, end, key, batches):
    count = count_batches(batches) if batches else 1

    def step(carry, i):
        middle, state = carry
        t = jax.random.uniform(jax.random.fold_in(key, i))
        batch = jax.tree.map(lambda leaf: leaf[i % count], batches)
        gradient = jax.grad(lambda middle: scalar(loss(bezier(start, middle, end, t), *batch)))(middle)
        updates, state = optimizer.update(gradient, state, middle)
        return (optax.apply_updates(middle, updates), state), None

    middle = midpoint(start, end)
    (middle, _), _ = jax.lax.scan(step, (middle, optimizer.init(middle)), jnp.arange(steps))
    return middle


@partial(jax.jit, static_argnums=0)
def _loss_along(loss, start, middle, end, ts, batch):
    return jax.lax.map(lambda t: scalar(loss(bezier(start, middle, end, t), *batch)), ts)
