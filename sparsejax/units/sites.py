"""Where units are seen: the operands that parameters read them from, in a program of the graph's parameters.

In a scan over layers, whose weights are others in every turn, each turn is a reader of its own, as in the loop written
out. A recurrent cell reads with the same weights in every turn: its turns are like positions.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from sparsejax.units.atoms import atoms_of
from sparsejax.units.components import Components
from sparsejax.units.flow import Flow
from sparsejax.units.graph import UnitGraph
from sparsejax.units.program import CALLS, Equation, Value
from sparsejax.units.roles import Edge, roles
from sparsejax.units.structure import Program

__all__ = [
    "MOVES",
    "Site",
    "Units",
    "at_edge",
    "before_pooling",
    "by_position",
    "edge_names",
    "numbered",
    "slides",
    "units_in",
]

MOVES = frozenset({"reshape", "squeeze", "transpose", "expand_dims", "convert_element_type", "copy"})
"""Primitives that change the layout or the dtype of an array, and no more."""

_POOLS = frozenset({"reduce_window_max", "reduce_window_sum", "reduce_window", "reduce_sum", "reduce_max"})

Units = dict[str, tuple[int, np.ndarray]]
"""`{group: (axis, int (axis length,))}`: the unit at every position along an axis, -1 for none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """An operand of an equation that holds units.

    Attributes:
      equation: what reads the operand.
      operand: its number.
      axes: the axes along which means are kept apart: those that hold units, and those with their own weights.
      units: which unit stands at the positions of which of `axes`; axes are counted among `axes`.
      turns: for every scan around it, how many turns have weights of their own; 1 if they share them.
      repeats: how many turns share weights.
    """

    equation: Equation
    operand: int
    axes: tuple[int, ...]
    units: Units
    turns: tuple[int, ...] = ()
    repeats: int = 1

    @property
    def value(self) -> Value:
        """The operand."""
        return self.equation.inputs[self.operand]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of `axes`."""
        return tuple(self.value.shape[axis] for axis in self.axes)


def edge_names(edges: Sequence[Edge]) -> dict[Edge, str]:
    """Returns a name for every edge: what reads there, `kernel[0]`, numbered if it reads several times."""
    names: dict[Edge, str] = {}
    taken: dict[str, int] = {}
    for edge in edges:
        name = ", ".join(f"{leaf}[{axis}]" for leaf, axis in sorted(edge.weights))
        taken[name] = taken.get(name, 0) + 1
        names[edge] = name if taken[name] == 1 else f"{name} #{taken[name]}"
    return names


def slides(edge: Edge, axis: int) -> bool:
    """Returns whether the window of a convolution slides over an axis of the data."""
    return any(label.frozen for label in edge.equation.pattern.operands[edge.data][axis])


def numbered(graph: UnitGraph, program: Program, components: Components) -> UnitGraph:
    """Returns the graph for another program of the same parameters: its units are found by where they are in them."""
    numbers = {}
    for name, group in graph.groups.items():
        numbers[name] = np.full(group.size, -2)  # -1 is what cannot be removed
        for member in group.members:
            axes = program.leaves[member.leaf].axes
            found = components.along(axes[member.axis])
            units = np.arange(group.size) if member.units is None else np.asarray(member.units)
            here = (units >= 0) & (found >= 0)
            numbers[name][units[here]] = found[here]
    edges = tuple(roles(program).edges.values())
    return dataclasses.replace(graph, program=program, components=components, numbers=numbers, edges=edges)


def at_edge(graph: UnitGraph, flow: Flow, edge: Edge) -> Site | None:
    """Returns the operand that an edge reads; `None` if it has no units that can be removed."""
    shared = {label for axis in edge.equation.pattern.operands[1 - edge.data] for label in axis}
    labels = edge.equation.pattern.operands[edge.data]
    axes = tuple(axis for axis, found in enumerate(labels) if axis in edge.axes or not shared.isdisjoint(found))
    units = units_in(graph, edge.value, edge.axes)
    own = flow.varies(edge.equation.inputs[1 - edge.data])
    lengths = [(loop.params["length"], loop in own) for loop in flow.loops.get(edge.equation, ())]
    turns = tuple(length if apart else 1 for length, apart in lengths)
    repeats = math.prod(length for length, apart in lengths if not apart)
    return Site(edge.equation, edge.data, axes, _among(units, axes), turns, repeats) if units else None


def by_position(edge: Edge, site: Site) -> Site:
    """Returns the operand of an edge with means kept apart along the axes that a window slides over."""
    axes = tuple(axis for axis in range(len(edge.value.shape)) if axis in site.axes or slides(edge, axis))
    units = {name: (axes.index(site.axes[place]), along) for name, (place, along) in site.units.items()}
    return dataclasses.replace(site, axes=axes, units=units)


def before_pooling(graph: UnitGraph, flow: Flow, site: Site) -> Site:
    """Returns where the units of an operand were before they were pooled, flattened or otherwise laid out anew."""
    equation, operand = site.equation, site.operand
    while (source := _pooling(flow, equation.inputs[operand])) is not None:
        equation, operand = source, 0
    loops = [flow.loops.get(one) for one in (equation, site.equation)]
    if equation is site.equation or len(site.units) > 1 or loops[0] != loops[1]:
        return site
    value = equation.inputs[operand]
    found = units_in(graph, value, range(len(value.shape)))
    units = {name: place for name, place in found.items() if name in site.units}
    if units.keys() != site.units.keys():
        return site
    axes = tuple(sorted({axis for axis, _ in units.values()}))
    return dataclasses.replace(site, equation=equation, operand=operand, axes=axes, units=_among(units, axes))


def units_in(graph: UnitGraph, value: Value, axes: Sequence[int]) -> Units:
    """Returns the units of groups along axes of a value; the first axis for each."""
    found: Units = {}
    known = graph.components.numbers
    for axis in axes:
        if not all(atom in known for atom in atoms_of(value.axes[axis])):  # no axis of a parameter
            continue
        for name, units in graph.along(value.axes[axis]).items():
            if name in graph.groups:
                found.setdefault(name, (axis, units))
    return found


def _among(units: Units, axes: tuple[int, ...]) -> Units:
    return {name: (axes.index(axis), along) for name, (axis, along) in units.items()}


def _pooling(flow: Flow, value: Value) -> Equation | None:
    """Returns the equation that pools or moves what a value is made of, if one does."""
    while value.producer is None and value in flow.same:
        value = flow.same[value]
    producer = value.producer
    if producer is None:
        return None
    if producer.name in MOVES | _POOLS:
        return producer
    if producer.name in ("div", "mul"):  # by the number of positions that an average pool has summed up
        source = None if flow.origin(producer.inputs[1]) in flow.data else _pooling(flow, producer.inputs[0])
        return source if source is not None and source.name in ("reduce_window_sum", "reduce_sum") else None
    operands = [operand for operand in producer.inputs if flow.origin(operand) in flow.data]
    shrinks = len(operands) == 1 == len(producer.outputs) and _size(producer.outputs[0]) < _size(operands[0])
    pools = producer.name in CALLS and producer.regions and shrinks and operands[0] is producer.inputs[0]
    if pools and not any(inner.name in ("dot_general", "conv_general_dilated") for inner in _inside(producer)):
        return producer
    return None


def _inside(call: Equation) -> Sequence[Equation]:
    return call.regions[0].body.equations


def _size(value: Value) -> int:
    return int(np.prod(value.shape, dtype=int))
