"""Trees of parameters as vectors of R^n: products, lengths, and orthonormal columns.

A matrix with `k` columns in R^n is a tree like the parameters whose leaves have one more, *last* axis of size `k`. For
parameters that are a bare array (n,) it is the ordinary matrix (n, k). Sums are taken in float32 or wider, at the
highest precision of the device: on GPUs and TPUs the default would round the factors to 10 bits.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import tree
from sparsejax._types import Params, wide_dtype


def common_dtype(*trees: Params) -> jnp.dtype:
    """Returns the dtype in which trees are combined: the widest of their leaves, and at least float32."""
    return wide_dtype(*(jnp.asarray(leaf) for leaf in jax.tree.leaves(trees)))


def widen(params: Params, dtype: jnp.dtype) -> Params:
    """Returns the tree with every leaf an array of one dtype."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), params)


def cast_like(params: Params, like: Params) -> Params:
    """Returns the tree with the dtypes of another."""
    return jax.tree.map(lambda leaf, other: jnp.asarray(leaf).astype(jnp.result_type(other)), params, like)


def project(columns: Params, params: Params) -> jax.Array:
    """Returns `V^T w`, an array (k,): the coordinates of a tree along the columns."""
    dtype = common_dtype(columns, params)

    def part(v, w):
        return jnp.tensordot(w, v, axes=w.ndim, precision=jax.lax.Precision.HIGHEST)

    parts = jax.tree.leaves(jax.tree.map(part, widen(columns, dtype), widen(params, dtype)))
    return sum(parts[1:], start=parts[0])


def expand(columns: Params, coordinates: jax.Array) -> Params:
    """Returns `V c`, a tree: the sum of the columns, each times its coordinate."""
    dtype = common_dtype(columns, coordinates)
    c = coordinates.astype(dtype)
    return jax.tree.map(lambda v: jnp.matmul(v, c, precision=jax.lax.Precision.HIGHEST), widen(columns, dtype))


def combine(like: Params, *terms: tuple[chex.Numeric, Params]) -> Params:
    """Returns the sum of trees, each times its number, with the dtypes of a tree but computed in float32 or wider."""
    dtype = common_dtype(like, *(other for _, other in terms))
    numbers = [jnp.asarray(number).astype(dtype) for number, _ in terms]

    def total(*leaves):
        parts = [number * leaf for number, leaf in zip(numbers, leaves, strict=True)]
        return sum(parts[1:], start=parts[0])

    return cast_like(jax.tree.map(total, *(widen(other, dtype) for _, other in terms)), like)


def dot(a: Params, b: Params) -> jax.Array:
    """Returns the inner product of two trees, a scalar."""
    return project(jax.tree.map(lambda leaf: jnp.asarray(leaf)[..., None], a), b)[0]


def norm(params: Params) -> jax.Array:
    """Returns the Euclidean length of a tree, a scalar."""
    return jnp.sqrt(dot(params, params))


def check_float(params: Params) -> None:
    """Raises `ValueError` if there is no leaf, or one is empty, is not of a float dtype or holds a NaN."""
    if not jax.tree.leaves(params):
        raise ValueError("the tree of parameters has no leaves; pass the one that is trained")
    for name, leaf in tree.named(params).items():
        tree.check_prunable(name, leaf, "leave it out of the tree")
        tree.check_no_nan(name, leaf)


def check_orthonormal(columns: Params, params: Params, argument: str) -> None:
    """Raises `ValueError` unless a tree has columns for the parameters and, unless traced, `V^T V = I`."""
    tree.check_structure(columns, params, argument)
    shapes = {name: jnp.shape(leaf) for name, leaf in tree.named(columns).items()}
    counts = {shape[-1:] for shape in shapes.values()}
    for name, leaf in tree.named(params).items():
        if shapes[name][:-1] != jnp.shape(leaf) or len(counts) != 1 or counts == {()}:
            raise ValueError(
                f"leaf {name!r} of {argument} has shape {shapes[name]}, but columns for a leaf of shape "
                f"{jnp.shape(leaf)} have shape {(*jnp.shape(leaf), 'k')}, with one k for all leaves: "
                f"the last axis counts the columns, as in the result of top_eigenspace"
            )
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(columns)):
        return
    gap = _gram_error(columns)
    limit = max(float(jnp.finfo(jnp.result_type(leaf)).eps) for leaf in jax.tree.leaves(columns)) ** 0.5
    if not gap <= limit:
        raise ValueError(
            f"the columns of {argument} are not orthonormal: V^T V differs from the identity by {gap:.1e}, more than "
            f"rounding explains ({limit:.1e}); take the factor Q of a QR decomposition of them"
        )


def _gram_error(columns: Params) -> float:
    """Returns the largest deviation of `V^T V` from the identity."""
    with jax.ensure_compile_time_eval():  # concrete columns may be met while something else is traced
        rows = jax.vmap(project, in_axes=(None, -1))(columns, columns)
        return float(np.abs(np.asarray(rows) - np.eye(rows.shape[0])).max(initial=0.0))
