"""What units do, and what their removal would do to a loss: one forward and one backward pass a batch, for all of them.

Every operand that parameters read units from is replaced by itself, with a derivative of its own that reduces
activation times gradient to a number an example and a unit; nothing as large as the activations outlives the pass.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import groups as grouping
from sparsejax import tree
from sparsejax._types import Params, wide_dtype
from sparsejax.groups import Group
from sparsejax.units.graph import UnitGraph
from sparsejax.units.replay import Apply, Probe, run
from sparsejax.units.resizing import Plan
from sparsejax.units.views import Site, View, look

__all__ = ["Statistics", "statistics"]

ByUnit = dict[str, jax.Array]
"""`{group: (size,)}`."""


class Statistics(NamedTuple):
    """Holds the mean activation and the six saliencies of the units of every group that parameters read.

    Saliencies: the lowest are removed first. `a` is a unit's activation, `g` the derivative of an example's loss by it,
    `abar` its mean activation, `<.>` a mean over positions, `E` one over examples, and a unit that several parameters
    read has the sum over them. To first order, times the number of positions, rs and mrs are how the loss changes; but
    where a layer reads a unit and adds to it again (a residual stream), its path through itself is counted twice.

    Attributes:
      mean: `abar`, `{group: (size,)}`; where several parameters read a unit, the mean over what they see.
      rand: uniform in [0, 1).
      norm: the mean square of the kernels' entries that compute the unit.
      rs: `E <-a g>`, the change of the loss without the unit, to first order.
      abs_rs: `E |<-a g>|`.
      mrs: `E <(abar - a) g>`, the change if the unit's mean replaces it, to first order.
      abs_mrs: `E |<(abar - a) g>|`, where abar is the mean of the example's batch.
      inputs: `{edge: means}`, the mean of every input that a parameter reads: what `remove` puts in its place. It has
        an axis for every scan around the edge, then those of the input, all of length 1 where it is a mean.

    >>> stats = Statistics({"hidden": jnp.array([0.5, 0.0])}, *[{}] * 7)
    >>> stats.mean["hidden"].tolist()
    [0.5, 0.0]
    """

    mean: ByUnit
    rand: ByUnit
    norm: ByUnit
    rs: ByUnit
    abs_rs: ByUnit
    mrs: ByUnit
    abs_mrs: ByUnit
    inputs: dict[str, jax.Array]


def statistics(
    graph: UnitGraph,
    loss_fn: Callable[..., chex.Numeric],
    params: Params,
    batches: Iterable[Any],
    *,
    key: chex.PRNGKey | None = None,
    at: str = "consumer_input",
    unseen: str = "raise",
) -> Statistics:
    """Returns the mean activation and the saliencies of the units of all groups: what `remove` and `lowest` need.

    The loss is traced at the shapes of each batch, and units are found in it by their places in the parameters. In a
    scan over stacked layers every layer is a reader; where a scan reads with the same weights in every turn (a
    recurrent cell), means are means over turns, and saliencies are sums. A group that nothing reads has no entry.

    Mean Replacement Pruning (submitted to ICLR 2019), Sections 3.2 and 4.1, Table 1, with the sign of rs as in Eq. 5.

    Args:
      graph: the units.
      loss_fn: `loss_fn(params, *batch)` -> the mean loss of the batch's examples, a scalar. It is traced and compiled
        once for every shape, if it is the same function object each time. Batch norm should be in evaluation mode: in
        training mode the examples of a batch are not independent.
      params: the parameters that the graph was traced with.
      batches: the batches, of any sizes: a tuple of arguments each, or the only one. Every array in them counts
        examples along its first axis; scalars are allowed, and what else there is must be bound in `loss_fn`.
      key: a PRNG key for `rand`; `jax.random.key(0)` if left out.
      at: where activations are taken: "consumer_input", at what the next parameters read, by position if they have
        weights for each; "position", at the same place, but every position that a window slides over by itself, so
        that abar is a map: what exact bias maps need where units differ from place to place (`bias_maps`); or
        "activation", as the paper's code does, before pooling and flattening (not where one input has units of several
        groups).
      unseen: what happens with groups that are read in while loops and branches, or where the batch's examples are no
        axis (a loop over them): "raise", or "drop", which gives them no entry.

    Returns:
      `Statistics`, in float32 or wider.

    Raises:
      ValueError: there are no batches, arrays in one differ in how many examples they have, `loss_fn` gives no scalar,
        `params` do not fit the graph, a group is read where it cannot be seen, or `at` or `unseen` is another word.

    >>> from sparsejax import units
    >>> params = {"in": jnp.array([[1.0, 2.0]]), "out": jnp.array([[1.0], [3.0]])}
    >>> fn = lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"]
    >>> graph = units.trace(fn, params, jnp.ones((2, 1)))
    >>> stats = units.statistics(graph, lambda p, x: fn(p, x).mean(), params, [jnp.array([[1.0], [3.0]])])
    >>> stats.mean["in"].tolist(), stats.rs["in"].tolist()
    ([2.0, 4.0], [-2.0, -12.0])
    """
    if at not in ("consumer_input", "position", "activation") or unseen not in ("raise", "drop"):
        raise ValueError(
            f"at={at!r}, unseen={unseen!r}; at, the place of a unit, is 'consumer_input', 'position' or 'activation', "
            f"unseen is 'raise' or 'drop'"
        )
    tree.check_structure(params, graph.params, "params")
    sums, view = None, None
    for batch in batches:
        batch = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        view = look(graph, loss_fn, batch, at)
        if view.unseen and unseen == "raise":
            raise ValueError(
                f"units of {list(view.unseen)} are read where nothing can be measured: {view.unseen}; write such loops "
                f"as scans that have the examples along an axis, or go without these groups with unseen='drop'"
            )
        found = _sums(view, params, batch)
        sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
    if sums is None:
        raise ValueError("batches has no batch, so nothing is known of the units; give at least one")
    return _finish(view, params, sums, jax.random.key(0) if key is None else key)


class _Sums(NamedTuple):
    """Sums over examples: at every site those of a, g and a g, and for every group the absolute saliencies."""

    sites: dict[str, dict[str, jax.Array]]
    abs_rs: ByUnit
    abs_mrs: ByUnit
    count: jax.Array


@partial(jax.jit, static_argnums=0)
def _sums(view: View, params: Params, batch: tuple) -> _Sums:
    """Returns the sums over a batch."""
    arrays = [jnp.asarray(x) for x in jax.tree.leaves((params, batch))]

    def loss(slots: dict[str, dict[str, jax.Array]]) -> jax.Array:
        probes = {site.equation: _probe(view, site, slots[name]) for name, site in view.sites.items()}
        (result,) = run(view.program.body, arrays, Plan({}), probes)
        return result * jnp.asarray(view.count, result.dtype)  # the sum, whose derivative is each example's

    found = jax.grad(loss)({name: _slot(view, site) for name, site in view.sites.items()})
    found = {name: _examples_first(view.sites[name], parts) for name, parts in found.items()}
    removed = {name: -parts["ag"] for name, parts in found.items()}
    replaced = {name: x["a"].mean(0, keepdims=True) * x["g"] - x["ag"] for name, x in found.items()}
    abs_rs, abs_mrs = (
        {group: jnp.abs(x).sum(0) for group, x in view.by_unit(values).items()} for values in (removed, replaced)
    )
    return _Sums(jax.tree.map(lambda x: x.sum(0), found), abs_rs, abs_mrs, jnp.asarray(view.count, jnp.float32))


def _slot(view: View, site: Site) -> dict[str, jax.Array]:
    """Returns zeros in whose gradients the means over positions of a, g and a g come out, for every example."""
    dtype = wide_dtype(site.value)
    return {part: jnp.zeros((*site.turns, view.count, *site.shape), dtype) for part in ("a", "g", "ag")}


def _examples_first(site: Site, slot: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {part: jnp.moveaxis(x, len(site.turns), 0) for part, x in slot.items()}


def _probe(view: View, site: Site, slot: dict[str, jax.Array]) -> Probe:
    """Returns what watches a site: the sum over turns that share weights goes to the same place, that of a as mean."""

    def reduce(x: jax.Array) -> jax.Array:
        return view.over_positions(site, x)

    @jax.custom_vjp
    def watch(a: jax.Array, slot: dict[str, jax.Array]) -> jax.Array:
        return a

    def backward(a: jax.Array, g: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        wide_a, wide_g = (x.astype(wide_dtype(x)) for x in (a, g))
        return g, {"a": reduce(wide_a) / site.repeats, "g": reduce(wide_g), "ag": reduce(wide_a * wide_g)}

    watch.defvjp(lambda a, slot: (a, a), backward)

    def probe(operands: Sequence[Any], apply: Apply, turns: tuple[Any, ...]) -> list[Any]:
        own = tuple(turn if count > 1 else 0 for turn, count in zip(turns, site.turns, strict=True))
        here = {part: x[own] for part, x in slot.items()}
        return apply([watch(x, here) if number == site.operand else x for number, x in enumerate(operands)])

    return probe


@partial(jax.jit, static_argnums=0)
def _finish(view: View, params: Params, sums: _Sums, key: chex.PRNGKey) -> Statistics:
    """Returns the statistics of sums over all batches."""
    means = jax.tree.map(lambda x: x[None] / sums.count.astype(x.dtype), sums.sites)
    abar = {name: parts["a"] for name, parts in means.items()}
    readers = view.by_unit(jax.tree.map(jnp.ones_like, abar))
    mean = {group: x / jnp.maximum(readers[group], 1) for group, x in view.by_unit(abar).items()}
    rs = view.by_unit({name: -parts["ag"] for name, parts in means.items()})
    mrs = view.by_unit({name: abar[name] * parts["g"] - parts["ag"] for name, parts in means.items()})
    mean, rs, mrs = ({group: x[0] for group, x in values.items()} for values in (mean, rs, mrs))
    abs_rs, abs_mrs = (
        {group: x / sums.count.astype(x.dtype) for group, x in values.items()} for values in (sums.abs_rs, sums.abs_mrs)
    )
    rand = tree.draw(key, mean, jax.random.uniform) if mean else {}
    norm = {group: _norm(view.groups[group], params).astype(x.dtype) for group, x in mean.items()}
    return Statistics(mean, rand, norm, rs, abs_rs, mrs, abs_mrs, view.spread({n: x[0] for n, x in abar.items()}))


def _norm(group: Group, params: Params) -> jax.Array:
    """Returns the mean square of the entries of kernels that compute each unit."""
    leaves = tree.named(params)
    members = [member for member in group.members if not member.reads]
    kernels = [member for member in members if jnp.ndim(leaves[member.leaf]) > 1] or members
    if not kernels:
        return jnp.zeros(group.size)
    counts = np.zeros(group.size)
    for member in kernels:
        shape = jnp.shape(leaves[member.leaf])
        units = np.arange(group.size) if member.units is None else np.asarray(member.units)
        np.add.at(counts, units[units >= 0], np.prod(shape, dtype=int) // shape[member.axis])
    own = {"group": dataclasses.replace(group, members=tuple(kernels))}
    squares = jax.tree.map(lambda x: jnp.square(x.astype(wide_dtype(x))), params)
    total = grouping.pull(own, squares)["group"]
    return total / jnp.maximum(counts, 1).astype(total.dtype)
