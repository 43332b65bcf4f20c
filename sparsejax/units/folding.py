"""Where the constant that units contribute to a layer can go: into a parameter that is added behind it, or subtracted.

From every edge the result is followed through changes of layout and dtype and through sums, to the first parameter that
is added to it (a bias) or subtracted from it (the running mean of a batch norm), and that nothing else uses.
"""

import dataclasses
import weakref
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from sparsejax._types import wide_dtype
from sparsejax.units.atoms import atoms_of
from sparsejax.units.flow import Flow, flow
from sparsejax.units.graph import UnitGraph
from sparsejax.units.program import Body, Equation, Value, bind
from sparsejax.units.roles import Edge
from sparsejax.units.sites import MOVES, Site, at_edge, edge_names

__all__ = ["Fold", "Sink", "contribution", "folds", "place", "unread"]

_known: "weakref.WeakKeyDictionary[UnitGraph, tuple[list[Fold], dict[str, str]]]" = weakref.WeakKeyDictionary()

_SIGNS = {"add": (1, 1), "add_any": (1, 1), "sub": (1, -1)}


@dataclasses.dataclass(frozen=True, eq=False)
class Sink:
    """A parameter that takes a constant.

    Attributes:
      leaf: its name.
      sign: 1 if the constant is added to it, -1 if it is subtracted.
      moves: the changes of layout between the edge's result and the sum, in order.
      shape: of the parameter in that sum.
      chain: the changes of layout from the parameter to the sum, in order.
    """

    leaf: str
    sign: int
    moves: tuple[Equation, ...]
    shape: tuple[int, ...]
    chain: tuple[Equation, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """An edge that reads units, and where their constant goes.

    Attributes:
      name: what `sparsejax.units.sites.edge_names` calls the edge.
      edge: the edge.
      site: the operand with units.
      sink: what takes the constant, or why nothing does.
    """

    name: str
    edge: Edge
    site: Site
    sink: Sink | str


def folds(graph: UnitGraph) -> list[Fold]:
    """Returns the edges of a graph that read units of its groups, and where their constants go; looked for once."""
    return _found(graph)[0]


def unread(graph: UnitGraph) -> dict[str, str]:
    """Returns `{group: reason}` for units that meet other data where no parameter reads them; looked for once."""
    return _found(graph)[1]


def _found(graph: UnitGraph) -> tuple[list[Fold], dict[str, str]]:
    if graph not in _known:
        flows = flow(graph.program.body, len(graph.program.leaves))
        _known[graph] = _folds(graph, flows), _unread(graph, flows)
    return _known[graph]


def _unread(graph: UnitGraph, flows: Flow) -> dict[str, str]:
    edges = {edge.equation for edge in graph.edges}
    found: dict[str, str] = {}
    for equation in _forward(graph.program.body):
        linked = {link.operand for link in equation.pattern.links}
        inputs = [flows.origin(value) for value in equation.inputs]
        for label, (before, after) in equation.pattern.places().items():
            data = [number for number, _ in before if inputs[number] in flows.data or inputs[number] not in flows.uses]
            if after or not data or equation in edges or not linked.isdisjoint(before):
                continue
            atoms = label.atoms or ()
            if all(atom in graph.components.numbers for atom in atoms_of(atoms)):
                for name in graph.along(atoms):
                    found.setdefault(name, f"{equation.name} sums over them where no parameter reads them")
    return found


def contribution(fold: Fold, constants: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns what inputs that are constant add to an edge's result, which has length 1 along axes of data alone.

    Along the axes that a convolution's window slides over it has its whole length: padding is not constant.

    Args:
      fold: the edge.
      constants: the inputs, of the site's shape.
      weights: the other operand.
    """
    equation, number, value = fold.edge.equation, fold.edge.data, fold.edge.value
    pattern, rank = equation.pattern, len(value.shape)
    given = constants.reshape([value.shape[axis] if axis in fold.site.axes else 1 for axis in range(rank)])
    slides = [any(one.frozen for one in axis) for axis in pattern.operands[number]]
    shape = [n if slides[axis] or axis in fold.site.axes else 1 for axis, n in enumerate(value.shape)]
    operands = [weights, weights]
    operands[number] = jnp.broadcast_to(given, shape).astype(value.dtype)
    (result,) = bind(equation, operands)
    return result.astype(wide_dtype(result))


def place(fold: Fold, constant: jax.Array, leaf: jax.Array) -> jax.Array:
    """Returns a parameter that has taken the constant of an edge; a mean over positions where it has one number.

    Args:
      fold: the edge, and a sink.
      constant: what `contribution` returns.
      leaf: the parameter.
    """
    sink = fold.sink
    for move in sink.moves:
        if move.name != "convert_element_type":
            (constant,) = bind(move, [jnp.broadcast_to(constant, move.inputs[0].shape)])
    constant = jnp.broadcast_to(constant, jnp.broadcast_shapes(constant.shape, sink.shape))
    over = tuple(axis for axis, n in enumerate(sink.shape) if n == 1 and constant.shape[axis] > 1)
    constant = constant.mean(over, keepdims=True) if sink.shape else constant.mean()

    def spread(leaf: jax.Array) -> jax.Array:
        for move in sink.chain:
            if move.name != "convert_element_type":
                (leaf,) = bind(move, [leaf])
        return leaf

    (total,) = jax.linear_transpose(spread, jax.ShapeDtypeStruct(leaf.shape, constant.dtype))(constant)
    change = total * (sink.sign * leaf.size / constant.size)  # a mean over the places where the entry is added
    return (leaf.astype(change.dtype) + change).astype(leaf.dtype)


def _folds(graph: UnitGraph, flows: Flow) -> list[Fold]:
    names = {value: name for name, value in graph.program.leaves.items()}
    found = []
    for edge, name in edge_names(graph.edges).items():
        site = at_edge(graph, edge)
        if site is not None:
            sink = "it is in a loop or a branch" if edge.inside else _sink(graph, flows, names, edge)
            found.append(Fold(name, edge, site, sink))
    return found


def _sink(graph: UnitGraph, flows: Flow, names: dict[Value, str], edge: Edge) -> Sink | str:
    outputs = {flows.origin(value) for value in graph.program.body.outputs}
    value, sign, moves = edge.equation.outputs[0], 1, []
    while True:
        uses = flows.uses[value]
        if value in outputs:
            return "its result is returned before a parameter is added"
        if len(uses) != 1:
            return f"its result is used in {len(uses)} places before a parameter is added"
        ((equation, number),) = uses
        if equation.name in MOVES:
            moves.append(equation)
        elif equation.name in _SIGNS:
            signs = _SIGNS[equation.name]
            other = flows.origin(equation.inputs[1 - number])
            found = _leaf(graph, flows, names, other)
            if found is not None:
                return Sink(found[0], sign * signs[number] * signs[1 - number], tuple(moves), other.shape, found[1])
            sign *= signs[number]
        else:
            return f"{equation.name} comes before a parameter that is added"
        value = equation.outputs[0]


def _leaf(
    graph: UnitGraph, flows: Flow, names: dict[Value, str], value: Value
) -> tuple[str, tuple[Equation, ...]] | None:
    """Returns the parameter that a value is, and how it is laid out; none if it is used elsewhere."""
    chain: list[Equation] = []
    outputs = {flows.origin(output) for output in graph.program.body.outputs}
    while len(flows.uses[value]) == 1:
        if value in names:
            free = value not in outputs or names[value] in graph.program.returned
            return (names[value], tuple(reversed(chain))) if free else None
        producer = value.producer
        if value in outputs or producer is None or producer.name not in MOVES | {"broadcast_in_dim"}:
            return None
        chain.append(producer)
        value = flows.origin(producer.inputs[0])
    return None


def _forward(body: Body) -> Iterator[Equation]:
    """Yields the equations without regions of a body, but none of a derivative."""
    for equation in body.equations:
        regions = [region for region in equation.regions if not region.derivative]
        for region in regions:
            yield from _forward(region.body)
        if not equation.regions:
            yield equation
