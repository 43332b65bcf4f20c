"""Units of any JAX function: found by tracing it, and removed.

    graph = units.trace(fn, params, *example_args)       # fn(params, *args) -> outputs; nothing is executed
    print(graph)                                         # what can be removed, and why the rest cannot
    kept = {name: scores > threshold for name, scores in graph.pull(importance).items()}
    masked = masks.apply(graph.push(kept), params)       # the same shapes, with zeros
    small, small_fn = shrink(graph, params, kept), graph.small(kept)
    small_fn(small, *args)                               # what fn(masked, *args) is

    stats = units.statistics(graph, loss_fn, params, batches)       # mean activations, and six saliencies
    kept = units.lowest(stats.abs_mrs, 0.2)                         # a fifth of every layer goes
    params = units.remove(graph, params, kept, "mean", stats)       # biases take over what it did on average

A module each, from the bottom: `atoms` (axes as products), `program`, `shuffles` and `flattening` (a traced function
as equations), `patterns`, `layouts`, `movements` and `indexing` (which axes of an equation are the same), `known`,
`transfers` and `elementwise` (what masked units become), `resizing` (primitives on smaller arrays), `rules` (all that
in one table of primitives), `structure` (the axes of a program joined), `components` (units), `dataflow`, `roles` and
`exactness` (facts about values), `grouping`, `replay` (the smaller program), `shrinking` (smaller arrays), `table` and
`graph`. On top of it: `flow` (who uses a value), `sites` and `views` (where a loss sees units), `saliencies`, `folding`
(where constants can go) and `removal`.
"""

from sparsejax.units.graph import UnitGraph, shrink, trace
from sparsejax.units.removal import lowest, remove, unfoldable
from sparsejax.units.saliencies import Statistics, statistics

__all__ = ["Statistics", "UnitGraph", "lowest", "remove", "shrink", "statistics", "trace", "unfoldable"]
