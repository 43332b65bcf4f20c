"""Which positions live and die together: the units, as the components of positions that are tied.

An axis of which single positions are tied to those of another can lose positions along one of its atoms only. If it is
a product of several that could, the first keeps the right to (the heads of heads x size), unless the tie meets it at a
single position (the halves of a shuffle), and the others are frozen.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from sparsejax.units.atoms import Atom, Axis, atoms_of, index_along
from sparsejax.units.structure import Program, Tie

__all__ = ["FACTOR", "Components", "solve"]

FACTOR = "it is one factor of an axis, and the units along another are pruned"


@dataclasses.dataclass(eq=False)
class Components:
    """The component that every position of every atom of interest is in.

    Attributes:
      numbers: `{atom: int (size,)}`; atoms that are frozen as a whole are in one component.
      reasons: `{component: why it cannot be removed}`, for those that cannot.
      frozen: bool (number of components,): whether it cannot be removed.
    """

    numbers: dict[Atom, np.ndarray]
    reasons: dict[int, str]
    frozen: np.ndarray

    def free(self, atom: Atom) -> np.ndarray:
        """Returns which positions of an atom can be removed."""
        return ~self.frozen[self.numbers[atom]]

    def freeze(self, numbers: Iterable[int], reason: str) -> None:
        """Forbids to remove components; the first reason given stays."""
        for number in numbers:
            self.frozen[number] = True
            self.reasons.setdefault(int(number), reason)

    def along(self, axis: Axis) -> np.ndarray:
        """Returns the component of every position along an axis of which one atom can lose positions; -1 if frozen."""
        for atom in (axis := atoms_of(axis)):
            if (free := self.free(atom)).any():
                return np.where(free, self.numbers[atom], -1)[index_along(axis, atom)]
        return np.full(math.prod(atom.size for atom in axis), -1)


def solve(program: Program) -> Components:
    """Returns the components of a program's positions."""
    leaf_axes = [axis for value in program.leaves.values() for axis in value.axes]
    for axis in leaf_axes:
        _freeze_repeated(axis)
    for tie in program.ties:
        _choose_factors(tie)
    tied = [axis for tie in program.ties for axis in (tie.first, tie.second) if axis is not None]
    start, first = {}, 0
    for atom in dict.fromkeys(atom for axis in leaf_axes + tied for atom in atoms_of(axis)):
        start[atom] = first
        first += 1 if atom.reason else atom.size
    reasons = {number: atom.reason for atom, number in start.items() if atom.reason}
    reasons[first] = "a single position is taken out of it"  # a component of its own for what has no axis

    edges = [_edges(tie, start, first) for tie in program.ties]
    numbers = np.arange(first + 1)
    if edges:
        numbers = _components(numbers, *np.concatenate(edges, axis=1))
    sizes = {atom: 1 if atom.reason else atom.size for atom in start}
    by_atom = {a: np.broadcast_to(numbers[node : node + sizes[a]], (a.size,)) for a, node in start.items()}
    found = Components(by_atom, {}, np.zeros(first + 1, bool))
    for node, reason in reasons.items():
        found.freeze([numbers[node]], reason)
    return found


def _freeze_repeated(axis: Axis) -> None:
    atoms = atoms_of(axis)
    for atom in atoms:
        if atoms.count(atom) > 1:
            atom.reason = atom.reason or "an axis is its product with itself"


def _choose_factors(tie: Tie) -> None:
    taken = tie.positions >= 0
    for axis, positions in ((tie.first, tie.positions[taken]), (tie.second, np.flatnonzero(taken))):
        if axis is None:
            continue
        _freeze_repeated(axis)
        free = [atom for atom in atoms_of(axis) if not atom.reason]
        varying = [atom for atom in free if np.unique(index_along(axis, atom)[positions]).size > 1]
        for atom in free:
            if atom is not (varying or free)[0]:
                atom.reason = FACTOR


def _edges(tie: Tie, start: dict[Atom, int], alone: int) -> np.ndarray:
    taken = tie.positions >= 0
    nodes = _nodes(tie.first, tie.positions[taken], start, alone)
    others = (
        np.full_like(nodes, alone) if tie.second is None else _nodes(tie.second, np.flatnonzero(taken), start, alone)
    )
    return np.stack([nodes, others])


def _nodes(axis: Axis, positions: np.ndarray, start: dict[Atom, int], alone: int) -> np.ndarray:
    atoms = atoms_of(axis)
    for atom in atoms:
        if not atom.reason:
            return start[atom] + index_along(axis, atom)[positions]
    return np.full(len(positions), start[atoms[0]] if atoms else alone)


def _components(numbers: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the smallest node that each node is connected with by edges."""
    while True:
        before = numbers.copy()
        lower = np.minimum(numbers[first], numbers[second])
        for side in (first, second):
            np.minimum.at(numbers, side, lower)
            np.minimum.at(numbers, before[side], lower)
        while not np.array_equal(numbers, shorter := numbers[numbers]):
            numbers = shorter
        if np.array_equal(numbers, before):
            return numbers
