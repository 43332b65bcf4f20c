"""How many survive: a share of a count in exact arithmetic, for numbers known when tracing and for traced ones.

`round((1 - sparsity) n)`, a half rounded to even, and at least one while the sparsity is below 1. A number known when
tracing is taken for the decimal it stands for; a traced one is the float32 it is.
"""

import numbers
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp

from sparsejax._numbers import meant


def is_static(number: chex.Numeric | Fraction) -> bool:
    """Returns whether a number is one of Python's (or NumPy's), so that its value is known when tracing."""
    return isinstance(number, numbers.Real)


def fraction(number: float | Fraction) -> Fraction:
    """Returns the decimal that a share stands for, since 0.9 itself is not a float; raises if it is not in [0, 1]."""
    if not 0 <= number <= 1:
        raise ValueError(f"sparsity={number} must be in [0, 1]; for 90% pass 0.9")
    return number if isinstance(number, Fraction) else meant(number)


def kept(sparsity: chex.Numeric | Fraction, competitors: int) -> jax.Array:
    """Returns how many of the competitors survive: an int32 scalar."""
    if is_static(sparsity):
        kept = round((1 - fraction(sparsity)) * competitors)
        return jnp.int32(kept if sparsity == 1 else max(kept, 1))
    if not hasattr(sparsity, "dtype") or jnp.ndim(sparsity) or not jnp.issubdtype(sparsity.dtype, jnp.floating):
        raise ValueError(f"sparsity={sparsity!r:.80} must be one float in [0, 1] for a leaf; for 90% pass 0.9")
    pruned = _fixed_point(sparsity)
    kept = jnp.where(pruned == 0, competitors, jnp.maximum(_times(-pruned, jnp.uint32(competitors)), 1))
    return jnp.where(sparsity < 1, kept, 0)  # NaN prunes all, which cannot be missed


def advance(kept: jax.Array, competitors: int, progress: chex.Numeric) -> jax.Array:
    """Returns how many survive when a share `progress` of those to be pruned is: an int32 scalar."""
    if is_static(progress) and not 0 <= progress <= 1:
        raise ValueError(f"progress={progress} must be in [0, 1], the share of what is pruned in the end")
    if is_static(progress) and progress == 1:
        return kept
    progress = jnp.asarray(progress, jnp.float32)
    part = _times(_fixed_point(progress), (competitors - kept).astype(jnp.uint32))
    return jnp.where(progress < 1, competitors - part, kept)


def _fixed_point(share: jax.Array) -> jax.Array:
    """Returns a share below 1 in units of 2^-32, uint32."""
    share = jnp.clip(jnp.asarray(share, jnp.float32), 0, 1 - 2**-24)
    return (share * 2.0**32).astype(jnp.uint32)


def _times(share: jax.Array, count: jax.Array) -> jax.Array:
    """Returns a share, in units of 2^-32, of a count; in exact arithmetic, rounded, a half to even. int32."""
    # float32 would be off by one beyond 2^24, and jax.lax.mulhi does not compile for several devices (JAX 0.10).
    whole, rest, half = _high_half(share, count), share * count, jnp.uint32(2**31)
    up = (rest > half) | ((rest == half) & ((whole & 1) == 1))
    return (whole + up.astype(jnp.uint32)).astype(jnp.int32)


def _high_half(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the upper 32 bits of the product of two uint32."""
    low = jnp.uint32(0xFFFF)
    crossed, crossed_back = (a & low) * (b >> 16), (a >> 16) * (b & low)
    carried = ((a & low) * (b & low) >> 16) + (crossed & low) + (crossed_back & low)
    return (a >> 16) * (b >> 16) + (crossed >> 16) + (crossed_back >> 16) + (carried >> 16)
