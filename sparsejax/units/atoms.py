"""Array axes as products of atoms, so that a reshape is an equation between products.

An *atom* is a set of positions, 0 to size - 1, that no reshape has cut yet; an *axis* is the product of its atoms, the
first being the slowest, and an axis of length 1 is the empty product. Joining two axes makes them one: atoms of equal
size become the same atom, and of unequal atoms the larger is cut, so that an axis of 12 that is joined with (3, 4)
becomes (3, 4) wherever it is met. Whether atoms are the same is a question to `atoms_of`, once all axes are joined.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Iterable

import numpy as np

__all__ = ["Atom", "Axis", "atoms_of", "freeze", "index_along", "join", "new_axis", "reason_of", "spread"]


@dataclasses.dataclass(eq=False, slots=True)
class Atom:
    """A factor of axes.

    Attributes:
      size: how many positions it has.
      reason: why none of them can be removed; `None`: they can.
      parts: what it has been cut into or joined with, in place of which it stands; `None`: it is whole.
    """

    size: int
    reason: str | None = None
    parts: "tuple[Atom, ...] | None" = None


Axis = tuple[Atom, ...]
"""The atoms whose product is an axis, as they were when it was made; `atoms_of` gives those of today."""


def new_axis(size: int, reason: str | None = None) -> Axis:
    """Returns an axis of its own."""
    if not isinstance(size, int):
        reason = "its size is symbolic"
    elif size == 0:
        reason = "it is empty"
    return () if isinstance(size, int) and size == 1 else (Atom(size, reason),)


def atoms_of(axis: Iterable[Atom]) -> Axis:
    """Returns the atoms that an axis is the product of today."""
    found, waiting = [], list(axis)[::-1]
    while waiting:
        atom = waiting.pop()
        if atom.parts is None:
            found.append(atom)
        else:
            if len(atom.parts) == 1 and (next_parts := atom.parts[0].parts) is not None:
                atom.parts = next_parts  # shortens the way for those who ask next
            waiting.extend(reversed(atom.parts))
    return tuple(found)


def freeze(axis: Iterable[Atom], reason: str) -> None:
    """Forbids to remove positions of an axis; the first reason given stays."""
    for atom in atoms_of(axis):
        atom.reason = atom.reason or reason


def join(left: Iterable[Atom], right: Iterable[Atom]) -> None:
    """Makes two axes of equal length the same; what has no common product structure is frozen."""
    waiting = deque(left), deque(right)
    while waiting[0] and waiting[1]:
        a, b = (_next_atom(side) for side in waiting)
        if a is b:
            continue
        if a.size == b.size:
            _replace(a, (b,))
        elif not _can_divide(a.size, b.size):
            freeze([a, b, *waiting[0], *waiting[1]], "a reshape cuts it where its parts do not")
            return
        else:
            (large, side), small = ((a, 0), b) if a.size > b.size else ((b, 1), a)
            rest = Atom(large.size // small.size)
            _replace(large, (small, rest))
            waiting[side].appendleft(rest)


def reason_of(axis: Axis) -> str | None:
    """Returns why an axis cannot be cut at all, or `None` if some of its atoms can."""
    reasons = [atom.reason for atom in atoms_of(axis)]
    if not reasons:
        return "its size is 1"
    return None if None in reasons else reasons[0]


def index_along(axis: Axis, atom: Atom) -> np.ndarray:
    """Returns the position along an atom for every position along an axis that holds it once; int (axis length,)."""
    axis = atoms_of(axis)
    place = axis.index(atom)
    inner = math.prod(other.size for other in axis[place + 1 :])
    outer = math.prod(other.size for other in axis[:place])
    return np.tile(np.repeat(np.arange(atom.size), inner), outer)


def spread(axis: Axis, kept: "dict[Atom, np.ndarray]") -> np.ndarray | None:
    """Returns which positions along an axis stay if of its atoms those in `kept` do; `None` if all do."""
    axis = atoms_of(axis)
    if not any(atom in kept for atom in axis):
        return None
    stays = np.ones((), bool)
    for atom in axis:
        stays = np.logical_and.outer(stays, kept.get(atom, np.ones(atom.size, bool)))
    return stays.reshape(-1)


def _next_atom(side: deque) -> Atom:
    """Takes the first atom of today off a queue of atoms."""
    atom = side.popleft()
    while atom.parts is not None:
        side.extendleft(reversed(atom.parts))
        atom = side.popleft()
    return atom


def _replace(atom: Atom, parts: Axis) -> None:
    atom.parts = parts
    if atom.reason:
        freeze(parts, atom.reason)


def _can_divide(a: int, b: int) -> bool:
    if not isinstance(a, int) or not isinstance(b, int) or 0 in (a, b):
        return False
    return max(a, b) % min(a, b) == 0
