"""Leaves as arrays of a file: whole, or the bits of a mask and the values that it keeps, in row-major order."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax._files import NATIVE, damaged, expect

_FLOATS = ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
_OTHERS = (*(f"float8_{kind}" for kind in _FLOATS), "float4_e2m1fn", "int2", "int4", "uint2", "uint4")
DTYPES = {
    **{name: np.dtype(name) for name in (*NATIVE, "complex64", "complex128") if name != "bfloat16"},
    **{name: np.dtype(getattr(jnp, name)) for name in ("bfloat16", *_OTHERS)},
}
"""Every dtype that can be stored, by name."""

_WORTH = 256  # bytes; what a second array costs in the header
_BYTES, _BOOL = np.dtype(np.uint8), np.dtype(np.bool_)

Read = Callable[[str, np.dtype, tuple[int | None, ...]], np.ndarray]


class Entry(NamedTuple):
    """What is written down of a leaf: its name, and how its arrays are read."""

    name: str
    dtype: str
    shape: tuple[int, ...]  # for PRNG keys, that of their data
    number: bool  # a number of Python rather than an array
    implementation: str | None  # of PRNG keys
    mask: tuple[int, ...] | None  # the shape of the mask that was given
    packed: bool

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of its arrays."""
        return tuple(f"{part}/{self.name}" for part in (("mask", "values") if self.packed else ("dense",)))

    @property
    def unpacked(self) -> int:
        """The bytes of memory that it takes, with its mask."""
        masked = self.shape if self.mask is None else self.mask
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize + math.prod(masked)


def fetch(argument: str, name: str, leaf: Any) -> np.ndarray:
    """Returns a leaf as a contiguous NumPy array; raises `ValueError` if it has no value here, or cannot be stored."""
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        raise ValueError(f"{argument} leaf {name!r} has no value, it is {leaf}; save outside jit, grad and vmap")
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(f"{argument} leaf {name!r} was donated to a jitted function; save what that function returned")
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(
            f"{argument} leaf {name!r} lies partly on devices of other processes, its sharding is {leaf.sharding}; "
            f"gather it with jax.experimental.multihost_utils.process_allgather, and save in one process"
        )
    array = np.asarray(leaf, order="C")
    if DTYPES.get(array.dtype.name) is None:
        raise ValueError(f"{argument} leaf {name!r} has dtype {array.dtype}; a file holds numbers: {', '.join(DTYPES)}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def pack(name: str, leaf: Any, mask: Any = None) -> tuple[Entry, dict[str, np.ndarray]]:
    """Returns what is written down of a leaf, and its arrays by name; `mask` is its leaf of the mask that was given."""
    implementation = None
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        implementation, leaf = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
    array, given = fetch("params", name, leaf), None if mask is None else fetch("mask", name, mask)
    if given is not None:
        keep = None if given.all() else given
    else:
        keep = _not_zero(array) if implementation is None else None
    if implementation and keep is not None:
        raise ValueError(f"mask prunes leaf {name!r}, which holds PRNG keys; the mask of a leaf to leave alone is True")
    number, given_shape = type(leaf) in (bool, int, float, complex), None if given is None else given.shape
    entry = Entry(name, array.dtype.name, array.shape, number, implementation, given_shape, keep is not None)
    if keep is None:
        return entry, dict(zip(entry.arrays, [_plain(array)], strict=True))
    values = array[np.broadcast_to(keep, array.shape)]
    return entry, dict(zip(entry.arrays, [to_bits(keep), _plain(values)], strict=True))


def unpack(entry: Entry, read: Read) -> tuple[Any, np.ndarray | None]:
    """Returns a leaf and its leaf of the mask that was given; `read(name, dtype, shape)` is an array of the file."""
    dtype, size = DTYPES[entry.dtype], math.prod(entry.shape)
    if entry.packed:
        bits, stored = entry.arrays
        keep = from_bits(read, bits, entry.shape if entry.mask is None else entry.mask)
        count = int(np.count_nonzero(keep)) * (size // max(keep.size, 1))
        array = np.zeros(entry.shape, dtype)
        array[np.broadcast_to(keep, entry.shape)] = _read_plain(read, stored, dtype, (count,))
    else:
        keep = None if entry.mask is None else np.ones(entry.mask, np.bool_)
        array = _read_plain(read, *entry.arrays, dtype, entry.shape)
    return _as_it_was(entry, array), None if entry.mask is None else keep


def to_bits(keep: np.ndarray) -> np.ndarray:
    """Returns a bool array as bits, eight a byte, the first in the highest."""
    return np.packbits(np.ravel(keep))


def from_bits(read: Read, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the bool array that was stored as bits."""
    size = math.prod(shape)
    return np.unpackbits(read(name, _BYTES, (-(-size // 8),)), count=size).view(np.bool_).reshape(shape)


def _not_zero(array: np.ndarray) -> np.ndarray | None:
    """Returns where the bits are not those of +0, if leaving such zeros out makes the file smaller."""
    word = min(array.itemsize, 8)
    words = np.ravel(array).view(f"u{word}").reshape(-1, array.itemsize // word)
    keep = np.any(words, axis=1)
    packed = keep.size / 8 + np.count_nonzero(keep) * array.itemsize
    return keep.reshape(array.shape) if packed + _WORTH < array.nbytes else None


def _plain(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.name in NATIVE else np.ravel(array).view(np.uint8)


def _read_plain(read: Read, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.name not in NATIVE:
        return read(name, _BYTES, (math.prod(shape) * dtype.itemsize,)).view(dtype).reshape(shape)
    array = read(name, dtype, shape)
    expect(dtype != _BOOL or array.view(np.uint8).max(initial=0) <= 1, f"{name!r:.200} holds bytes that are no bool")
    return array


def _as_it_was(entry: Entry, array: np.ndarray) -> Any:
    if entry.implementation is not None:
        try:
            return jax.random.wrap_key_data(array, impl=entry.implementation)
        except (TypeError, ValueError) as error:
            raise damaged(f"leaf {entry.name!r:.200} holds no PRNG keys: {error}") from error
    return array.item() if entry.number else array
