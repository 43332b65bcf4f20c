"""What values are where units are masked, as far as that can be known.

`Known` holds, for an axis of a value and an atom of it, the number that the value is at each of the atom's positions,
whatever the other coordinates, if the unit at that position is masked: 0 for a parameter, 0.5 behind a sigmoid. NaN
stands for a number that is not known. What primitives make of it is in `sparsejax.units.transfers`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.units.atoms import Atom, atoms_of, index_along
from sparsejax.units.patterns import Label, Place
from sparsejax.units.program import Equation, Value

__all__ = ["UNKNOWN", "Known", "Live", "constant", "linked", "meet", "places"]

UNKNOWN = float("nan")
_LARGEST = 2**20

Live = set[Atom]
"""The atoms whose positions may be masked."""


@dataclasses.dataclass(eq=False, slots=True)
class Known:
    """What is known of a value.

    Attributes:
      fill: the number that all its entries are.
      along: the numbers along the axis and atom of the key, float64 (atom size,), where the unit there is masked.
    """

    fill: float = UNKNOWN
    along: dict[tuple[int, Atom], np.ndarray] = dataclasses.field(default_factory=dict)

    def at(self, axis: int | None, atom: Atom) -> np.ndarray:
        """Returns the numbers along an axis and atom; `None` for an axis that the value has not."""
        return self.along.get((axis, atom), np.full(atom.size, self.fill))


def meet(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the number that all parts agree on, and NaN where they do not."""
    first = np.asarray(parts[0], float)
    for other in parts[1:]:
        first = np.where(first == other, first, UNKNOWN)
    return first


def constant(value: Value, live: Live) -> Known:
    """Returns what is known of a constant: where it varies along one atom only, it is what it is there."""
    if isinstance(value.constant, jax.core.Tracer) or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return Known()
    axes = [atoms_of(axis) for axis in value.axes]
    if np.size(value.constant) > _LARGEST and live.isdisjoint(atom for atoms in axes for atom in atoms):
        return Known()
    array = np.asarray(value.constant)
    if not array.size or array.dtype.kind not in "biufV":  # V: ml_dtypes, such as bfloat16
        return Known()
    array = array.astype(float)
    known = Known(float(array.flat[0]) if array.min() == array.max() else UNKNOWN)
    places = [(axis, atom) for axis, atoms in enumerate(axes) for atom in atoms]
    array = array.reshape([atom.size for _, atom in places])
    for dimension, (axis, atom) in enumerate(places):
        if atom in live and np.isnan(known.fill):
            rows = np.moveaxis(array, dimension, 0).reshape(atom.size, -1)
            known.along[axis, atom] = np.where(rows.min(1) == rows.max(1), rows[:, 0], UNKNOWN)
    return known


def places(equation: Equation, live: Live) -> list[tuple[Atom, list[Place], list[Place]]]:
    """Returns the atoms of interest that operands have, and the axes of operands and results that hold them."""
    found = []
    for label, (before, after) in equation.pattern.places().items():
        # An axis that only results have is new, or linked; it has the number that fills the operand.
        found += [
            (atom, before, after)
            for atom in _atoms(label)
            if atom in live and (before or not _is_linked(equation, after))
        ]
    return found


def _atoms(label: Label) -> tuple[Atom, ...]:
    return atoms_of(label.atoms or ())


def _is_linked(equation: Equation, places: list[Place]) -> bool:
    return any(link.result in places for link in equation.pattern.links)


def linked(equation: Equation, operands: Sequence[Known], live: Live) -> dict[Place, dict[Atom, np.ndarray]]:
    """Returns the numbers along results' axes whose positions come from several places."""
    along: dict[Place, np.ndarray] = {}
    for link in equation.pattern.links:
        if link.result[1] is None:
            continue
        if link.result not in along:
            size = equation.outputs[link.result[0]].shape[link.result[1]]
            # What comes from nowhere is the padding, which is pad's second operand.
            along[link.result] = np.full(size, operands[1].fill if equation.name == "pad" else UNKNOWN)
        (number, axis), taken = link.operand, link.sources >= 0
        numbers = _by_position(operands[number], equation.inputs[number], axis, live)
        along[link.result][taken] = numbers[link.sources[taken]]
    return {place: _by_atom(equation.outputs[place[0]], place[1], numbers, live) for place, numbers in along.items()}


def _by_position(known: Known, value: Value, axis: int, live: Live) -> np.ndarray:
    for atom in atoms_of(value.axes[axis]):
        if atom in live:
            return known.at(axis, atom)[index_along(value.axes[axis], atom)]
    return np.full(value.shape[axis], known.fill)


def _by_atom(value: Value, axis: int, numbers: np.ndarray, live: Live) -> dict[Atom, np.ndarray]:
    found = {}
    for atom in atoms_of(value.axes[axis]):
        if atom in live:
            rows = numbers[np.argsort(index_along(value.axes[axis], atom), kind="stable")].reshape(atom.size, -1)
            found[atom] = np.where((rows == rows[:, :1]).all(1), rows[:, 0], UNKNOWN)
    return found
