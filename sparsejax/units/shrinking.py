"""Arrays cut to the units that stay: parameters, and whatever is shaped and named like them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import groups as grouping
from sparsejax import tree
from sparsejax._types import Params
from sparsejax.groups import Group, Groups
from sparsejax.units.roles import LeafAxis

__all__ = ["Stays", "cut_tree", "staying"]

Stays = dict[LeafAxis, np.ndarray]
"""Which positions along an axis of a leaf stay, for those that lose any."""


Name = tuple[str, ...]
"""The parts of a leaf's name."""


def staying(groups: Groups, kept: Mapping[str, Any], params: Params) -> Stays:
    """Returns which positions of leaves stay.

    Args:
      groups: `{name: group}`.
      kept: `{name: bool (size,)}`, concrete.
      params: the parameters, or their shapes.

    Raises:
      ValueError: an entry of `kept` is traced, not bool, not of its group's size, or keeps nothing.
    """
    leaves, stays = tree.named(params), {}
    for name, alive in kept.items():
        group = grouping.lookup(groups, name, "kept")
        alive = _concrete(name, alive, group)
        if alive.all():
            continue
        for member in group.members:
            rank = len(jnp.shape(leaves[member.leaf]))
            place = member.leaf, member.axis % rank
            units = np.arange(group.size) if member.units is None else np.asarray(member.units)
            here = np.where(units >= 0, alive[np.maximum(units, 0)], True)
            stays[place] = stays.get(place, True) & here
    return {place: here for place, here in stays.items() if not here.all()}


def cut_tree(stays: Stays, params: Params, state: Any) -> Any:
    """Returns a tree of which the leaves that are parameters, or are named like them, are cut.

    Args:
      stays: which positions of parameters stay.
      params: the whole parameters, or their shapes.
      state: a tree with the structure of the parameters, or one that has such trees inside (an optimizer's state): a
        leaf belongs to the parameter whose name (or all of it but the first part) its own name ends with, and is cut
        along the axes that it has of it.

    Raises:
      ValueError: no leaf belongs to a parameter, or one does that has other axes.
    """
    shapes = {tuple(name.split("/")): jnp.shape(leaf) for name, leaf in tree.named(params).items()}
    leaves = jax.tree_util.tree_leaves_with_path(state)
    owners = [_owner(path, leaf, shapes) for path, leaf in leaves]
    if leaves and all(owner is None for owner in owners):
        raise ValueError(
            f"no leaf of the tree is named like a parameter: it has {[_name(path) for path, _ in leaves][:3]}, the "
            f"parameters are {['/'.join(name) for name in shapes][:3]}; give a tree with the structure of params, or "
            f"one that contains such trees"
        )
    axes = {
        number: _axes(_name(path), leaf, shapes[owner], "/".join(owner), stays)
        for number, ((path, leaf), owner) in enumerate(zip(leaves, owners, strict=True))
        if owner is not None
    }
    touched = {number: leaves[number][1] for number, positions in axes.items() if positions}

    def cut(arrays: dict[int, Any]) -> dict[int, Any]:
        return {number: _take(array, axes[number]) for number, array in arrays.items()}

    # All at once: every gather on its own would be compiled on its own.
    concrete = all(isinstance(leaf, jax.Array | np.ndarray) for leaf in touched.values())
    done = jax.jit(cut)(touched) if concrete else jax.eval_shape(cut, touched)
    return jax.tree.unflatten(
        jax.tree.structure(state), [done.get(number, leaf) for number, (_, leaf) in enumerate(leaves)]
    )


def _concrete(name: str, alive: Any, group: Group) -> np.ndarray:
    if isinstance(alive, jax.core.Tracer):
        raise ValueError(
            f"kept[{name!r}] is traced, but the shapes of a smaller network must be known; choose the units outside of "
            f"jit, or mask them inside with graph.push"
        )
    alive = np.asarray(alive)
    if alive.dtype != bool or alive.shape != (group.size,):
        raise ValueError(
            f"kept[{name!r}] is {alive.dtype} of shape {alive.shape}; it must be bool of shape ({group.size},)"
        )
    if not alive.any():
        raise ValueError(f"kept[{name!r}] keeps no unit, which would leave arrays of size 0; keep one at least")
    return alive


def _name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _owner(path: Sequence[Any], leaf: Any, shapes: Mapping[Name, tuple[int, ...]]) -> Name | None:
    """Returns the name of the parameter that a leaf's name ends with, the longest if there are several.

    The optimizer may know nothing of the collection that parameters are in: their name but for the first part will do,
    if the shape fits and no other parameter has it.
    """
    parts = tuple(part for key in path for part in _name([key]).split("/"))
    for start in range(len(parts) + 1):
        if parts[start:] in shapes:
            return parts[start:]
        inner = [name for name in shapes if len(name) > 1 and name[1:] == parts[start:]]
        if len(inner) == 1 and _fits(jnp.shape(leaf), shapes[inner[0]]):
            return inner[0]
    return ("",) if ("",) in shapes else None  # a bare array


def _fits(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(own) == len(shape) and all(size in (1, full) for size, full in zip(own, shape, strict=True))


def _axes(name: str, leaf: Any, shape: tuple[int, ...], owner: str, stays: Stays) -> dict[int, np.ndarray]:
    """Returns the positions that stay along the axes of a leaf that lose any; an axis of length 1 stands for all."""
    own, axes = jnp.shape(leaf), {axis: here for (other, axis), here in stays.items() if other == owner}
    if not axes or all(size == 1 for size in own):
        return {}
    if not _fits(own, shape):
        raise ValueError(
            f"leaf {name!r} has shape {own}, but is named like the parameter {owner!r} of shape {shape}, from which "
            f"units go; how to cut it is not known: initialise it anew from the smaller parameters"
        )
    return {axis: np.flatnonzero(here) for axis, here in axes.items() if own[axis] != 1}


def _take(array: Any, axes: Mapping[int, np.ndarray]) -> Any:
    for axis, positions in axes.items():
        array = jnp.take(array, positions, axis, mode="clip")
    return array
