"""The plane through three points of parameter space, and the loss on it, for contour plots.

Garipov et al., *Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs*, 2018; Chao et al., *Directional Pruning
of Deep Neural Networks*, 2020, Fig. 1 and 5.
"""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from sparsejax import linear_algebra, tree
from sparsejax._types import Params
from sparsejax.hessian import Loss, scalar


class Plane(NamedTuple):
    """A plane in parameter space: `origin + x u + y v`, and where the three points that span it lie in it.

    `origin`, `u` and `v` are trees like the parameters, `u` and `v` orthonormal and in float32 or wider; `points` is an
    array (3, 2) with the coordinates of start, middle and end, in the unit of the parameters. A curve through the
    plane has the coordinates `bezier(*points, t)`.

    >>> plane(jnp.zeros(2), jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0])).points.tolist()
    [[0.0, 0.0], [1.0, 2.0], [2.0, 0.0]]
    """

    origin: Params
    u: Params
    v: Params
    points: jax.Array


def plane(start: Params, middle: Params, end: Params) -> Plane:
    """Returns the plane through three points: `u = end - start`, `v = middle - start` made orthogonal to it.

    Args:
      start: a tree of parameters, the origin.
      middle: a tree like `start`, the control point of a curve.
      end: a tree like `start`.

    Returns:
      A `Plane`, whose `u` and `v` have length 1.

    Raises:
      ValueError: the trees differ in structure or shapes, or, where they are concrete, the points lie on one line.

    Source: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, Fig. 1.

    >>> plane(jnp.zeros(2), jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0])).v.tolist()
    [0.0, 1.0]
    """
    tree.check_like(middle, start, "middle")
    tree.check_like(end, start, "end")
    spanned, width, height, size = _span(start, middle, end)
    _check_triangle(width, height, size)
    return spanned


def grid(plane: Plane, points: int = 29, margin: float = 0.2) -> tuple[jax.Array, jax.Array]:
    """Returns the coordinates of a grid on a plane that covers its three points with a margin on every side.

    Args:
      plane: from `plane`.
      points: how many along each axis, >= 2; the authors take 29.
      margin: on each side, as a share of the distance between the outermost points along that axis, >= 0.

    Returns:
      `xs` and `ys`, arrays (points,), in the unit of the parameters.

    Raises:
      ValueError: `points < 2` or `margin < 0`.

    >>> xs, ys = grid(plane(jnp.zeros(2), jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0])), points=3)
    >>> xs.tolist(), ys.tolist()
    ([-0.4, 1.0, 2.4], [-0.4, 1.0, 2.4])
    """
    if points < 2 or not margin >= 0:
        raise ValueError(f"points={points} must be >= 2 and margin={margin} >= 0, to cover all three points")
    low, high = plane.points.min(axis=0), plane.points.max(axis=0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    xs, ys = jnp.linspace(low, high, points, axis=1)
    return xs, ys


def loss_on_plane(loss: Loss, plane: Plane, xs: chex.Array, ys: chex.Array, *batch: chex.ArrayTree) -> jax.Array:
    """Returns the loss at `origin + x u + y v` for every pair of coordinates, one after the other, compiled.

    Args:
      loss: `(params, *batch) -> scalar`, including whatever must be recomputed at every point.
      plane: from `plane`.
      xs: array (m,), coordinates along `u`, as `grid` gives them.
      ys: array (n,), coordinates along `v`.
      batch: further arguments of the loss.

    Returns:
      An array (n, m), of the loss's dtype: row j belongs to `ys[j]`, as `matplotlib.pyplot.contour` expects it.

    Raises:
      ValueError: `xs` or `ys` is not one-dimensional, or the loss is no scalar.

    >>> flat = plane(jnp.zeros(2), jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0]))
    >>> loss_on_plane(lambda w: w[0] + 10 * w[1], flat, jnp.array([0.0, 1.0, 2.0]), jnp.array([0.0, 3.0])).tolist()
    [[0.0, 1.0, 2.0], [30.0, 31.0, 32.0]]
    """
    if jnp.ndim(xs) != 1 or jnp.ndim(ys) != 1:
        raise ValueError(f"xs and ys have shapes {jnp.shape(xs)} and {jnp.shape(ys)}; pass one axis each, not a mesh")
    return _loss_on_plane(loss, plane, jnp.asarray(xs), jnp.asarray(ys), batch)


@jax.jit
def _span(start, middle, end):
    """Returns the plane, the lengths of the triangle's base and height, and the size of its corners."""
    wide = linear_algebra.widen(start, linear_algebra.common_dtype(start, middle, end))
    across = linear_algebra.combine(wide, (1.0, end), (-1.0, start))
    up = linear_algebra.combine(wide, (1.0, middle), (-1.0, start))
    width = linear_algebra.norm(across)
    u = linear_algebra.combine(wide, (1 / width, across))
    x = linear_algebra.dot(up, u)
    up = linear_algebra.combine(wide, (1.0, up), (-x, u))
    height = linear_algebra.norm(up)
    v = linear_algebra.combine(wide, (1 / height, up))
    zero = jnp.zeros_like(x)
    points = jnp.stack([jnp.stack(pair) for pair in ((zero, zero), (x, height), (width, zero))])
    return Plane(start, u, v, points), width, height, sum(map(linear_algebra.norm, (start, middle, end)), start=zero)


def _check_triangle(width: jax.Array, height: jax.Array, size: jax.Array) -> None:
    if isinstance(size, jax.core.Tracer):
        return
    # The differences carry the rounding of the points themselves.
    rounding = 4 * float(jnp.finfo(size.dtype).eps) * float(size)
    if not min(float(width), float(height)) > rounding:
        raise ValueError(
            f"start, middle and end span no plane: end is {float(width):.1e} from start, and middle "
            f"{float(height):.1e} from their line, which may be rounding ({rounding:.1e}); train middle with connect"
        )


@partial(jax.jit, static_argnums=0)
def _loss_on_plane(loss, plane, xs, ys, batch):
    def at(x, y):
        one = jnp.ones((), x.dtype)
        point = linear_algebra.combine(plane.origin, (one, plane.origin), (x, plane.u), (y, plane.v))
        return scalar(loss(point, *batch))

    return jax.lax.map(lambda y: jax.lax.map(lambda x: at(x, y), xs), ys)
