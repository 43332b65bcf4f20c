"""Ways to multiply by a matrix with zeros: as its blocks, or entry by entry."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import block_sparse

__all__ = ["DENSE", "Multiply", "Way", "sparse_ways"]

DENSE = "dense"
"""The name of the way that every product has."""

Multiply = Callable[..., jax.Array]
"""`((..., inputs), precision=, preferred_element_type=) -> (..., outputs)`."""

_WIDTHS = (512, 256, 128, 64, 32, 16)  # outputs of a block; the wider, the less is gathered
_LENGTHS = (32, 8)  # inputs of a block; where masks are that coarse, longer runs are gathered
_MOST_STORED = 0.6  # what stores more was never faster than the whole matrix
_WORSE = 1.5  # times what the leanest size stores: more was never made up for by wider blocks
_COLUMNS, _ROWS = 32, 16  # so many columns, for as many rows, are faster one by one
_CSR_ROWS, _CSR_STORED = 16, 0.1  # with fewer rows or zeros it was never faster


class Way(NamedTuple):
    """A way to multiply by one matrix.

    Attributes:
      make: prepares the matrix, and returns what multiplies by it.
      stored: numbers it keeps / numbers of the matrix.
      plain: whether XLA's own operations are all it takes, so that it can be exported.
    """

    make: Callable[[], Multiply]
    stored: float
    plain: bool = True


def sparse_ways(matrix: np.ndarray, rows: int) -> dict[str, Way]:
    """Returns the ways that might be faster than the whole matrix: none where blocks of zeros are missing.

    Args:
      matrix: (inputs, outputs).
      rows: how many vectors are multiplied at a time.

    Returns:
      `{name: way}`.
    """
    ways = {}
    for length, width, stored in _sizes(matrix):
        make = partial(_blocks, matrix, (length, width), rows)
        ways[f"blocks {length}x{width}"] = Way(make, stored)
    density = np.count_nonzero(matrix) / matrix.size
    # The one kernel that jax.experimental.sparse brings is for this dtype, on this device.
    supported = matrix.dtype == np.float32 and jax.default_backend() == "cpu"
    if supported and rows >= _CSR_ROWS and density <= _CSR_STORED:
        ways["CSR"] = Way(partial(_csr, matrix), density, plain=False)
    return ways


def _sizes(matrix: np.ndarray) -> list[tuple[int, int, float]]:
    """Returns (inputs, outputs, share stored) of sizes of blocks; narrower ones only where they store less."""
    alive, (inputs, outputs), found, best = matrix != 0, matrix.shape, [], np.inf
    for width in (outputs, *(width for width in _WIDTHS if width < outputs)):
        living = np.logical_or.reduceat(alive, np.arange(0, outputs, width), axis=1)
        finest = _stored(living, 1, width) / matrix.size
        if finest <= _MOST_STORED and finest < 0.95 * best:
            best = finest
            coarser = [(n, width, _stored(living, n, width) / matrix.size) for n in _LENGTHS if n < inputs]
            found += [*[one for one in coarser if one[-1] <= 1.1 * finest][:1], (1, width, finest)]
    return [one for one in found if one[-1] <= _WORSE * best]


def _stored(living: np.ndarray, length: int, width: int) -> int:
    """Returns the numbers that are stored if all block columns are as full as the fullest.

    Args:
      living: (inputs, block columns), whether any output of the column needs the input.
      length: inputs of a block.
      width: outputs of a block.
    """
    blocks = np.logical_or.reduceat(living, np.arange(0, len(living), length), axis=0)
    return max(1, int(blocks.sum(0).max())) * blocks.shape[1] * length * width


def _blocks(matrix: np.ndarray, size: tuple[int, int], rows: int) -> Multiply:
    compact = block_sparse.compress(matrix, size)
    one_by_one = compact.blocks.shape[0] <= _COLUMNS and rows >= _ROWS
    multiply = block_sparse.column_by_column if one_by_one else block_sparse.matmul
    return lambda x, **options: multiply(x, compact, **options)


def _csr(matrix: np.ndarray) -> Multiply:
    from jax.experimental import sparse  # takes a third of a second, which only those who need it should wait

    stored = sparse.BCSR.fromdense(jnp.asarray(matrix.T))  # its product is that of a sparse matrix from the left

    def multiply(x: jax.Array, **options: Any) -> jax.Array:
        del options  # it sums in float32, exactly
        return (stored @ x.reshape(-1, matrix.shape[0]).T).T.reshape(*x.shape[:-1], matrix.shape[1])

    return multiply
