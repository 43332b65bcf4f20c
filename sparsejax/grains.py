"""The two orthogonal parts of a competition: what lives or dies as one, and who competes with whom.

A grain pools the scores of weights into those of grains, and spreads a mask over grains to the weights. A scope looks
at the grains' scores in a shape in which some axes are those along which they compete. Neither knows of the other, so
that every grain goes with every scope. `sparsejax.select` offers both under its own name.
"""

import math
import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import _checks
from sparsejax._types import wide_dtype

__all__ = ["Grain", "Scope", "block", "channel", "groups_of", "leaf", "model", "per", "weight"]

Shape = tuple[int, ...]

WAYS_OUT = "leave it alone with the sparsity 0.0, or choose another grain or scope"


class Grain(NamedTuple):
    """A grain, what lives or dies as one: how its score comes from those of its weights, and its fate to them.

    >>> channel(-1).pool(jnp.array([[1.0, 2.0], [3.0, 6.0]])).tolist()
    [[2.0, 4.0]]
    """

    pool: Callable[[jax.Array], jax.Array]
    """`scores of the weights -> scores of the grains`, of the same rank."""
    spread: Callable[[jax.Array, Shape], jax.Array]
    """`(mask over the grains, shape of the leaf) -> mask that broadcasts to the leaf`."""


class Scope(NamedTuple):
    """A scope, who competes with whom within a leaf: the scores as an array, and the axes along which they compete.

    >>> groups_of(4, axis=-1).view(jnp.ones((3, 8)))[0].shape
    (3, 2, 4)
    """

    view: Callable[[jax.Array], tuple[jax.Array, Shape]]
    """`scores -> (the same in another shape, the axes along which they compete)`."""
    whole: bool = False
    """Whether a sparsity that is known when tracing must prune a whole number of each competition."""
    joint: bool = False
    """Whether all leaves are in one competition."""


weight = Grain(lambda scores: scores, lambda mask, _: mask)
"""Every weight for itself."""

leaf = Scope(lambda scores: (scores, tuple(range(scores.ndim))))
"""All grains of a leaf compete with each other."""

model = Scope(leaf.view, joint=True)
"""All grains of all leaves compete with each other, as with `sparsejax.select.globally`."""


def channel(axis: int = -1) -> Grain:
    """Returns the grain of whole slices along an axis, scored by the mean of their weights' scores.

    The mean over sharded axes is rounded in the order that the devices add; it can only matter between channels whose
    scores are equal up to that.

    Args:
      axis: the axis whose every index is a channel: -1 is the output of Flax's kernels.

    Returns:
      A `Grain`; its masks have the shape `(1, ..., C, ..., 1)`.

    Raises:
      ValueError: when used, the leaf has no such axis.

    >>> channel(0).pool(jnp.array([[1.0, 2.0], [3.0, 6.0]])).tolist()
    [[1.5], [4.5]]
    """

    def pool(scores: jax.Array) -> jax.Array:
        own = _axis(scores.shape, axis, "channel")
        return _mean(scores, tuple(i for i in range(scores.ndim) if i != own))

    return Grain(pool, lambda mask, _: mask)


def block(*size: int) -> Grain:
    """Returns the grain of blocks of neighbours along the last axes, scored by the mean of their weights' scores.

    Args:
      *size: the length of a block along each of the last axes, >= 1; along the others it is 1.

    Returns:
      A `Grain`; its masks have the shape of the leaf.

    Raises:
      ValueError: a size is no integer >= 1; when used, the leaf has too few axes, or one that the size does not divide.

    >>> block(1, 2).pool(jnp.array([[1.0, 1.0, 5.0, 0.0]])).tolist()
    [[1.0, 2.5]]
    >>> block(1, 2).spread(jnp.array([[False, True]]), (1, 4)).tolist()
    [[False, False, True, True]]
    """
    if not size or not all(isinstance(length, numbers.Integral) and length >= 1 for length in size):
        raise ValueError(f"size={size} must be one or more whole lengths >= 1, such as block(4, 4)")

    def sizes(shape: Shape) -> Shape:
        if len(shape) < len(size):
            raise ValueError(f"block{size} needs rank {len(size)} or more, and the shape is {shape}: {WAYS_OUT}")
        whole = (1,) * (len(shape) - len(size)) + size
        if ragged := [axis for axis, (n, m) in enumerate(zip(shape, whole, strict=True)) if n % m]:
            raise ValueError(f"block{size} does not divide axes {ragged} of the shape {shape}: {WAYS_OUT}")
        return whole

    def pool(scores: jax.Array) -> jax.Array:
        for axis, length in enumerate(sizes(scores.shape)):
            scores = _mean(_split(scores, axis, length), (axis + 1,)).squeeze(axis + 1) if length > 1 else scores
        return scores

    def spread(mask: jax.Array, shape: Shape) -> jax.Array:
        for axis, length in enumerate(sizes(shape)):
            if length > 1:  # not jnp.repeat, which gathers
                whole = (*mask.shape[: axis + 1], length, *mask.shape[axis + 1 :])
                mask = jnp.broadcast_to(jnp.expand_dims(mask, axis + 1), whole).reshape(_merged(whole, axis))
        return mask

    return Grain(pool, spread)


def per(*axes: int) -> Scope:
    """Returns the scope in which every place along some axes holds a competition of its own.

    `per(-1)` compares the inputs of each output of Flax's kernels (Wanda); `per(0)`, the weights of each of the layers
    that are stacked along the first axis.

    Args:
      *axes: at least one.

    Returns:
      A `Scope`.

    Raises:
      ValueError: no axis is given; when used, the leaf has no such axis.

    >>> per(-1).view(jnp.ones((3, 4)))[1]
    (0,)
    """
    if not axes:
        raise ValueError("per() needs at least one axis; the scope of a whole leaf is sparsejax.select.leaf")

    def view(scores: jax.Array) -> tuple[jax.Array, Shape]:
        apart = {_axis(scores.shape, axis, "per") for axis in axes}
        return scores, tuple(axis for axis in range(scores.ndim) if axis not in apart)

    return Scope(view)


def groups_of(m: int, axis: int = -2) -> Scope:
    """Returns the scope in which every `m` neighbours along an axis compete: N:M sparsity.

    Hardware wants the groups along the axis that a product sums over: -2 in Flax's kernels.

    Args:
      m: how many neighbours, >= 1.
      axis: the axis they are neighbours along.

    Returns:
      A `Scope`.

    Raises:
      ValueError: `m` is no integer >= 1; when used, the leaf has no such axis, `m` does not divide it, or a sparsity
        that is not traced does not leave a whole number of each group.

    >>> scores, axes = groups_of(2, axis=-2).view(jnp.ones((6, 4)))
    >>> scores.shape, axes
    ((3, 2, 4), (1,))
    """
    _checks.check_integer("m", m, 1, "2:4 sparsity is groups_of(4) at the sparsity 0.5")

    def view(scores: jax.Array) -> tuple[jax.Array, Shape]:
        own = _axis(scores.shape, axis, "groups_of")
        if scores.shape[own] % m:
            raise ValueError(f"groups of m={m} do not divide axis {axis} of the shape {scores.shape}: {WAYS_OUT}")
        return _split(scores, own, m), (own + 1,)

    return Scope(view, whole=True)


def _axis(shape: Shape, axis: int, part: str) -> int:
    if axis not in range(-len(shape), len(shape)):
        raise ValueError(f"{part}(axis={axis}) needs that axis, and the shape is {shape}: {WAYS_OUT}")
    return axis % len(shape)


def _split(scores: jax.Array, axis: int, length: int) -> jax.Array:
    shape, sharding = scores.shape, jax.typeof(scores).sharding
    names = sharding.spec[axis] or ()  # the mesh axes of type Explicit that it lies along
    parts = math.prod(sharding.mesh.shape[name] for name in (names if isinstance(names, tuple) else (names,)))
    if shape[axis] // length % parts:
        raise ValueError(
            f"groups of {length} along axis {axis} of the shape {shape} lie on several devices each, as it is sharded "
            f"over {parts}; shard the leaf along another axis, or choose another grain or scope"
        )
    return scores.reshape(*shape[:axis], shape[axis] // length, length, *shape[axis + 1 :])


def _merged(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def _mean(scores: jax.Array, axes: Shape) -> jax.Array:
    return jnp.mean(scores.astype(wide_dtype(scores)), axes, keepdims=True)
