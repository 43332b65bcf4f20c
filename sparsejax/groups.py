"""Groups of units: which axes of which leaves carry the channels, neurons or heads of a network.

A unit lives and dies as one, so all that belongs to it is listed: what computes it and what reads it. With the layers
`x -> relu(x K1 + b1) -> K2`, the units between them are

    {"hidden": Group(300, (Member("K1", -1), Member("b1", 0), Member("K2", 0, reads=True)))}

Where an axis holds the units in another order, or several times, or with others beside them, `units` says which unit
stands at every position: behind a flattened map of `(h, w, c)` channels it is `tuple(range(c)) * (h * w)`, and behind
the concatenation of two layers each has -1, for no unit of its own, at the other's positions.

Groups are plain static data, keyed by any name. `pull` goes from parameters to units and `push` from units to
parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import _checks, tree
from sparsejax._types import Mask, Params, wide_dtype

__all__ = ["Group", "Member", "check", "pull", "push"]


@dataclass(frozen=True)
class Member:
    """An axis of a leaf that carries the units of a group.

    Attributes:
      leaf: the leaf's name, as `sparsejax.tree.named` gives it.
      axis: the axis, negative from the end.
      units: the unit at every position along the axis, -1 for none of the group's; `None`: position i is unit i.
      reads: whether the leaf is contracted with the units' activations over this axis (the next layer's input axis),
        rather than used to compute them (a kernel's output axis, its bias, a norm's scale).

    >>> Member("Dense_0/kernel", 0, units=(0, 1, 0, 1), reads=True).axis
    0
    """

    leaf: str
    axis: int
    units: Sequence[int] | None = None
    reads: bool = False


@dataclass(frozen=True)
class Group:
    """Units that live in the same place: the channels of a layer, the neurons, the heads.

    Attributes:
      size: how many units there are.
      members: every axis of every leaf that carries them.
      reason: why a network without these units is not the network in which they are masked; empty if it is.

    >>> Group(2, (Member("kernel", -1), Member("bias", 0))).exact
    True
    """

    size: int
    members: tuple[Member, ...]
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether removing masked units changes nothing."""
        return not self.reason


Groups = Mapping[str, Group]
"""`{name: group}`; the names are the user's."""


def check(groups: Groups, params: Params) -> None:
    """Raises unless every member is an axis of a leaf, and every position along it at most one unit's.

    Args:
      groups: `{name: group}`.
      params: the parameters they describe; `jax.ShapeDtypeStruct` leaves will do.

    Raises:
      ValueError: it names the group, the member and what does not fit.

    >>> check({"hidden": Group(2, (Member("bias", 0),))}, {"bias": jnp.ones(2)})
    """
    _checks.check_kind("groups", groups, Mapping, "pass {name: sparsejax.groups.Group(size, members)}")
    if not groups:
        raise ValueError("groups={} describes no units, so there is nothing to prune; list at least one group")
    leaves = tree.named(params)
    taken: dict[tuple[str, int], tuple[np.ndarray, str]] = {}
    for name, group in groups.items():
        _checks.check_kind(f"groups[{name!r}]", group, Group, "pass sparsejax.groups.Group(size, members)")
        _checks.check_kind(
            f"groups[{name!r}].members", group.members, Sequence, "pass a tuple of Member: (Member(...),)"
        )
        if group.size < 1 or not group.members:
            raise ValueError(f"group {name!r} has {group.size} units and {len(group.members)} members; both are >= 1")
        for member in group.members:
            _checks.check_kind(f"a member of groups[{name!r}]", member, Member, "pass Member(leaf, axis)")
            positions, axis = _checked(name, group, member, leaves)
            before, other = taken.get((member.leaf, axis), (np.zeros(positions.shape, bool), ""))
            if np.any(before & (positions >= 0)):
                raise ValueError(
                    f"groups {other!r} and {name!r} both have units at the same positions along axis {axis} of "
                    f"{member.leaf!r}; units that stand in the same place are one group: join the two"
                )
            taken[member.leaf, axis] = (before | (positions >= 0), name)


def pull(groups: Groups, params: Params, of: Callable[[Member], bool] = lambda member: True) -> dict[str, jax.Array]:
    """Returns the sums of all entries that belong to each unit.

    Args:
      groups: `{name: group}`.
      params: a tree with the structure and shapes of the parameters, such as scores; float or integer leaves.
      of: which members to sum over.

    Returns:
      `{name: (size,)}`, float32 or wider.

    Raises:
      ValueError: as `check` does.

    >>> pull({"hidden": Group(2, (Member("k", 1), Member("b", 0)))}, {"k": jnp.ones((3, 2)), "b": jnp.ones(2)})
    {'hidden': Array([4., 4.], dtype=float32)}
    """
    check(groups, params)
    leaves = {name: jnp.asarray(leaf) for name, leaf in tree.named(params).items()}
    sums = {}
    for name, group in groups.items():
        parts = [_sum_by_unit(leaves[member.leaf], member, group.size) for member in group.members if of(member)]
        dtype = wide_dtype(*parts)
        sums[name] = sum((part.astype(dtype) for part in parts), start=jnp.zeros(group.size, dtype))
    return sums


def push(groups: Groups, kept: Mapping[str, chex.Array], params: Params) -> Mask:
    """Returns the mask that removes units from every leaf they are in.

    Args:
      groups: `{name: group}`.
      kept: `{name: bool (size,)}`, `True` keeps; groups without an entry stay whole.
      params: the parameters; only shapes are read.

    Returns:
      A mask: a leaf in `r` members' axes is a bool array that broadcasts along the other axes, the rest is `True`.

    Raises:
      ValueError: an entry of `kept` is not a group's, not bool, or not of its size; or as `check` does.

    >>> groups = {"hidden": Group(2, (Member("k", 1), Member("b", 0)))}
    >>> mask = push(groups, {"hidden": jnp.array([True, False])}, {"k": jnp.ones((3, 2)), "b": jnp.ones(2)})
    >>> mask["k"].tolist(), mask["b"].tolist()
    ([[True, False]], [True, False])
    """
    check(groups, params)
    leaves = tree.named(params)
    masks = {name: jnp.asarray(True) for name in leaves}
    for name, alive in kept.items():
        alive, group = jnp.asarray(alive), lookup(groups, name, "kept")
        if alive.dtype != jnp.bool_ or alive.shape != (group.size,):
            raise ValueError(
                f"kept[{name!r}] is {alive.dtype} of shape {alive.shape}; it must be bool of shape ({group.size},)"
            )
        for member in group.members:
            masks[member.leaf] = masks[member.leaf] & spread(alive, member, leaves[member.leaf], True)
    return tree.replace(params, masks)


def spread(values: jax.Array, member: Member, leaf: Any, other: chex.Numeric) -> jax.Array:
    """Returns `values` (size,), one a unit, where the units stand in a leaf, and `other` at positions of no unit.

    The result broadcasts to the leaf, with its size along the member's axis.
    """
    positions = np.asarray(range(len(values)) if member.units is None else member.units)
    if member.units is not None:
        values = jnp.where(positions >= 0, values[np.maximum(positions, 0)], jnp.asarray(other, values.dtype))
    shape = [1] * jnp.ndim(leaf)
    shape[member.axis] = len(positions)
    return values.reshape(shape)


def lookup(groups: Groups, name: str, argument: str) -> Group:
    """Returns the group of a name; raises `ValueError`, naming the dict it comes from, if there is none."""
    if name not in groups:
        raise ValueError(f"{argument} has an entry {name!r} that is not a group; the groups are {list(groups)}")
    return groups[name]


def _checked(name: str, group: Group, member: Member, leaves: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Returns the unit at every position along a member's axis, and that axis counted from 0."""
    if member.leaf not in leaves:
        raise ValueError(f"group {name!r} has a member {member.leaf!r}, but the leaves are {list(leaves)}")
    shape = jnp.shape(leaves[member.leaf])
    if member.axis not in range(-len(shape), len(shape)):
        raise ValueError(f"group {name!r}: {member.leaf!r} has shape {shape}, so it has no axis {member.axis}")
    length = shape[member.axis]
    positions = np.asarray(range(group.size) if member.units is None else member.units)
    if positions.shape != (length,):
        raise ValueError(
            f"group {name!r}: axis {member.axis} of {member.leaf!r} has {length} positions, not {positions.size}; "
            f"`units` names the unit of each of them, or is None where they are the group's {group.size} units in order"
        )
    if not np.issubdtype(positions.dtype, np.integer) or positions.min() < -1 or positions.max() >= group.size:
        raise ValueError(
            f"group {name!r}: `units` of {member.leaf!r} holds {positions.min()} to {positions.max()}; units are the "
            f"integers 0 to {group.size - 1}, and -1 is none"
        )
    return positions, member.axis % len(shape)


def _sum_by_unit(leaf: jax.Array, member: Member, size: int) -> jax.Array:
    axis = member.axis % leaf.ndim
    by_position = leaf.astype(wide_dtype(leaf)).sum(tuple(i for i in range(leaf.ndim) if i != axis))
    if member.units is None:
        return by_position
    positions = np.asarray(member.units)
    # A negative index would count from the end; one past it is dropped.
    return jnp.zeros(size, by_position.dtype).at[np.where(positions < 0, size, positions)].add(by_position, mode="drop")
