"""What the constant of units makes of a layer, and how the parameter behind it takes it.

In a scan the constant of every turn is computed, if turns have weights, factors or biases of their own: each layer's
bias takes the layer's constant.
"""

import dataclasses
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax._types import wide_dtype
from sparsejax.units.atoms import atoms_of
from sparsejax.units.flow import Flow, flow
from sparsejax.units.graph import UnitGraph
from sparsejax.units.program import Body, Equation, Value, bind
from sparsejax.units.roles import Edge
from sparsejax.units.sinks import Sink, factor, step, to_parameter, varying
from sparsejax.units.sites import Site, at_edge, edge_names, slides

__all__ = ["Fold", "Folding", "contribution", "folding", "place", "takes_exactly"]

_known: "weakref.WeakKeyDictionary[UnitGraph, Folding]" = weakref.WeakKeyDictionary()

Known = dict[Value, jax.Array]
"""The parameters, by what they are in the program."""


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """An edge that reads units, and where their constant goes.

    Attributes:
      name: what `sparsejax.units.sites.edge_names` calls the edge.
      edge: the edge.
      site: the operand with units.
      sink: what takes the constant, or why nothing does.
      turns: `{scan around it: number of turns that differ}`; 1 if all turns have the same weights and parameters.
    """

    name: str
    edge: Edge
    site: Site
    sink: Sink | str
    turns: dict[Equation, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the operand."""
        return self.edge.value.shape

    @property
    def weights(self) -> Value:
        """The other operand."""
        return self.edge.equation.inputs[1 - self.edge.data]


@dataclasses.dataclass(frozen=True, eq=False)
class Folding:
    """Holds where the constants of a graph's units go.

    Attributes:
      flow: how values flow through its program.
      folds: the edges that read units of its groups.
      unread: `{group: reason}` for units that meet other data where no parameter reads them.
    """

    flow: Flow
    folds: list[Fold]
    unread: dict[str, str]


def folding(graph: UnitGraph) -> Folding:
    """Returns where the constants of a graph's units go; looked for once."""
    if graph not in _known:
        found = flow(graph.program.body, len(graph.program.leaves))
        _known[graph] = Folding(found, _folds(graph, found), _unread(graph, found))
    return _known[graph]


def contribution(found: Folding, fold: Fold, known: Known, constants: jax.Array) -> jax.Array:
    """Returns what inputs that are constant add to an edge's result, which has length 1 along axes of data alone.

    Along the axes that a convolution's window slides over it has its whole length: padding is not constant.

    Args:
      found: the folding.
      fold: the edge.
      known: the parameters.
      constants: the inputs, an axis for every scan around and then those of the input, of length 1 where equal.

    Returns:
      `(number of turns that differ, *result)`, in float32 or wider.
    """
    value = fold.edge.value
    window = [n if slides(fold.edge, axis) else 1 for axis, n in enumerate(value.shape)]
    shape = np.broadcast_shapes((*fold.turns.values(), *window), constants.shape)
    constants = jnp.broadcast_to(constants, shape).reshape(-1, *shape[len(fold.turns) :]).astype(value.dtype)

    def one(turns: dict[Equation, jax.Array], constants: jax.Array) -> jax.Array:
        weights = found.flow.compute(fold.weights, dict(known), turns)
        operands = [weights, weights]
        operands[fold.edge.data] = constants
        (result,) = bind(fold.edge.equation, operands)
        return result.astype(wide_dtype(result))

    return _in_all_turns(fold, one, constants)


def place(found: Folding, fold: Fold, known: Known, constant: jax.Array) -> jax.Array:
    """Returns a parameter that has taken the constant of an edge; a mean over positions where it has one number.

    Args:
      found: the folding.
      fold: the edge, and a sink.
      known: the parameters.
      constant: what `contribution` returns.
    """
    sink, shape = fold.sink, fold.sink.value.shape

    def through(turns: dict[Equation, jax.Array], constant: jax.Array) -> jax.Array:
        for one in sink.steps:
            other = factor(one)
            constant = step(one, constant, None if other is None else found.flow.compute(other, dict(known), turns))
        return jnp.broadcast_to(constant, jnp.broadcast_shapes(constant.shape, shape))

    constant = _in_all_turns(fold, through, constant)
    over = tuple(1 + axis for axis, n in enumerate(shape) if n == 1 and constant.shape[1 + axis] > 1)
    constant = constant.mean(over, keepdims=True) if shape else constant.mean(tuple(range(1, constant.ndim)))
    leaf = known[sink.parameter]

    def spread(leaf: jax.Array) -> jax.Array:
        return _in_all_turns(fold, lambda turns: _laid_out(found.flow, sink.value, leaf, turns))

    (total,) = jax.linear_transpose(spread, jax.ShapeDtypeStruct(leaf.shape, constant.dtype))(constant)
    change = total * (sink.sign * leaf.size / constant.size)  # a mean over the places where the entry is added
    return (leaf.astype(change.dtype) + change).astype(leaf.dtype)


def takes_exactly(graph: UnitGraph, fold: Fold) -> bool:
    """Returns whether a parameter has a number for every place at which the constant of an edge differs."""
    if isinstance(fold.sink, str):
        return False
    found, edge, sink = folding(graph).flow, fold.edge, fold.sink
    alone = [a for a in range(len(edge.value.shape)) if a not in fold.site.axes and not slides(edge, a)]
    result = edge.equation.outputs[0]
    needed = {atom for axis in result.axes for atom in atoms_of(axis)}
    needed -= {atom for axis in alone for atom in atoms_of(edge.value.axes[axis])}
    factors = [other for one in sink.steps if (other := factor(one)) is not None]
    needed = needed.union(*(varying(found, other) for other in factors))
    loops = found.varies(fold.weights).union(*(found.varies(other) for other in factors))
    has = {atom for axis in sink.parameter.axes for atom in atoms_of(axis)}
    return needed <= has and loops <= found.varies(sink.value)


def _folds(graph: UnitGraph, found: Flow) -> list[Fold]:
    folds = []
    for edge, name in edge_names(graph.edges).items():
        site = at_edge(graph, found, edge)
        if site is None:
            continue
        sink = to_parameter(graph, found, edge)
        values = [edge.equation.inputs[1 - edge.data]]
        if isinstance(sink, Sink):
            values += [sink.value, *(other for one in sink.steps if (other := factor(one)) is not None)]
        differ = frozenset().union(*map(found.varies, values))
        loops = found.loops.get(edge.equation, ())
        turns = {loop: loop.params["length"] if loop in differ else 1 for loop in loops}
        folds.append(Fold(name, edge, site, sink, turns))
    return folds


def _in_all_turns(fold: Fold, function: Callable[..., jax.Array], *stacked: jax.Array) -> jax.Array:
    """Returns a function of the numbers of the turns of the scans around an edge, and of what differs with them."""
    lengths = tuple(fold.turns.values())
    numbers = np.stack(np.unravel_index(np.arange(math.prod(lengths)), lengths or (1,)), -1)
    return jax.vmap(lambda own, *args: function(dict(zip(fold.turns, own, strict=False)), *args))(numbers, *stacked)


def _laid_out(found: Flow, value: Value, leaf: jax.Array, turns: dict[Equation, Any]) -> jax.Array:
    """Returns what a value is that is a parameter laid out anew, in the parameter's dtype."""
    value = found.origin(value)
    if value in found.slices:
        outer, loop = found.slices[value]
        return _laid_out(found, outer, leaf, turns)[turns[loop]]
    if value.producer is None:
        return leaf
    source = _laid_out(found, value.producer.inputs[0], leaf, turns)
    return source if value.producer.name == "convert_element_type" else bind(value.producer, [source])[0]


def _unread(graph: UnitGraph, found: Flow) -> dict[str, str]:
    edges = {edge.equation for edge in graph.edges}
    unread: dict[str, str] = {}
    for equation in _forward(graph.program.body):
        linked = {link.operand for link in equation.pattern.links}
        inputs = [found.origin(value) for value in equation.inputs]
        for label, (before, after) in equation.pattern.places().items():
            data = [number for number, _ in before if inputs[number] in found.data or inputs[number] not in found.uses]
            if after or not data or equation in edges or not linked.isdisjoint(before):
                continue
            atoms = label.atoms or ()
            if all(atom in graph.components.numbers for atom in atoms_of(atoms)):
                for name in graph.along(atoms):
                    unread.setdefault(name, f"{equation.name} sums over them where no parameter reads them")
    return unread


def _forward(body: Body) -> Iterator[Equation]:
    """Yields the equations without regions of a body, but none of a derivative."""
    for equation in body.equations:
        regions = [region for region in equation.regions if not region.derivative]
        for region in regions:
            yield from _forward(region.body)
        if not equation.regions:
            yield equation
