"""What units contributed to a layer on average, place by place: bias maps, where no parameter can take it exactly.

Behind SAME padding a constant makes another sum at the border than in the middle, and a layer may have no bias at all.
A map is what belongs to one edge, so it stands beside the parameters, and is added where the edge's result comes out.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from sparsejax import masks, tree
from sparsejax._types import Params
from sparsejax.units.folding import Fold, contribution, folding, takes_exactly
from sparsejax.units.graph import UnitGraph
from sparsejax.units.program import Value
from sparsejax.units.removal import broadcasts, constants, folded, gone, known_means, reading
from sparsejax.units.replay import Apply, Probe, Probes
from sparsejax.units.resizing import Plan, take
from sparsejax.units.roles import roles
from sparsejax.units.saliencies import Statistics
from sparsejax.units.sites import edge_names, units_in
from sparsejax.units.structure import Program

__all__ = ["bias_maps", "with_maps"]


def bias_maps(
    graph: UnitGraph, params: Params, kept: Mapping[str, chex.Array], stats: Statistics
) -> tuple[Params, dict[str, jax.Array]]:
    """Returns parameters without the units that are not kept, and their mean activation wherever it went, exactly.

    What `remove` with "mean" puts into a bias as a mean over positions, because the bias has one number, and what it
    refuses because there is no bias, is here a map of its own, `conv(abar 1[removed], w)` with the padding of that
    convolution. What a bias takes exactly is in the bias. So the outputs of `with_maps(graph, maps)` are those of the
    whole network if the units that go are constant over examples and positions; if they are constant over examples
    only (a unit behind SAME padding is not at the border what it is in the middle), with statistics taken
    at="position". Biases that are left alone stay what they were: parameters and maps belong together.

    Args:
      graph: the units.
      params: the parameters.
      kept: `{name: bool (size,)}`, `True` keeps; groups without an entry stay whole. May be traced.
      stats: what `statistics` returns for these parameters.

    Returns:
      Parameters of the same structure, shapes and dtypes; and `{edge: map}`, in float32 or wider, of the shape of the
      edge's result at the sizes that were traced, with length 1 along axes of examples. 0 for units that go.

    Raises:
      ValueError: as `remove` does; or a group in `kept` is read in a loop where no parameter takes the constant
        exactly, or meets other data where no parameter reads it (queries and keys).

    >>> from sparsejax import units
    >>> params = {"in": jnp.ones((1, 2)), "out": jnp.array([[1.0], [3.0]])}  # no bias
    >>> fn = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
    >>> graph, kept = units.trace(fn, params, jnp.ones((2, 1))), {"in": jnp.array([True, False])}
    >>> stats = units.statistics(graph, lambda p, x: fn(p, x).mean(), params, [jnp.array([[0.0], [50.0]])])
    >>> bias_maps(graph, params, kept, stats)[1]["out[0]"].tolist()
    [[1.5]]
    """
    tree.check_structure(params, graph.params, "params")
    mask = graph.push(kept)
    folds = reading(graph, kept)
    exact = tuple(fold for fold in folds if takes_exactly(graph, fold))
    others = tuple(fold for fold in folds if fold not in exact)
    lost = {fold.name: _why(fold) for fold in others if fold.edge.inside}
    lost |= {group: reason for group, reason in folding(graph).unread.items() if group in kept}
    if lost:
        raise ValueError(
            f"the means of units in kept cannot be kept as they are: {lost}; leave the groups that are read there out "
            f"of kept, or use sparsejax.units.remove"
        )
    means = known_means(folds, stats)
    kept = {name: jnp.asarray(alive) for name, alive in kept.items()}
    maps = _maps(graph, others, params, kept, means)
    return masks.apply(mask, folded(graph, exact, params, kept, means)), maps


def with_maps(
    graph: UnitGraph, maps: Mapping[str, chex.Array], kept: Mapping[str, chex.Array] | None = None
) -> Callable[..., Any]:
    """Returns the traced function with bias maps added, with the arrays of all units or of those that are kept.

    `with_maps(graph, maps)(params, *args)` takes what `bias_maps` returned, and
    `with_maps(graph, maps, kept)(shrink(graph, params, kept), *args)` computes the same with smaller arrays, as
    `graph.small(kept)` does without maps. It is an ordinary function, of the maps too: `jit`, `grad`, `vmap`, `export`.
    A rematerialised part, or a function with its own derivative, that holds an edge with a map is written out.

    Args:
      graph: the units.
      maps: `{edge: array}` that broadcasts to the result of the edge, all units in it; they may be traced.
      kept: `{name: bool (size,)}`, concrete arrays; `None`: all arrays have all units.

    Returns:
      `(params, *args) -> outputs`.

    Raises:
      ValueError: as `UnitGraph.small` does. From the function: an edge of the maps is not there, or has another size.

    >>> from sparsejax import units
    >>> params = {"in": jnp.ones((1, 2)), "out": jnp.array([[1.0], [3.0]])}
    >>> graph = units.trace(lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"], params, jnp.ones((2, 1)))
    >>> with_maps(graph, {"out[0]": jnp.array([[1.5]])})(params, jnp.zeros((1, 1))).tolist()
    [[1.5]]
    """

    def adding(program: Program, plan: Plan) -> Probes:
        edges = {name: edge for edge, name in edge_names(tuple(roles(program).edges.values())).items()}
        if unknown := sorted(maps.keys() - edges.keys()):
            raise ValueError(f"maps has entries {unknown} that are no edges of the function, which has {list(edges)}")
        results = {name: edges[name].equation.outputs[0] for name in maps}
        return {edges[name].equation: _adder(_cut(name, maps[name], results[name], plan)) for name in maps}

    return graph.small({} if kept is None else kept, adding)


def _why(fold: Fold) -> str:
    return fold.sink if isinstance(fold.sink, str) else f"{fold.sink.leaf} can take a mean over turns or positions only"


@partial(jax.jit, static_argnums=(0, 1))
def _maps(
    graph: UnitGraph,
    folds: tuple[Fold, ...],
    params: Params,
    kept: dict[str, jax.Array],
    means: dict[str, jax.Array],
) -> dict[str, jax.Array]:
    """Returns what the units that are not kept contribute to the results of edges."""
    known = {graph.program.leaves[name]: jnp.asarray(leaf) for name, leaf in tree.named(params).items()}
    maps = {}
    for fold in folds:
        (found,) = contribution(folding(graph), fold, known, constants(fold, kept, means[fold.name]))
        result = fold.edge.equation.outputs[0]
        dead = gone(units_in(graph, result, range(found.ndim)), kept, found.ndim)
        found = jnp.where(dead, jnp.zeros((), found.dtype), found)
        maps[fold.name] = found
    return maps


def _cut(name: str, array: chex.Array, value: Value, plan: Plan) -> jax.Array:
    """Returns what stays of a map; an axis of length 1 stands for all positions."""
    array = jnp.asarray(array)
    if not broadcasts(array.shape, value.shape):
        raise ValueError(
            f"maps[{name!r}] has shape {array.shape}, but at these shapes of arguments the result there has "
            f"{value.shape}; take maps of a graph that is traced at these sizes"
        )
    for axis, own in enumerate(array.shape):
        if own > 1 and plan.stays(value.axes[axis]) is not None:
            array = take(array, axis, plan.positions(value, axis))
    return array


def _adder(array: jax.Array) -> Probe:
    def probe(operands: list[Any], apply: Apply, turns: tuple[Any, ...]) -> list[Any]:
        (result,) = apply(operands)
        return [result + array.astype(result.dtype)]

    return probe
