"""Units of any JAX function: found by tracing it, and removed.

    graph = units.trace(fn, params, *example_args)       # fn(params, *args) -> outputs; nothing is executed
    print(graph)                                         # what can be removed, and why the rest cannot
    kept = {name: scores > threshold for name, scores in graph.pull(importance).items()}
    masked = masks.apply(graph.push(kept), params)       # the same shapes, with zeros
    small, small_fn = shrink(graph, params, kept), graph.small(kept)
    small_fn(small, *args)                               # what fn(masked, *args) is

    stats = units.statistics(graph, loss_fn, params, batches)       # mean activations, and six saliencies
    kept = units.lowest(stats.abs_mrs, 0.2)                         # a fifth of every layer goes
    kept = units.affordable(graph, stats.abs_mrs, budget)           # or as many as a budget allows, of all layers
    params = units.remove(graph, params, kept, "mean", stats)       # biases take over what it did on average
    params, maps = units.bias_maps(graph, params, kept, stats)      # or exactly, at the border of a padded map too
    units.with_maps(graph, maps, kept)(shrink(graph, params, kept), *args)

`graph.small` runs the smaller arrays with the code that was traced. A module whose widths are arguments can be built
with the smaller ones instead, `width = int(kept[name].sum())`, and takes the same arrays:

    Net(width).apply(small, x)                                                     # Linen
    model = Net(width, rngs=rngs); nnx.update(model, small); model(x)              # NNX; params is nnx.state(model)
    arrays, rest = eqx.partition(Net(width, key=key), eqx.is_array)                # Equinox; params is its arrays
    model = eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), jax.tree.leaves(small)), rest)

>>> import jax, flax.linen as nn
>>> net, x = lambda width: nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(2)]), jax.numpy.ones((1, 3))
>>> params = net(4).init(jax.random.key(0), x)
>>> graph, kept = trace(net(4).apply, params, x), {"params/layers_0": jax.numpy.array([True, False, True, True])}
>>> small = shrink(graph, params, kept)
>>> (net(3).apply(small, x) - graph.small(kept)(small, x)).tolist()
[[0.0, 0.0]]

A module each, from the bottom: `atoms` (axes as products), `program`, `shuffles` and `flattening` (a traced function
as equations), `patterns`, `layouts`, `movements` and `indexing` (which axes of an equation are the same), `known`,
`transfers` and `elementwise` (what masked units become), `resizing` (primitives on smaller arrays), `rules` (all that
in one table of primitives), `structure` (the axes of a program joined), `components` (units), `dataflow`, `roles` and
`exactness` (facts about values), `grouping`, `replay` (the smaller program), `shrinking` (smaller arrays), `table` and
`graph`. On top of it: `choosing` (units that stay), `flow` (who uses a value), `sites` and `views` (where a
loss sees units), `saliencies`, `sinks` (where constants can go), `folding`, `removal` and `maps`.
"""

from sparsejax.units.choosing import affordable, lowest
from sparsejax.units.graph import UnitGraph, shrink, trace
from sparsejax.units.maps import bias_maps, with_maps
from sparsejax.units.removal import remove, unfoldable
from sparsejax.units.saliencies import Statistics, statistics

__all__ = [
    "Statistics",
    "UnitGraph",
    "affordable",
    "bias_maps",
    "lowest",
    "remove",
    "shrink",
    "statistics",
    "trace",
    "unfoldable",
    "with_maps",
]
