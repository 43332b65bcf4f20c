"""Masks: what they are, and what can be done with one.

A mask has exactly the structure of the parameters; each leaf is a bool array that broadcasts to its parameter, `True`
keeps. The scalar `True` is an untouched leaf, `(1, 1, 1, C)` a channel mask. Masking is `where(mask, x, 0)`, never a
product: `0 * nan` is nan, and `-1 * 0` is -0.0.
"""

import math
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import _checks, tree
from sparsejax._types import Mask, Params, aligned_shape


def apply(mask: Mask, params: Params) -> Params:
    """Returns the parameters with exact zeros where the mask is false: `where(mask, p, 0)`.

    Differentiable, with the ordinary derivative: pruned weights get no gradient. For the straight-through gradient
    map `sparsejax.ops.straight_through` over both trees.

    Args:
      mask: see the head of the module.
      params: the tree to mask; leaves of any dtype, which is kept.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: `mask` is not a mask for `params`.

    >>> apply({"a": jnp.array([True, False])}, {"a": jnp.array([2.0, jnp.nan])})["a"].tolist()
    [2.0, 0.0]
    """
    check(mask, params)
    return jax.tree.map(lambda m, p: jnp.where(m, p, jnp.zeros_like(p)), mask, params)


def project(mask: Mask, updates: Params, params: Params) -> Params:
    """Returns updates after which the pruned parameters are exactly zero: `where(mask, u, -p)`.

    `optax.apply_updates(params, project(mask, updates, params))` has zeros wherever the mask is false, whatever the
    updates were: `p + (-p)` is exactly 0 in every float dtype.

    Args:
      mask: see the head of the module.
      updates: what an optimizer wants to add to the parameters; same structure and shapes.
      params: the parameters the updates will be added to.

    Returns:
      A tree like `updates`.

    Raises:
      ValueError: `mask` or `updates` does not fit `params`, or updates of floats are integers.

    >>> mask, params = {"a": jnp.array([True, False])}, {"a": jnp.array([2.0, 3.0])}
    >>> project(mask, {"a": jnp.array([0.5, 0.5])}, params)["a"].tolist()
    [0.5, -3.0]
    """
    check(mask, params)
    tree.check_like(updates, params, "updates")
    parameters = tree.named(params)
    for name, update in tree.named(updates).items():
        wanted, given = jnp.result_type(parameters[name]), jnp.result_type(update)
        if jnp.issubdtype(wanted, jnp.inexact) and not jnp.issubdtype(given, jnp.inexact):
            raise ValueError(
                f"updates leaf {name!r} has dtype {given}, which cannot take a parameter of {wanted} to zero; cast the "
                f"updates to the dtype of their parameters"
            )
    return jax.tree.map(
        lambda m, u, p: jnp.where(m, u, -jnp.asarray(p).astype(jnp.result_type(u))), mask, updates, params
    )


def combine(*masks: Mask) -> Mask:
    """Returns the mask that keeps what every one of the masks keeps.

    Args:
      *masks: at least one; trees of the same structure, leaves that broadcast against each other.

    Returns:
      A mask; each leaf has the broadcast shape of its operands.

    Raises:
      ValueError: no mask is given, the structures differ, or leaves are not bool or do not broadcast.

    >>> combine({"a": jnp.array([True, False])}, {"a": jnp.array(True)})["a"].tolist()
    [True, False]
    """
    if not masks:
        raise ValueError("combine() needs at least one mask; the mask that keeps everything is True in every leaf")
    for other in masks[1:]:
        tree.check_structure(other, masks[0], "mask")
    leaves = [tree.named(mask) for mask in masks]
    for name in leaves[0]:
        shapes = [jnp.shape(_check_bool(name, mask[name])) for mask in leaves]
        try:
            np.broadcast_shapes(*shapes)
        except ValueError as error:
            raise ValueError(
                f"mask leaf {name!r} has the shapes {shapes}, which do not broadcast; combine masks of the same "
                f"parameters"
            ) from error
    return jax.tree.map(lambda *leaves: reduce(jnp.logical_and, leaves), *masks)


def check(mask: Mask, params: Params) -> None:
    """Raises unless a tree is a mask for the parameters. Looks at structure, dtypes, shapes and shardings only.

    Args:
      mask: the tree to check.
      params: the parameters it should fit.

    Raises:
      ValueError: the structure differs, or a leaf is not bool, does not broadcast to its parameter, or is sharded in
        another way over a mesh with axes of type Explicit.

    >>> check({"a": jnp.array(True)}, {"a": jnp.ones((2, 3))})
    """
    tree.check_structure(mask, params, "mask")
    parameters = tree.named(params)
    for name, leaf in tree.named(mask).items():
        _check_bool(name, leaf)
        shape, target = jnp.shape(leaf), jnp.shape(parameters[name])
        if aligned_shape(shape, target) is None:
            raise ValueError(
                f"mask leaf {name!r} has shape {shape}, which does not broadcast to the parameter's {target}; "
                f"give it 1 or the same size along every axis"
            )
        _check_sharding(name, leaf, parameters[name])


def sparsity(mask: Mask, params: Params) -> chex.Numeric:
    """Returns the share of all parameters that a mask prunes: `1 - kept / total`.

    Untouched leaves count as kept. For the share among prunable leaves, and for counts of the zeros that are really
    in the parameters, see `sparsejax.report`.

    Args:
      mask: see the head of the module.
      params: the parameters it belongs to; only their shapes are read.

    Returns:
      A float32 scalar in [0, 1], usable under `jit`; entries are counted exactly in trees of fewer than 2^31 of them.

    Raises:
      ValueError: `mask` is not a mask for `params`, or there is no parameter.

    >>> sparsity({"a": jnp.array([True, False]), "b": jnp.array(True)}, {"a": jnp.ones(2), "b": jnp.ones(2)}).item()
    0.25
    """
    check(mask, params)
    sizes = {name: math.prod(jnp.shape(leaf)) for name, leaf in tree.named(params).items()}
    total = sum(sizes.values())
    if not total:
        raise ValueError("params has no entries, so no share of them can be pruned; pass the tree of parameters")
    dtype = jnp.int32 if total < 2**31 else jnp.float32
    pruned = [
        jnp.sum(~jnp.asarray(leaf), dtype=dtype) * (sizes[name] // max(jnp.size(leaf), 1))
        for name, leaf in tree.named(mask).items()
    ]
    return sum(pruned[1:], start=pruned[0]).astype(jnp.float32) / np.float32(total)


@partial(jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["shape"])
@dataclass(frozen=True)
class Packed:
    """A bool array as bits: `bits` holds eight entries a byte, the first in the highest bit; `shape` is static.

    >>> pack({"a": jnp.array([True, False, True])})["a"].bits.tolist()
    [160]
    """

    bits: jax.Array
    shape: tuple[int, ...]


def pack(mask: Mask) -> chex.ArrayTree:
    """Returns a mask as bits, an eighth of its bytes.

    Args:
      mask: a tree of bool arrays.

    Returns:
      The tree with a `Packed` in place of each array.

    Raises:
      ValueError: a leaf is not bool.

    >>> pack({"a": jnp.array([True, False, True])})["a"].shape
    (3,)
    """
    for name, leaf in tree.named(mask).items():
        _check_bool(name, leaf)
    return jax.tree.map(lambda m: Packed(jnp.packbits(jnp.ravel(m)), jnp.shape(m)), mask)


def unpack(packed: chex.ArrayTree) -> Mask:
    """Returns the mask that was packed.

    Args:
      packed: what `pack` returned.

    Returns:
      A tree of bool arrays.

    Raises:
      ValueError: a leaf is not `Packed`.

    >>> unpack(pack({"a": jnp.array([True, False, True])}))["a"].tolist()
    [True, False, True]
    """

    def restore(leaf: Packed) -> jax.Array:
        _checks.check_kind("packed leaf", leaf, Packed, "pass what sparsejax.masks.pack returned")
        count = math.prod(leaf.shape)
        return jnp.unpackbits(leaf.bits, count=count).reshape(leaf.shape).astype(jnp.bool_)

    return jax.tree.map(restore, packed, is_leaf=lambda node: isinstance(node, Packed))


def _check_bool(name: str, leaf: Any) -> Any:
    """Returns a leaf of a mask; raises `ValueError` unless it is bool."""
    if jnp.result_type(leaf) != jnp.bool_:
        raise ValueError(
            f"mask leaf {name!r} has dtype {jnp.result_type(leaf)}; a mask is bool, True keeps: pass mask != 0"
        )
    return leaf


def _check_sharding(name: str, leaf: Any, param: Any) -> None:
    """Raises `ValueError` if both are on explicit meshes, and not alike: JAX would not say of which leaf."""
    if not (isinstance(leaf, jax.Array) and isinstance(param, jax.Array)):
        return
    own, wanted = jax.typeof(leaf).sharding, jax.typeof(param).sharding
    if not (_is_explicit(own) and _is_explicit(wanted)):
        return
    last = zip(reversed(own.spec), reversed(wanted.spec), reversed(jnp.shape(leaf)), strict=False)
    if own.mesh != wanted.mesh or any(here != there and size > 1 for here, there, size in last):
        raise ValueError(
            f"mask leaf {name!r} is sharded as {own.spec} over {dict(own.mesh.shape)}, but its parameter as "
            f"{wanted.spec} over {dict(wanted.mesh.shape)}; lay it alike with jax.device_put(mask, param.sharding)"
        )


def _is_explicit(sharding: jax.sharding.NamedSharding) -> bool:
    return jax.sharding.AxisType.Explicit in sharding.mesh.axis_types
