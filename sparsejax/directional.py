"""Directional pruning made checkable: which weights can go without leaving the flat valley around a solution?

`P0` projects onto the null space of the Hessian at trained weights `w`, the flat directions. The scores
`s = sign(w) * P0 sign(w)` say how much of pruning each weight is flat, and directional pruning solves

    argmin_x  1/2 |x - w|^2 + lam sum_j s_j |x_j|,

whose path gRDA follows for small learning rates, with `lam = c gamma^(1/2) (n gamma)^mu` after n steps. `P0` takes the
whole spectrum, so scores are for small problems; for networks, `top_eigenspace` finds the steepest directions and
`projection_share` how much of a move lies in them. Curves and planes tell whether two solutions share a valley.

Subspaces are orthonormal columns: a tree like the parameters whose leaves have one more, *last* axis of size k, which
for parameters that are a bare array (n,) is the ordinary matrix (n, k). One column is
`jax.tree.map(lambda v: v[..., i], vectors)`.

Chao et al., *Directional Pruning of Deep Neural Networks*, NeurIPS 2020.
"""

import math

import chex
import jax
import jax.numpy as jnp

from sparsejax import linear_algebra, ops, tree
from sparsejax._numbers import as_scalar
from sparsejax._types import Params, Scores
from sparsejax.curves import bezier, connect, loss_along, midpoint
from sparsejax.hessian import hessian_vector_product, over_batches, top_eigenspace
from sparsejax.planes import Plane, grid, loss_on_plane, plane

__all__ = [
    "Plane",
    "bezier",
    "connect",
    "grid",
    "hessian_vector_product",
    "loss_along",
    "loss_on_plane",
    "midpoint",
    "minimiser",
    "norm_ratio",
    "over_batches",
    "plane",
    "projection_share",
    "scores",
    "top_eigenspace",
]


def scores(w: Params, basis: Params) -> Scores:
    """Returns the score of every weight, `s = sign(w) * P0 sign(w)` with `P0 = I - V V^T`.

    Their sum is `|P0 sign(w)|^2 >= 0`. Moving along `-sign(w) * s`, where no weight changes sign, stays in the flat
    space; a weight with a negative score moves away from zero. A weight of 0 has the score 0.

    Args:
      w: the trained weights, an array or a tree of them, float dtypes.
      basis: `V`, orthonormal columns that span the steep (non-null) space of the Hessian, as `top_eigenspace` gives
        them; (n, k) for a bare array (n,), and k may be 0. Checked to be orthonormal unless traced.

    Returns:
      A tree like `w`, same dtypes, computed in float32 or wider.

    Raises:
      ValueError: `basis` has not the structure or shapes, or is not orthonormal; a leaf of `w` is empty, holds NaN or
        is not of a float dtype.

    Source: Chao et al., Directional Pruning of Deep Neural Networks, 2020, the definition of the score.

    >>> scores(jnp.array([1.5, -0.4, 0.7]), jnp.array([[1.0], [2.0], [2.0]]) / 3).tolist()
    [0.8889, 1.2222, 0.7778]
    """
    linear_algebra.check_float(w)
    linear_algebra.check_orthonormal(basis, w, "basis")
    dtype = linear_algebra.common_dtype(w, basis)
    signs = jax.tree.map(jnp.sign, linear_algebra.widen(w, dtype))
    steep = linear_algebra.expand(basis, linear_algebra.project(basis, signs))
    return linear_algebra.cast_like(jax.tree.map(lambda sign, v: sign * (sign - v), signs, steep), w)


def minimiser(w: Params, scores: Scores, lam: chex.Numeric) -> Params:
    """Returns the weights after directional pruning, `argmin_x 1/2 |x - w|^2 + lam sum_j s_j |x_j|`.

    `sign(w) max(|w| - lam s, 0)`, for every sign of `s`: a weight with `s > 0` shrinks and is exactly 0 once
    `lam >= |w| / s`; one with `s = 0` stays; one with `s < 0`, whose penalty is concave, moves away from zero. For
    `w = 0` and `s < 0` both `lam |s|` and its negative are minimisers, and the positive one is returned.

    Args:
      w: the trained weights, an array or a tree of them, float dtypes.
      scores: `s`, like `w`, from `scores` or any other.
      lam: a scalar >= 0; the larger, the sparser. May be traced. gRDA's threshold, for its path.

    Returns:
      A tree like `w`, same dtypes, thresholded in float32 or wider.

    Raises:
      ValueError: `scores` has not the structure or shapes of `w`, a leaf of either is empty, holds NaN or is not of a
        float dtype, or `lam` is negative, NaN or not a scalar.

    Source: Chao et al., Directional Pruning of Deep Neural Networks, 2020, the definition of directional pruning.

    >>> w, s = jnp.array([1.0, -0.5, 0.2, -0.1, 0.05]), jnp.array([0.5, 0.8, -0.3, 0.0, 0.5])
    >>> minimiser(w, s, 0.4).tolist()
    [0.8, -0.18, 0.32, -0.1, 0.0]
    """
    tree.check_like(scores, w, "scores")
    linear_algebra.check_float(w)
    linear_algebra.check_float(scores)
    if jnp.ndim(lam) or not (isinstance(lam, jax.core.Tracer) or as_scalar(lam) >= 0):
        raise ValueError(f"lam={lam} must be one number >= 0: it weighs the penalty, and a negative one undoes pruning")

    def prune(x: chex.Array, s: chex.Array) -> jax.Array:
        x, dtype = jnp.asarray(x), linear_algebra.common_dtype(x, s)
        threshold = jnp.asarray(lam).astype(dtype) * jnp.asarray(s).astype(dtype)
        pushed = (x == 0) & (threshold < 0)
        return jnp.where(pushed, -threshold.astype(x.dtype), ops.soft_threshold(x, threshold))

    return jax.tree.map(prune, w, scores)


def projection_share(delta: Params, vectors: Params) -> jax.Array:
    """Returns the share of a displacement that lies in a subspace, `|V^T delta| / |delta|`.

    Small for the difference between gRDA's and SGD's weights and the steepest directions of the Hessian: the move is
    in flat ones. The mean square for a random move in R^n is k / n, so compare with `sqrt(k / n)`.

    Args:
      delta: the displacement, an array or a tree of them.
      vectors: `V`, orthonormal columns, as `top_eigenspace` gives them; (n, k) for a bare array (n,). Checked to be
        orthonormal unless traced.

    Returns:
      A scalar in [0, 1], float32 or wider; 0 where nothing was displaced.

    Raises:
      ValueError: `vectors` has not the structure or shapes, or is not orthonormal; a leaf of `delta` is empty, holds
        NaN or is not of a float dtype.

    Source: Chao et al., Directional Pruning of Deep Neural Networks, 2020, Fig. 6. The authors' notebook divides by
    `sqrt(k)` once more, so that its values are too small.

    >>> projection_share(jnp.array([0.3, -0.4, 1.2, 0.5]), jnp.eye(4)[:, :2]).item()
    0.358979
    """
    linear_algebra.check_float(delta)
    linear_algebra.check_orthonormal(vectors, delta, "vectors")
    inside, length = linear_algebra.norm(linear_algebra.project(vectors, delta)), linear_algebra.norm(delta)
    return jnp.minimum(inside / jnp.where(length == 0, jnp.ones_like(length), length), jnp.ones_like(length))


def norm_ratio(params: Params) -> tuple[jax.Array, float]:
    """Returns `|w|_2 / |w|_1` over a whole tree, and its lower bound `d^(-1/2)`, attained when all |w| are equal.

    The ratio rises with sparsity, to 1 for a single weight; d is the number of weights, zeros included.

    Args:
      params: the tree of parameters, float dtypes.

    Returns:
      The ratio, a scalar, float32 or wider, 0 if every weight is 0; and the bound, a Python float.

    Raises:
      ValueError: a leaf is empty, holds NaN or is not of a float dtype.

    Source: Chao et al., Directional Pruning of Deep Neural Networks, 2020, Fig. 2.

    >>> ratio, bound = norm_ratio({"kernel": jnp.array([0.5, 0.0, 0.0, -0.5]), "bias": jnp.array([0.1])})
    >>> ratio.item(), bound
    (0.64922, 0.44721)
    """
    linear_algebra.check_float(params)
    wide = linear_algebra.widen(params, linear_algebra.common_dtype(params))
    sums = [jnp.abs(leaf).sum() for leaf in jax.tree.leaves(wide)]
    total = sum(sums[1:], start=sums[0])
    ratio = linear_algebra.norm(wide) / jnp.where(total == 0, jnp.ones_like(total), total)
    return ratio, sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(wide)) ** -0.5
