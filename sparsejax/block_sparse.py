"""Matrices stored as the blocks that are not zero, and products with them that skip the rest.

Every block column keeps the same number of blocks, so that a product is a gather of inputs and products of dense
matrices, in a batch or a column at a time: no scatter, no kernel of its own, fast on whatever multiplies matrices fast.
Where a mask keeps more blocks of one column than of another, the others are filled up with zeros (`BlockSparse.waste`);
masks that waste nothing come from `sparsejax.select.block` with the scope `sparsejax.select.per(-1)`, or
`recipes.balanced_blocks`.

Blocks of few inputs and many outputs are the faster ones, 8 x 128 say, or as wide as half of the matrix: the fewer
block columns there are, the less is gathered. They are finer than squares, too: fewer inputs of an output go as one.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import _checks
from sparsejax._types import aligned_shape

__all__ = ["BlockSparse", "compress", "expand", "matmul"]

_FEW_COLUMNS, _MANY_ROWS = 8, 16  # what makes products of single columns faster than one of all, also backward


@partial(jax.tree_util.register_dataclass, data_fields=["blocks", "indices"], meta_fields=["shape"])
@dataclass(frozen=True)
class BlockSparse:
    """Holds a matrix as its blocks; a pytree, of which `blocks` can be trained.

    Attributes:
      blocks: (block columns, k, inputs of a block, outputs of a block); any float dtype.
      indices: int32 (block columns, k): which block of inputs each is for; the number of blocks that the inputs have
        where a column is filled up with zeros, whose gradient is zero too.
      shape: (inputs, outputs) of the matrix; static. What a block has beyond them counts as zero.

    >>> compact = compress(jnp.eye(4), (2, 2))
    >>> compact.blocks.shape, compact.indices.tolist(), compact.stored, compact.waste
    ((2, 1, 2, 2), [[0], [1]], 0.5, 0.0)
    """

    blocks: jax.Array
    indices: jax.Array
    shape: tuple[int, int]

    @property
    def stored(self) -> float:
        """Numbers in the blocks / numbers in the matrix: the share of its products that are formed."""
        return math.prod(self.blocks.shape) / math.prod(self.shape)

    @property
    def waste(self) -> float:
        """The share of the stored blocks that only fill up columns; the indices must not be traced."""
        return float(np.mean(np.asarray(self.indices) == _count(self.shape[0], self.blocks.shape[2])))


def compress(w: chex.Array, size: tuple[int, int], mask: chex.Array | None = None) -> BlockSparse:
    """Returns a matrix as those of its blocks that are not all zero.

    Args:
      w: (inputs, outputs), not traced: how many blocks are left decides shapes.
      size: inputs and outputs of a block; blocks at the ends may reach beyond the matrix.
      mask: bool, broadcasts to `w`: the blocks in which it keeps anything are stored, with zeros where it keeps
        nothing; the entries of `w` that are not zero, if left out.

    Returns:
      A `BlockSparse` of the dtype of `w`; each block column holds as many blocks as the one that needs most, at least
      one.

    Raises:
      ValueError: `w` is traced, not a matrix or empty, `size` is not two positive lengths, or `mask` does not fit.

    >>> compress(jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), (1, 2)).indices.tolist()
    [[0, 1, 2]]
    """
    _check(w, size, mask)
    values = np.asarray(w)
    alive = values != 0 if mask is None else np.broadcast_to(np.asarray(mask), values.shape)
    tiles, living = _tiles(np.where(alive, values, np.zeros_like(values)), size), _tiles(alive, size).any((2, 3)).T
    slots = np.argsort(~living, axis=1, kind="stable")[:, : max(1, living.sum(1).max())]  # the living first, in order
    real = np.take_along_axis(living, slots, 1)
    blocks = tiles[slots, np.arange(len(slots))[:, None]]  # the others are zero
    indices = np.where(real, slots, _count(values.shape[0], size[0]))
    return BlockSparse(jnp.asarray(blocks), jnp.asarray(indices, jnp.int32), values.shape)


def expand(compact: BlockSparse) -> jax.Array:
    """Returns the matrix that was compressed.

    Args:
      compact: what `compress` returned.

    Returns:
      (inputs, outputs), of the dtype of the blocks.

    >>> expand(compress(jnp.eye(3), (2, 1))).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    _check_compact(compact)
    (inputs, outputs), (columns, _, length, width) = compact.shape, compact.blocks.shape
    count = _count(inputs, length)
    empty = jnp.zeros((columns, count, length, width), compact.blocks.dtype)
    tiles = empty.at[jnp.arange(columns)[:, None], compact.indices].set(compact.blocks, mode="drop")
    return tiles.transpose(1, 2, 0, 3).reshape(count * length, columns * width)[:inputs, :outputs]


def matmul(x: chex.Array, compact: BlockSparse, precision: Any = None, preferred_element_type: Any = None) -> jax.Array:
    """Returns `x @ w`, without the products with blocks that are not stored.

    To rounding, and where `x` is finite: what a missing block would be multiplied by is not looked at. Differentiable
    by `x` and by the blocks; `jit`, `vmap` and `jax.export` of it work.

    Args:
      x: (..., inputs).
      compact: what `compress` made of `w`.
      precision: as for `jax.numpy.matmul`.
      preferred_element_type: the dtype to sum in and to return, as for `jax.numpy.matmul`.

    Returns:
      (..., outputs), of the dtype that `x @ w` has.

    Raises:
      ValueError: the last axis of `x` is not as long as `w` has inputs, or `compact` is no `BlockSparse`.

    >>> matmul(jnp.array([1.0, 2.0, 3.0]), compress(jnp.eye(3), (2, 2))).tolist()
    [1.0, 2.0, 3.0]
    """
    _check_compact(compact)
    one_by_one = compact.blocks.shape[0] <= _FEW_COLUMNS and math.prod(jnp.shape(x)[:-1]) >= _MANY_ROWS
    return (column_by_column if one_by_one else _together)(x, compact, precision, preferred_element_type)


def column_by_column(
    x: chex.Array, compact: BlockSparse, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """Returns what `matmul` does by a product for each block column; its gradient is slow if there are many.

    Products of their own are spread over the cores of a CPU as those of a batch are not.
    """
    pieces, (columns, k, length, width) = _pieces(x, compact), compact.blocks.shape
    products, options = [], {"precision": precision, "preferred_element_type": preferred_element_type}
    for column in range(columns):
        own = jnp.take(pieces, compact.indices[column], axis=1, mode="fill", fill_value=0)
        w = compact.blocks[column].reshape(k * length, width)
        products.append(jnp.matmul(own.reshape(len(pieces), k * length), w, **options))
    return _outputs(jnp.concatenate(products, 1), x, compact)


def _together(x: chex.Array, compact: BlockSparse, precision: Any, preferred_element_type: Any) -> jax.Array:
    """Returns what `matmul` does by one batched product."""
    pieces, (columns, k, length, width) = _pieces(x, compact), compact.blocks.shape
    # Rows last: what belongs to a block then lies in one piece, which is gathered in half the time, and backward too.
    gathered = jnp.take(jnp.moveaxis(pieces, 0, 2), compact.indices, axis=0, mode="fill", fill_value=0)
    y = jnp.einsum(
        "cdr,cdw->rcw",
        gathered.reshape(columns, k * length, len(pieces)),
        compact.blocks.reshape(columns, k * length, width),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return _outputs(y.reshape(len(pieces), columns * width), x, compact)


def _pieces(x: chex.Array, compact: BlockSparse) -> jax.Array:
    """Returns (rows, blocks of inputs, inputs of a block)."""
    inputs, length = compact.shape[0], compact.blocks.shape[2]
    if jnp.shape(x)[-1:] != (inputs,):
        raise ValueError(f"x has shape {jnp.shape(x)}; its last axis must be the {inputs} inputs of the matrix")
    rows = jnp.reshape(x, (math.prod(jnp.shape(x)[:-1]), inputs))
    filled = jnp.pad(rows, ((0, 0), (0, -inputs % length))) if inputs % length else rows
    return filled.reshape(len(rows), _count(inputs, length), length)


def _outputs(y: jax.Array, x: chex.Array, compact: BlockSparse) -> jax.Array:
    return y[:, : compact.shape[1]].reshape(*jnp.shape(x)[:-1], compact.shape[1])


def _count(size: int, length: int) -> int:
    return -(-size // length)


def _tiles(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns (blocks of inputs, block columns, inputs of a block, outputs of a block)."""
    (inputs, outputs), (length, width) = array.shape, size
    filled = np.pad(array, ((0, -inputs % length), (0, -outputs % width)))
    return filled.reshape(_count(inputs, length), length, -1, width).swapaxes(1, 2)


def _check_compact(compact: Any) -> None:
    _checks.check_kind("compact", compact, BlockSparse, "make one with sparsejax.block_sparse.compress(w, (8, 128))")


def _check(w: chex.Array, size: tuple[int, int], mask: chex.Array | None) -> None:
    if isinstance(w, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        raise ValueError(
            "compress() decides shapes by the values of w and mask, which are traced here; call it outside of jit, "
            "grad and vmap, and pass what it returns into them: a BlockSparse is a pytree"
        )
    if jnp.ndim(w) != 2 or not jnp.size(w):
        raise ValueError(f"w has shape {jnp.shape(w)}; it must be (inputs, outputs), neither 0: reshape it before")
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"size={size} must be two lengths >= 1: inputs and outputs of a block, such as (8, 128)")
    for length in size:
        _checks.check_integer("size", length, 1, "it is the inputs and the outputs of a block, such as (8, 128)")
    if mask is None:
        return
    if jnp.result_type(mask) != jnp.bool_:
        raise ValueError(f"mask has dtype {jnp.result_type(mask)}; a mask is bool, True keeps: pass mask != 0")
    if aligned_shape(jnp.shape(mask), jnp.shape(w)) is None:
        raise ValueError(f"mask has shape {jnp.shape(mask)}, which does not broadcast to w of shape {jnp.shape(w)}")
