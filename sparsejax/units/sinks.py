"""Where the constant of an edge can go: the path from its result to the first parameter that is added to it.

The path goes through what is linear in the constant: changes of layout and dtype, sums, and products with what depends
on parameters alone (the scale of a layer, the standard deviation of a batch norm). At its end the parameter is added (a
bias) or subtracted (a running mean), itself or within another sum, and nothing else uses it.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from sparsejax.units.atoms import Atom, atoms_of
from sparsejax.units.flow import Flow
from sparsejax.units.graph import UnitGraph
from sparsejax.units.program import Equation, Value, bind
from sparsejax.units.roles import Edge
from sparsejax.units.sites import MOVES

__all__ = ["Sink", "Step", "factor", "step", "to_parameter", "varying"]

_SIGNS = {"add": (1, 1), "add_any": (1, 1), "sub": (1, -1)}

_FACTORS = frozenset({"mul", "div"})

Step = tuple[Equation, int]
"""An equation, and the number of the operand that is the constant."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sink:
    """A parameter that takes a constant.

    Attributes:
      leaf: its name.
      parameter: itself.
      value: the parameter as it is laid out where it is added.
      sign: 1 if the constant is added to it, -1 if it is subtracted.
      steps: what the constant goes through before.
    """

    leaf: str
    parameter: Value
    value: Value
    sign: int
    steps: tuple[Step, ...]


def to_parameter(graph: UnitGraph, flow: Flow, edge: Edge) -> Sink | str:
    """Returns what takes the constant of an edge, or why nothing does."""
    loops = flow.loops.get(edge.equation)
    if loops is None:
        return "it is in a while loop or a branch"
    if flow.origin(edge.equation.inputs[1 - edge.data]) in flow.data:
        return "its weights come from an earlier turn of a loop"
    value, steps = edge.equation.outputs[0], []
    while True:
        uses = flow.uses[value]
        if value in flow.outputs:
            return f"its result is {'carried on by a loop' if loops else 'returned'} before a parameter is added"
        if len(uses) != 1:
            return f"its result is used in {len(uses)} places before a parameter is added"
        ((equation, number),) = uses
        if flow.loops[equation] != loops:
            return "a loop uses its result before a parameter is added"
        if equation.name in _SIGNS:
            signs = _SIGNS[equation.name]
            other = flow.origin(equation.inputs[1 - number])
            for summand, sign in _summands(flow, other):
                if (leaf := _leaf(graph, flow, summand)) is not None:
                    sign *= signs[number] * signs[1 - number]
                    return Sink(leaf, graph.program.leaves[leaf], summand, sign, tuple(steps))
        elif equation.name in _FACTORS:
            if flow.origin(equation.inputs[1 - number]) in flow.data or (equation.name == "div" and number):
                return f"{equation.name} with data comes before a parameter that is added"
        elif equation.name not in _LINEAR:
            return f"{equation.name} comes before a parameter that is added"
        steps.append((equation, number))
        value = equation.outputs[0]


def factor(one: Step) -> Value | None:
    """Returns what a step multiplies with or divides by, if it does."""
    equation, number = one
    return equation.inputs[1 - number] if equation.name in _FACTORS else None


def varying(flow: Flow, value: Value) -> set[Atom]:
    """Returns the atoms of the axes along which a factor has several numbers: not those that it was broadcast to."""
    value = flow.origin(value)
    while value.producer is not None and value.producer.name == "broadcast_in_dim":
        value = flow.origin(value.producer.inputs[0])
    return {atom for axis in value.axes for atom in atoms_of(axis)}


def step(one: Step, constant: jax.Array, other: jax.Array | None) -> jax.Array:
    """Returns what a step makes of a constant, of which axes of length 1 stand for axes along which it is the same.

    Args:
      one: the step.
      constant: what goes into it.
      other: its `factor`.
    """
    equation, number = one
    other = None if other is None else other.astype(constant.dtype)
    return _LINEAR[equation.name](equation, number, constant, other)


def _move(equation: Equation, number: int, constant: jax.Array, other: None) -> jax.Array:
    (moved,) = bind(equation, [jnp.broadcast_to(constant, equation.inputs[0].shape)])
    return moved


_LINEAR: dict[str, Callable[[Equation, int, jax.Array, jax.Array | None], jax.Array]] = {
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(["add", "add_any", "convert_element_type", "copy"], lambda equation, number, c, other: c),
    "sub": lambda equation, number, c, other: -c if number else c,
    "neg": lambda equation, number, c, other: -c,
    "mul": lambda equation, number, c, other: c * other,
    "div": lambda equation, number, c, other: c / other,
}


def _summands(flow: Flow, value: Value, sign: int = 1) -> Iterator[tuple[Value, int]]:
    """Yields a value and the sums it is made of, with their signs, as far as nothing else uses them."""
    yield value, sign
    producer = value.producer
    if producer is None or producer.name not in _SIGNS or len(flow.uses[value]) != 1 or value in flow.outputs:
        return
    for operand, own in zip(producer.inputs, _SIGNS[producer.name], strict=True):
        yield from _summands(flow, flow.origin(operand), sign * own)


def _leaf(graph: UnitGraph, flow: Flow, value: Value) -> str | None:
    """Returns the name of the parameter that a value is, laid out anew; `None` if it is none, or used elsewhere."""
    names = {leaf: name for name, leaf in graph.program.leaves.items()}
    while len(flow.uses[value]) == 1:
        if value in names:
            return names[value] if value not in flow.outputs or names[value] in graph.program.returned else None
        if value in flow.outputs:
            return None
        if value in flow.slices:
            value, _ = flow.slices[value]
        elif value.producer is not None and value.producer.name in MOVES | {"broadcast_in_dim"}:
            value = flow.origin(value.producer.inputs[0])
        else:
            return None
    return None
