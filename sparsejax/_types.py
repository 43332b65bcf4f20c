"""Names of the things every module speaks about, and the rules of dtypes and shapes.

A tree of parameters is any pytree. Everything that belongs to its leaves is either a tree of the same structure
(scores, masks, sparsities) or a flat dict keyed by leaf name (learned auxiliaries such as bounds; counts).
"""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

Params = chex.ArrayTree
"""A tree of parameters, or of anything shaped like parameters: gradients, updates, momenta."""

Scores = chex.ArrayTree
"""A tree with the structure and shapes of the parameters; the larger the score, the more the weight matters."""

Mask = chex.ArrayTree
"""A tree with the structure of the parameters; bool leaves that broadcast to them; `True` keeps. No holes."""

Sparsities = chex.ArrayTree
"""A tree with the structure of the parameters; one number a leaf, the share to prune; 0.0 leaves it alone."""

Bounds = Mapping[str, chex.Numeric]
"""One relative bound a pruned leaf, keyed by the leaf's name, in units of the leaf's standard deviation."""

Where = None | str | Callable[[str, jax.Array], bool]
"""Which leaves: `None` (float leaves of rank >= 2), a regular expression searched in the name, or a predicate."""

Clock = Callable[[chex.Numeric], chex.Numeric]
"""A function of the step, counted from 0: a bool (look at the mask now?), or a number (how far along?)."""

Operator = Callable[[jax.Array, chex.Numeric], jax.Array]
"""`(weights, absolute threshold) -> weights` of the same shape and dtype: one of `sparsejax.ops`."""


def aligned_shape(shape: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns a shape with as many leading ones as `target` has axes more; `None` if it does not broadcast to it."""
    aligned = (1,) * (len(target) - len(shape)) + shape
    if len(aligned) != len(target) or any(own not in (1, n) for own, n in zip(aligned, target, strict=True)):
        return None
    return aligned


def wide_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Returns the dtype in which arrays are compared and summed: the widest of theirs, and at least float32."""
    # A threshold must not be rounded to bfloat16 on its way to a comparison. This promotion is meant, so it is stated
    # here once, and holds where the user has asked JAX to refuse implicit ones.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(jnp.float32, *(array.dtype for array in arrays))


def prepare(w: chex.Array, other: chex.Numeric, argument: str, name: str = "w") -> tuple[jax.Array, jax.Array]:
    """Makes arrays of the operands `name` and `argument`, and raises unless the second broadcasts to the first."""
    w = jnp.asarray(w)
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {w.dtype}; only floats can be pruned: cast {name} first")
    # A Python number takes the dtype of the weights; an array keeps its own, so that its gradient does too.
    other = jnp.asarray(other, w.dtype) if isinstance(other, int | float) else jnp.asarray(other)
    aligned = aligned_shape(other.shape, w.shape)
    if aligned is None:
        raise ValueError(
            f"{argument} has shape {other.shape}, which does not broadcast to {name} of shape {w.shape}; "
            f"pass a scalar, or an array with 1 or the same size along every axis"
        )
    return w, other.reshape(aligned) if other.ndim else other


def reduce_to(x: jax.Array, like: jax.Array) -> jax.Array:
    """Sums the gradient of a broadcast array back to its shape, and casts it back to its dtype."""
    axes = tuple(range(x.ndim)) if like.ndim == 0 else tuple(i for i, n in enumerate(like.shape) if n != x.shape[i])
    return x.sum(axes, keepdims=like.ndim > 0).astype(like.dtype)
