"""What parameters are to their units: which compute them, and which read them; and the edges at which they are read.

A parameter's axis *reads* units if it is contracted with data along them (the input axis of the next kernel), and
*computes* them if it outlives the meeting with data (a kernel's output axis, a bias, a scale). A tied embedding does
both. Parameters are followed through what is computed from them alone: casts, reshapes, masks, slices of a stack.
"""

import dataclasses
from collections.abc import Sequence

from sparsejax.units.dataflow import forward
from sparsejax.units.patterns import Label, Place
from sparsejax.units.program import Equation, Value, reached_once
from sparsejax.units.structure import Program

__all__ = ["Edge", "LeafAxis", "Roles", "roles"]

LeafAxis = tuple[str, int]
"""A leaf's name, and an axis."""


@dataclasses.dataclass(frozen=True, eq=False)
class Edge:
    """A place where data are contracted with parameters.

    Attributes:
      equation: the product or convolution.
      data: the number of the operand that is data.
      axes: its axes that are contracted.
      weights: the axes of leaves that they are contracted with.
      inside: whether the equation is in a loop or a branch, where it may run any number of times.
    """

    equation: Equation
    data: int
    axes: tuple[int, ...]
    weights: frozenset[LeafAxis]
    inside: bool

    @property
    def value(self) -> Value:
        """The data that is contracted."""
        return self.equation.inputs[self.data]


@dataclasses.dataclass
class Roles:
    """What the axes of leaves are to the units along them.

    Attributes:
      computes: the axes that compute units, in the order of the program.
      reads: the axes that read units, likewise.
      edges: where they are read, likewise.
    """

    computes: dict[LeafAxis, None] = dataclasses.field(default_factory=dict)
    reads: dict[LeafAxis, None] = dataclasses.field(default_factory=dict)
    edges: dict[Equation, Edge] = dataclasses.field(default_factory=dict)


def roles(program: Program) -> Roles:
    """Returns what the axes of a program's parameters are to their units."""
    analysis = _Origins(frozenset(reached_once(program.body)))
    leaves = [
        _Origin(False, tuple(frozenset({(name, axis)}) for axis in range(len(value.shape))))
        for name, value in program.leaves.items()
    ]
    arguments = [_data(value) for value in program.body.inputs[len(leaves) :]]
    forward(program.body, leaves + arguments, analysis)
    found = Roles()
    for one in analysis.of_equations.values():
        found.computes |= one.computes
        found.reads |= one.reads
        found.edges |= one.edges
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Origin:
    """Whether data goes into a value, and if none does the leaves' axes that each of its axes is."""

    data: bool
    axes: tuple[frozenset[LeafAxis], ...]


def _data(value: Value) -> _Origin:
    return _Origin(True, (frozenset(),) * len(value.shape))


class _Origins:
    """The analysis; an equation of a loop is seen several times, and what is found last is true of all turns."""

    def __init__(self, outer: frozenset[Equation]):
        self.outer = outer
        self.of_equations: dict[Equation, Roles] = {}

    def constant(self, value: Value) -> _Origin:
        return _Origin(False, (frozenset(),) * len(value.shape))

    def meet(self, first: _Origin, second: _Origin) -> _Origin:
        pairs = zip(first.axes, second.axes, strict=True)
        return _Origin(first.data or second.data, tuple(one | other for one, other in pairs))

    def shift(self, fact: _Origin, by: int) -> _Origin:
        return _Origin(fact.data, fact.axes[1:] if by < 0 else (frozenset(), *fact.axes))

    def same(self, first: _Origin, second: _Origin) -> bool:
        return first == second

    def results(self, equation: Equation, operands: Sequence[_Origin]) -> list[_Origin]:
        data = any(operand.data for operand in operands)
        results = [[frozenset() for _ in value.shape] for value in equation.outputs]
        found = self.of_equations[equation] = Roles()
        contracted: list[tuple[Place, frozenset[LeafAxis]]] = []
        for before, after in _meetings(equation):
            sources = frozenset().union(*(operands[number].axes[axis] for number, axis in before))
            active = [place for place in before if operands[place[0]].data]
            if after and not data:
                for number, axis in after:
                    results[number][axis] |= sources
            elif after or (len(before) > 1 and not active):  # a product of parameters: no activations have its units
                found.computes.update(dict.fromkeys(sorted(sources)))
            elif len(before) > 1 and len(active) == 1 and sources:
                found.reads.update(dict.fromkeys(sorted(sources)))
                contracted.append((active[0], sources))
        if contracted:
            places, weights = zip(*contracted, strict=True)
            axes = tuple(axis for _, axis in places)
            inside = equation not in self.outer
            found.edges[equation] = Edge(equation, places[0][0], axes, frozenset().union(*weights), inside)
        return [_Origin(data, tuple(axes)) for axes in results]


def _meetings(equation: Equation) -> list[tuple[list[Place], list[Place]]]:
    """Returns the axes of operands and results that are the same, those of links included."""
    found: dict[Label, tuple[list[Place], list[Place]]] = equation.pattern.places()
    linked = {link.operand for link in equation.pattern.links}
    meetings = [(before, after) for before, after in found.values() if after or linked.isdisjoint(before)]
    return meetings + [([link.operand], [link.result]) for link in equation.pattern.links if link.result[1] is not None]
