"""Whether a masked network computes what the smaller one computes, found without running either.

Where units are masked, every parameter that they are in is 0. What that makes of other values is followed through the
program (`sparsejax.units.known`), and wherever units are summed over, contracted or compared it must be the number that
makes no difference. Units that would be seen are inexact.
"""

from collections.abc import Sequence

import numpy as np

from sparsejax.units.atoms import Atom, atoms_of
from sparsejax.units.dataflow import forward
from sparsejax.units.known import Known, constant, meet
from sparsejax.units.program import Equation, Value
from sparsejax.units.rules import rule_of
from sparsejax.units.structure import Program

__all__ = ["seen"]


def seen(program: Program, live: set[Atom]) -> dict[Atom, dict[str, np.ndarray]]:
    """Returns where masked units make a difference, and how.

    Args:
      program: the traced function.
      live: the atoms whose positions may be masked.

    Returns:
      `{atom: {how: bool (size,)}}`.
    """
    analysis = _Masked(live)
    leaves = [Known(along={(i, a): np.zeros(a.size) for i, a in _held(v, live)}) for v in program.leaves.values()]
    arguments = [Known() for _ in program.body.inputs[len(leaves) :]]
    forward(program.body, leaves + arguments, analysis)
    return analysis.found


class _Masked:
    def __init__(self, live: set[Atom]):
        self.live = live
        self.found: dict[Atom, dict[str, np.ndarray]] = {}

    def report(self, atom: Atom, where: np.ndarray, how: str) -> None:
        if where.any():
            before = self.found.setdefault(atom, {})
            before[how] = before.get(how, np.zeros(atom.size, bool)) | where

    def constant(self, value: Value) -> Known:
        return constant(value, self.live)

    def results(self, equation: Equation, operands: Sequence[Known]) -> list[Known]:
        return rule_of(equation).transfer(equation, operands, self.live, self.report)

    def meet(self, first: Known, second: Known) -> Known:
        keys = first.along.keys() | second.along.keys()
        fill = float(meet([np.asarray(first.fill), np.asarray(second.fill)]))
        return Known(fill, {key: meet([first.at(*key), second.at(*key)]) for key in keys})

    def shift(self, fact: Known, by: int) -> Known:
        return Known(fact.fill, {(axis + by, atom): x for (axis, atom), x in fact.along.items() if axis + by >= 0})

    def same(self, first: Known, second: Known) -> bool:
        keys = first.along.keys() | second.along.keys()
        pairs = [(np.asarray(first.fill), np.asarray(second.fill)), *((first.at(*k), second.at(*k)) for k in keys)]
        return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _held(value: Value, live: set[Atom]) -> list[tuple[int, Atom]]:
    return [(axis, atom) for axis, atoms in enumerate(value.axes) for atom in atoms_of(atoms) if atom in live]
