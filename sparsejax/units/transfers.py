"""What primitives make of what is known of their operands where units are masked.

Where positions along an axis are summed up, contracted or compared, masked units must not be seen, and nowhere may they
become 0/0, which no later zero repairs. Functions here are the middle part of a primitive's rule, `(equation, what is
known of the operands, atoms of interest, report) -> what is known of the results`; they report positions at which one
of the two happens.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from sparsejax.units.atoms import Atom
from sparsejax.units.known import UNKNOWN, Known, Live, linked, meet, places
from sparsejax.units.program import Equation

__all__ = [
    "Report",
    "Transfer",
    "accumulation",
    "elementwise",
    "moved",
    "nothing",
    "one_by_one",
    "product",
    "reduction",
    "unknown",
    "zeros_stay",
]

Report = Callable[[Atom, np.ndarray, str], None]
"""`(atom, whether masked units are seen at each of its positions, how)`."""

Transfer = Callable[[Equation, Sequence[Known], Live, Report], list[Known]]


def nothing(equation: Equation, operands: Sequence[Known], live: Live, report: Report) -> list[Known]:
    """Nothing is known of the results, and every position that vanishes was seen."""
    for atom, _, after in places(equation, live):
        if not after:
            report(atom, np.ones(atom.size, bool), f"{equation.name} mixes them")
    return [Known() for _ in equation.outputs]


def elementwise(function: Callable[..., np.ndarray]) -> Transfer:
    """Results are a function `(equation, *numbers)` of the operands; it decides what unknown numbers make of it."""

    def apply(equation: Equation, numbers: Sequence[np.ndarray]) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(function(equation, *numbers), float)

    def transfer(equation, operands, live, report):
        fills = [np.asarray(known.fill) for known in operands]
        results = [Known(float(apply(equation, fills))) for _ in equation.outputs]
        for atom, before, after in places(equation, live):
            axes = dict(before)
            numbers = [one.at(axes[i], atom) if i in axes else fills[i] for i, one in enumerate(operands)]
            result = np.broadcast_to(apply(equation, numbers), (atom.size,))
            if jnp.issubdtype(equation.outputs[0].dtype, jnp.floating):
                given = ~np.logical_or.reduce(np.broadcast_arrays(*(np.isnan(x) for x in numbers)))
                report(atom, np.isnan(result) & given, f"{equation.name} is not a number where one is masked")
            for number, axis in after:
                results[number].along[axis, atom] = result
        return results

    return transfer


def unknown(equation: Equation, operands: Sequence[Known], live: Live, report: Report) -> list[Known]:
    """Nothing is known of the results, which have the axes of the operands."""
    return [Known() for _ in equation.outputs]


def one_by_one(equation: Equation, operands: Sequence[Known], live: Live, report: Report) -> list[Known]:
    """Every result is an operand."""
    return list(operands)


def moved(*sources: int) -> Transfer:
    """Entries of results are entries of these operands (of all of them if none is named)."""

    def transfer(equation, operands, live, report):
        numbers = sources or range(len(operands))
        fill = meet([np.asarray(operands[i].fill) for i in numbers])
        results = [Known(float(fill)) for _ in equation.outputs]
        for atom, before, after in places(equation, live):
            axes = dict(before)
            parts = [operands[i].at(axes.get(i), atom) for i in numbers]
            for result, axis in after:
                results[result].along[axis, atom] = meet(parts)
        for (result, axis), along in linked(equation, operands, live).items():
            results[result].along.update({(axis, atom): numbers for atom, numbers in along.items()})
        return results

    return transfer


def product(equation: Equation, operands: Sequence[Known], live: Live, report: Report) -> list[Known]:
    """Products of two operands are summed over what is contracted, where one of them must be 0."""
    known = Known(0.0 if any(one.fill == 0 for one in operands) else UNKNOWN)
    for atom, before, after in places(equation, live):
        axes = dict(before)
        numbers = [one.at(axes[i], atom) for i, one in enumerate(operands) if i in axes]
        zero, infinite = (np.logical_or.reduce([test(x) for x in numbers]) for test in (_is_zero, np.isinf))
        report(atom, infinite, f"{equation.name} sees infinity where one is masked")
        for _, axis in after:
            known.along[axis, atom] = np.where(zero, 0.0, UNKNOWN)
        if not after:
            report(atom, ~zero, f"{equation.name} sums over them, and neither factor is 0 where one is masked")
    return [known]


def reduction(identity: float, stays: Callable[[np.ndarray], np.ndarray]) -> Transfer:
    """Axes vanish, along which only an operation's identity goes unseen; `stays` tells which numbers it leaves."""

    def transfer(equation, operands, live, report):
        known = Known(float(_left(np.asarray(operands[0].fill), stays)))
        for atom, before, after in places(equation, live):
            numbers = operands[0].at(dict(before)[0], atom)
            for _, axis in after:
                known.along[axis, atom] = _left(numbers, stays)
            if not after:
                text = f"{equation.name} over them does not see {identity:g} where one is masked"
                report(atom, numbers != identity, text)
        return [known]

    return transfer


def accumulation(identity: float) -> Transfer:
    """Entries along an axis depend on those before, among which only an operation's identity goes unseen."""

    def transfer(equation, operands, live, report):
        worked = equation.params["axis"]
        known = Known()
        for atom, before, after in places(equation, live):
            numbers = operands[0].at(dict(before)[0], atom)
            if any(axis == worked for _, axis in after):
                text = f"{equation.name} along them does not see {identity:g} where one is masked"
                report(atom, numbers != identity, text)
            else:
                for _, axis in after:
                    known.along[axis, atom] = np.where(numbers == 0, 0.0, UNKNOWN)
        return [known]

    return transfer


def zeros_stay(*sources: int) -> Transfer:
    """Where these operands are 0, so are the results."""
    transfer_all = moved(*sources)

    def transfer(equation, operands, live, report):
        results = transfer_all(equation, operands, live, report)
        for known in results:
            known.fill = 0.0 if known.fill == 0 else UNKNOWN
            known.along = {key: np.where(numbers == 0, 0.0, UNKNOWN) for key, numbers in known.along.items()}
        return results

    return transfer


def _left(numbers: np.ndarray, stays: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.where(stays(numbers), numbers, UNKNOWN)


def _is_zero(numbers: np.ndarray) -> np.ndarray:
    return numbers == 0
