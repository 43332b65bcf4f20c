"""A loss looked at through a graph: where it sees the units, and which axes count the examples of its batch."""

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.groups import Group
from sparsejax.units.atoms import Axis, atoms_of
from sparsejax.units.components import solve
from sparsejax.units.flow import flow
from sparsejax.units.graph import UnitGraph
from sparsejax.units.program import Value
from sparsejax.units.sites import Site, at_edge, before_pooling, by_position, edge_names, numbered
from sparsejax.units.structure import Program, structure

__all__ = ["Site", "View", "look"]

_seen: weakref.WeakKeyDictionary[UnitGraph, dict[Any, "View"]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """Holds where a loss sees the units of a graph.

    Attributes:
      groups: the groups of the graph.
      program: the loss.
      count: how many examples a batch has.
      examples: the axes that count them: the first of every array of the batch.
      sites: `{name: operand}` where units are taken.
      edges: `{edge: (name of the site, operand that the edge reads)}`.
      unseen: `{group: reason}` for units that are read where nothing can be measured.
    """

    groups: dict[str, Group]
    program: Program
    count: int
    examples: tuple[Axis, ...]
    sites: dict[str, Site]
    edges: dict[str, tuple[str, Site]]
    unseen: dict[str, str]

    def over_positions(self, site: Site, x: jax.Array) -> jax.Array:
        """Returns the means (examples, *site.shape) of an operand over all positions."""
        atoms = _factors(site.value, site)
        examples = [] if self.count == 1 else _example_factors(site, self.examples)
        shape = [size for _, size in atoms]
        kept = [place for place, (factor, _) in enumerate(atoms) if isinstance(factor, int)]
        rest = tuple(place for place in range(len(shape)) if place not in (*kept, *examples))
        x = jnp.transpose(x.reshape(shape), (*examples, *kept, *rest))
        x = x.reshape(self.count, *site.shape, -1)
        return x.mean(-1)

    def by_unit(self, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns means over each unit's places in a site, summed over readers.

        Args:
          values: `{site: (n, *site.turns, *site.shape)}`.

        Returns:
          `{group: (n, size)}`.
        """
        found: dict[str, jax.Array] = {}
        for name, site in self.sites.items():
            readers = values[name].sum(tuple(range(1, 1 + len(site.turns))))
            for group, (axis, units) in site.units.items():
                if group in self.unseen:  # a part of it would look like the whole
                    continue
                x = _gather(readers, axis + 1, units, self.groups[group].size)
                found[group] = found[group] + x.astype(found[group].dtype) if group in found else x
        return found

    def spread(self, means: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the constant that stands for every input of every edge, from the means (*turns, *shape) of the sites.

        It has an axis for every scan around, and those of the input, of length 1 where it is a mean.
        """
        found = {}
        for name, (source, site) in self.edges.items():
            origin, mean = self.sites[source], means[source]
            if origin.equation is not site.equation:  # a unit's mean goes wherever the edge sees the unit
                ((group, (axis, units)),) = site.units.items()
                place, along = origin.units[group]
                mean = _gather(mean.reshape(-1, *origin.shape), place + 1, along, self.groups[group].size)
                mean = jnp.where(units >= 0, mean[:, np.maximum(units, 0)], jnp.zeros((), mean.dtype))
                mean = mean.reshape(-1, *(size if place == axis else 1 for place, size in enumerate(site.shape)))
                mean = jnp.broadcast_to(mean, (len(mean), *site.shape))
            own = [size if axis in site.axes else 1 for axis, size in enumerate(site.value.shape)]
            found[name] = mean.reshape(*site.turns, *own)
        return found


def look(graph: UnitGraph, loss_fn: Callable[..., Any], batch: tuple[Any, ...], at: str) -> View:
    """Returns the view of a loss at the shapes of a batch; it is traced once for every shape.

    Raises:
      ValueError: arrays of the batch have no example, or not the same number of them; the loss is no scalar.
    """
    count = _count(batch)
    leaves, tree_of_batch = jax.tree.flatten(batch)
    shapes = tuple((jnp.shape(x), jnp.result_type(x), bool(getattr(x, "weak_type", False))) for x in leaves)
    key = (loss_fn, at, tree_of_batch, shapes)
    known = _seen.setdefault(graph, {})
    if key in known:
        return known[key]
    program = structure(loss_fn, graph.params, batch)
    outputs = [value.shape for value in program.body.outputs]
    if outputs != [()]:
        raise ValueError(
            f"loss_fn returns arrays of shapes {outputs}; it must return the mean loss of a batch, a scalar"
        )
    view = _view(graph, program, count, at)
    if not program.holds_tracers:
        known[key] = view
    return view


def _view(graph: UnitGraph, program: Program, count: int, at: str) -> View:
    inputs = program.body.inputs[len(program.leaves) :]
    examples = tuple(atoms_of(value.axes[0]) for value in inputs if value.shape)
    own = numbered(graph, program, solve(program))
    flows = flow(program.body, len(program.leaves))
    view = View(graph.groups, program, count, examples, {}, {}, {})
    names: dict[tuple[Any, int], str] = {}
    for edge, name in edge_names(own.edges).items():
        site = at_edge(own, flows, edge)
        if site is None:
            continue
        site = by_position(edge, site) if at == "position" else site
        source = before_pooling(own, flows, site) if at == "activation" else site
        reason = None
        if edge.equation not in flows.loops:
            reason = "it is in a while loop or a branch, where the number of turns is not known"
        elif count > 1 and not _example_factors(source, examples):
            reason = "the examples of a batch are no axis there"
        if reason is not None:
            for group in site.units:
                view.unseen.setdefault(group, f"{name}: {reason}")
            continue
        first = names.setdefault((source.equation, source.operand), name)
        view.sites.setdefault(first, source)
        view.edges[name] = (first, site)
    return view


def _count(batch: tuple[Any, ...]) -> int:
    counts = {jnp.shape(x)[0] for x in jax.tree.leaves(batch) if jnp.ndim(x)}
    if len(counts) != 1 or 0 in counts:
        shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
        raise ValueError(
            f"a batch has arrays of shapes {shapes}; the first axis of all of them must count the same examples, one "
            f"at least: bind other arrays in loss_fn"
        )
    return counts.pop()


def _factors(value: Value, site: Site) -> list[tuple[Any, int]]:
    """Returns the axes of a site, by number, and the atoms of the other axes of its operand, with their sizes."""
    found: list[tuple[Any, int]] = []
    for axis, atoms in enumerate(value.axes):
        whole = axis in site.axes
        found += [(axis, value.shape[axis])] if whole else [(atom, atom.size) for atom in atoms_of(atoms)]
    return found


def _example_factors(site: Site, examples: tuple[Axis, ...]) -> list[int]:
    """Returns which factors of a site's operand count the examples; none if they are not all there."""
    factors = [factor for factor, _ in _factors(site.value, site)]
    for axis in examples:
        if all(atom in factors for atom in axis):
            return [factors.index(atom) for atom in axis]
    return []


def _gather(values: jax.Array, axis: int, units: np.ndarray, size: int) -> jax.Array:
    """Returns the means (n, size) over all that belongs to each unit, which stand along an axis of values (n, ...)."""
    along = values.mean(tuple(place for place in range(1, values.ndim) if place != axis))
    if np.array_equal(units, np.arange(size)):
        return along
    counts = np.bincount(units[units >= 0], minlength=size)
    sums = jnp.zeros((len(along), size), along.dtype).at[:, np.where(units < 0, size, units)].add(along, mode="drop")
    return sums / jnp.asarray(np.maximum(counts, 1), sums.dtype)[None]
