"""Units sorted into groups: those that the same axes of the same leaves compute are one group, with one name."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from sparsejax.groups import Group, Member
from sparsejax.units.atoms import Atom, atoms_of
from sparsejax.units.components import FACTOR, Components
from sparsejax.units.roles import LeafAxis, Roles
from sparsejax.units.structure import Program

__all__ = ["Grouped", "group"]


@dataclasses.dataclass(frozen=True)
class Grouped:
    """The groups of a program.

    Attributes:
      groups: `{name: group}`, exact or not.
      numbers: `{name: int (size,)}`, the components that its units are.
      frozen: for every axis of a leaf some of whose positions are in no group, why.
    """

    groups: dict[str, Group]
    numbers: dict[str, np.ndarray]
    frozen: dict[LeafAxis, str]


def group(
    program: Program, components: Components, roles: Roles, seen: Mapping[Atom, Mapping[str, np.ndarray]]
) -> Grouped:
    """Returns the groups of units.

    Args:
      program: the traced function.
      components: which positions live and die together; those of no group are frozen in it.
      roles: which leaves compute units and which read them.
      seen: where masked units make a difference, and how.
    """
    inexact = _inexact(components, seen)
    _freeze_what_no_leaf_computes(program, components, roles)
    _choose_factors(program, components, inexact)
    along = {
        (name, number): components.along(axis)
        for name, value in program.leaves.items()
        for number, axis in enumerate(value.axes)
    }
    by_key = _kinds(along, roles, inexact)
    for key in [key for key, numbers in by_key.items() if len(numbers) == 1]:
        components.freeze(by_key.pop(key), "there is a single unit of its kind")

    members = _members(list(by_key.values()), along, roles, len(components.frozen))
    names = _names(by_key)
    named = zip(names, by_key.items(), members, strict=True)
    groups = {name: Group(len(numbers), held, key[1]) for name, (key, numbers), held in named}
    numbers = {name: np.asarray(found) for name, found in zip(names, by_key.values(), strict=True)}
    return Grouped(groups, numbers, _frozen(program, components))


Kinds = dict[tuple[tuple[LeafAxis, ...], str], list[int]]
"""Components by the axes that compute them, and why they are not exact."""


def _inexact(components: Components, seen: Mapping[Atom, Mapping[str, np.ndarray]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for atom, ways in seen.items():
        for how, where in ways.items():
            for number in components.numbers[atom][where].tolist():
                found.setdefault(number, how)
    return found


def _freeze_what_no_leaf_computes(program: Program, components: Components, roles: Roles) -> None:
    computed = np.zeros(len(components.frozen), bool)
    for leaf, axis in roles.computes:
        for atom in atoms_of(program.leaves[leaf].axes[axis]):
            computed[components.numbers[atom]] = True
    components.freeze(np.flatnonzero(~computed), "no leaf computes it")


def _choose_factors(program: Program, components: Components, inexact: Mapping[int, str]) -> None:
    """Leaves every axis of a leaf one atom that can lose positions: the first that is exact, or else the first."""
    for value in program.leaves.values():
        for axis in value.axes:
            free = [atom for atom in atoms_of(axis) if components.free(atom).any()]
            if len(free) > 1:
                exact = [atom for atom in free if inexact.keys().isdisjoint(components.numbers[atom].tolist())]
                for atom in free:
                    if atom is not (exact or free)[0]:
                        components.freeze(np.unique(components.numbers[atom]), FACTOR)


def _kinds(along: Mapping[LeafAxis, np.ndarray], roles: Roles, inexact: Mapping[int, str]) -> Kinds:
    computed: dict[int, list[LeafAxis]] = {}
    for place in roles.computes:
        for number in dict.fromkeys(along[place].tolist()):  # in the order in which the leaf has them
            if number >= 0:
                computed.setdefault(number, []).append(place)
    kinds: Kinds = {}
    for number, places in computed.items():
        kinds.setdefault((tuple(places), inexact.get(number, "")), []).append(number)
    return kinds


def _names(kinds: Kinds) -> list[str]:
    """Returns names: of the first leaf that computes the units, without its last part, and with more if need be."""

    def full(leaf: str, axis: int) -> str:
        return leaf.removesuffix("/value")  # of NNX

    def short(leaf: str, axis: int) -> str:
        parent, _, last = full(leaf, axis).rpartition("/")
        return full(leaf, axis) if last.isdigit() or not parent else parent

    def with_axis(leaf: str, axis: int) -> str:
        return f"{full(leaf, axis)}[{axis}]"

    names: dict[str, None] = {}
    for (first, *_), _ in kinds:
        candidates = [form(*first) for form in (short, full, with_axis)]
        candidates += [f"{with_axis(*first)}#{number}" for number in range(2, len(kinds) + 2)]
        names[next(name for name in candidates if name and name not in names)] = None
    return list(names)


def _members(
    kinds: list[list[int]], along: Mapping[LeafAxis, np.ndarray], roles: Roles, count: int
) -> list[tuple[Member, ...]]:
    """Returns the axes that hold the units of each kind, what computes them first."""
    kind_of, unit_of = np.full(count + 1, -1), np.full(count + 1, -1)  # the last entry is for -1, no component
    for kind, numbers in enumerate(kinds):
        kind_of[numbers], unit_of[numbers] = kind, np.arange(len(numbers))
    members: list[list[Member]] = [[] for _ in kinds]
    for leaf, axis in dict.fromkeys([*roles.computes, *roles.reads, *along]):
        kind_here, unit_here = kind_of[along[leaf, axis]], unit_of[along[leaf, axis]]
        reads = (leaf, axis) in roles.reads and (leaf, axis) not in roles.computes
        for kind in dict.fromkeys(kind_here[kind_here >= 0].tolist()):
            units = tuple(np.where(kind_here == kind, unit_here, -1).tolist())
            in_order = units == tuple(range(len(kinds[kind])))
            members[kind].append(Member(leaf, axis, None if in_order else units, reads))
    return [tuple(held) for held in members]


def _frozen(program: Program, components: Components) -> dict[LeafAxis, str]:
    found = {}
    for name, value in program.leaves.items():
        for number, axis in enumerate(value.axes):
            whole = components.along(axis) < 0
            reasons = [
                components.reasons[n] for a in atoms_of(axis) for n in components.numbers[a][~components.free(a)]
            ]
            if not atoms_of(axis):
                found[name, number] = "its size is 1"
            elif whole.any():
                found[name, number] = reasons[0]
    return found
