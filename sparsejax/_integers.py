"""Exact integers in [0, 2^64), where JAX has 32 bits unless told otherwise: uint32 arrays `(..., 2)`, high and low.

Numbers of parameters fit 32 bits, multiply-adds and running totals do not, and float32 counts to 2^24 only.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

MAX = 2**64 - 1


def of(number: int) -> np.ndarray:
    """Returns a Python integer as an exact one; raises `ValueError` if it is not in [0, 2^64)."""
    if not 0 <= number <= MAX:
        raise ValueError(f"{number} is not in [0, 2^64); give a whole number that is")
    return np.array([number >> 32, number & 0xFFFFFFFF], np.uint32)


def to_numpy(integer: jax.Array) -> np.ndarray:
    """Returns concrete integers as NumPy's, uint64 `(...)`."""
    halves = np.asarray(integer).astype(np.uint64)
    return (halves[..., 0] << np.uint64(32)) | halves[..., 1]


def add(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `a + b`."""
    low = a[..., 1] + b[..., 1]
    carry = (low < a[..., 1]).astype(jnp.uint32)
    return jnp.stack([a[..., 0] + b[..., 0] + carry, low], -1)


def add_small(a: jax.Array, count: jax.Array) -> jax.Array:
    """Returns `a + count` for a count in uint32."""
    return add(a, jnp.stack([jnp.zeros_like(count), count], -1))


def times(count: jax.Array, factor: int) -> jax.Array:
    """Returns `count * factor` for a count in uint32 and a Python integer; the product must be below 2^64."""
    high, low = (int(half) for half in of(factor))
    product = _product(count, low)
    return jnp.stack([product[0] + count * np.uint32(high), product[1]], -1)


def total(integers: list[jax.Array]) -> jax.Array:
    """Returns the sum of one or more integers."""
    return functools.reduce(add, integers)


def at_most(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns whether `a <= b`."""
    return (a[..., 0] < b[..., 0]) | ((a[..., 0] == b[..., 0]) & (a[..., 1] <= b[..., 1]))


def _product(a: jax.Array, b: int) -> tuple[jax.Array, jax.Array]:
    """Returns the halves of the product of two numbers of 32 bits: long multiplication with digits of 16."""
    digit, shift = np.uint32(0xFFFF), np.uint32(16)
    b_high, b_low = np.uint32(b >> 16), np.uint32(b & 0xFFFF)
    a_high, a_low = a >> shift, a & digit
    low, left, right, high = a_low * b_low, a_low * b_high, a_high * b_low, a_high * b_high
    middle = (low >> shift) + (left & digit) + (right & digit)
    upper = high + (left >> shift) + (right >> shift) + (middle >> shift)
    return upper, (middle << shift) | (low & digit)
