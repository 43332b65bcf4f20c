"""How the axes of an equation's operands and results hang together.

A pattern writes every axis as a product of labels, as einops writes `b (h w) c`: axes with the same label are the same
axis. A matrix product is `(m, k), (k, n) -> (m, n)`, a reshape `((a b),) -> (a, b)`. A label that is frozen can lose no
position. Where single positions correspond (a slice, a concatenation), a link says which.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sparsejax.units.atoms import Axis

__all__ = ["Label", "Labels", "Link", "Pattern", "Place", "label", "labels_of", "refine"]

Place = tuple[int, int]
"""The number of an operand or a result, and of its axis."""


@dataclasses.dataclass(eq=False, slots=True)
class Label:
    """An axis, or a factor of one, that operands and results share.

    Attributes:
      size: its length.
      frozen: why it can lose no position; `None`: it can.
      atoms: what it is a product of, once it has been met.
    """

    size: int
    frozen: str | None = None
    atoms: Axis | None = None


Labels = tuple[Label, ...]
"""An axis as a product of labels; the empty product has length 1."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Link:
    """Says from where along an operand's axis the positions of a result's axis come.

    Attributes:
      operand: the operand's axis.
      result: the result's axis; `None` for the number of the axis: a single position is taken out.
      sources: the operand's position for every position of the result, -1 where it comes from elsewhere.
    """

    operand: Place
    result: tuple[int, int | None]
    sources: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Pattern:
    """The axes of operands and results, and the links between them.

    Attributes:
      operands: for each operand, for each axis, its labels.
      results: the same of the results.
      links: which single positions correspond.
    """

    operands: Sequence[Sequence[Labels]]
    results: Sequence[Sequence[Labels]]
    links: Sequence[Link] = ()

    def places(self) -> dict[Label, tuple[list[Place], list[Place]]]:
        """Returns the operands' and the results' axes that each label is part of."""
        found: dict[Label, tuple[list[Place], list[Place]]] = {}
        for side, values in enumerate((self.operands, self.results)):
            for number, axes in enumerate(values):
                for axis, labels in enumerate(axes):
                    for one in labels:
                        found.setdefault(one, ([], []))[side].append((number, axis))
        return found


def label(size: int, frozen: str | None = None) -> Labels:
    """Returns a new axis."""
    return () if isinstance(size, int) and size == 1 else (Label(size, frozen),)


def labels_of(shape: Sequence[int], frozen: str | None = None) -> list[Labels]:
    """Returns new axes for a shape."""
    return [label(size, frozen) for size in shape]


def refine(left: Sequence[int], right: Sequence[int]) -> tuple[list[Labels], list[Labels]]:
    """Returns the labels of two shapes with as many entries in the same order, as a reshape has.

    Both are cut into the largest common factors. Where there are none, the axes up to the next place at which the
    shapes agree again are frozen.
    """
    sides: tuple[list[Labels], list[Labels]] = [], []
    shapes = list(left), list(right)
    rest = [1, 1]  # what is left to label of the axis that each side is at
    while any(shapes) or not _same(*rest):
        for side in (0, 1):
            if _same(rest[side], 1) and shapes[side]:
                rest[side] = shapes[side].pop(0)
                sides[side].append(())
        if _same(rest[0], 1) != _same(rest[1], 1):
            continue
        shared = _shared(*rest)
        if shared is None:
            _freeze_up_to_agreement(sides, shapes, rest)
            continue
        if _same(shared, 1):
            continue
        common = label(shared)
        for side in (0, 1):
            sides[side][-1] += common
            rest[side] = 1 if _same(rest[side], shared) else rest[side] // shared
    return sides


def _same(a: int, b: int) -> bool:
    return a is b or (isinstance(a, int) == isinstance(b, int) and bool(a == b))


def _shared(a: int, b: int) -> int | None:
    if _same(a, b):
        return a
    if not isinstance(a, int) or not isinstance(b, int) or 0 in (a, b) or max(a, b) % min(a, b):
        return None
    return min(a, b)


def _freeze_up_to_agreement(sides: tuple, shapes: tuple, rest: list) -> None:
    reason = "a reshape mixes it with other axes"
    totals = [rest[0], rest[1]]
    for side in (0, 1):
        sides[side][-1] += label(rest[side], reason)
    while not _same(*totals) and any(shapes):
        side = 0 if shapes[0] and (not shapes[1] or _smaller(*totals)) else 1
        size = shapes[side].pop(0)
        totals[side] *= size
        sides[side].append(label(size, reason))
    rest[:] = [1, 1]


def _smaller(a: int, b: int) -> bool:
    return not isinstance(a, int) or not isinstance(b, int) or a < b
