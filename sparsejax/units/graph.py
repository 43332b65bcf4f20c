"""The units of a function, found by tracing it, and the smaller function that is left when some of them go."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import _checks, tree
from sparsejax import groups as grouping
from sparsejax._types import Mask, Params
from sparsejax.groups import Group
from sparsejax.units import table
from sparsejax.units.atoms import Axis, atoms_of, index_along
from sparsejax.units.components import Components, solve
from sparsejax.units.exactness import seen
from sparsejax.units.grouping import group
from sparsejax.units.replay import Probes, run
from sparsejax.units.resizing import Plan
from sparsejax.units.roles import Edge, LeafAxis, roles
from sparsejax.units.shrinking import Stays, cut_tree, staying
from sparsejax.units.structure import Program, structure

__all__ = ["UnitGraph", "shrink", "trace"]

Kept = Mapping[str, chex.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class UnitGraph:
    """Holds the units of a function.

    Attributes:
      groups: `{name: Group}` of the units that can be removed; each is in every axis of every leaf that carries it.
      inexact: `{name: Group}` of those that can be removed, but that the network without them would not be the network
        in which they are masked: `group.reason` says why. Empty if they were asked for: then they are in `groups`.
      frozen: `{(leaf, axis): reason}` of the axes that hold what cannot be removed.
      params: the shapes and dtypes of the parameters.
      program: the traced function (`sparsejax.units.structure.Program`).
      components: the units of every atom of every axis in it (`sparsejax.units.components.Components`).
      numbers: `{name: int (size,)}`, the numbers of the units of all groups, inexact ones too, in `components`.
      edges: where parameters read units, in the order of the program (`sparsejax.units.roles.Edge`).

    >>> params = {"in": jnp.ones((2, 3)), "out": jnp.ones((3, 1))}
    >>> graph = trace(lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"], params, jnp.ones((4, 2)))
    >>> graph.groups["in"].members
    (Member(leaf='in', axis=1, units=None, reads=False), Member(leaf='out', axis=0, units=None, reads=True))
    """

    groups: dict[str, Group]
    inexact: dict[str, Group]
    frozen: dict[LeafAxis, str]
    params: Params
    program: Program
    components: Components
    numbers: dict[str, np.ndarray]
    edges: tuple[Edge, ...]
    fn: Callable[..., Any]
    _traced: dict[Any, tuple[Program, Components]] = dataclasses.field(default_factory=dict, repr=False)

    def pull(self, values: Params) -> dict[str, jax.Array]:
        """Returns the sums over all that belongs to each unit: `{name: (size,)}`, of a tree shaped like params."""
        return grouping.pull(self.groups, values) if self.groups else {}

    def push(self, kept: Kept) -> Mask:
        """Returns the mask that removes units: `kept` is `{name: bool (size,)}`; groups without an entry stay whole."""
        self.check(kept)
        if not kept:
            return jax.tree.map(lambda _: jnp.asarray(True), self.params)
        return grouping.push(self.groups, kept, self.params)

    def small(
        self, kept: Kept, probes: Callable[[Program, Plan], Probes] = lambda program, plan: {}
    ) -> Callable[..., Any]:
        """Returns the function without the units that are not kept.

        `graph.small(kept)(shrink(graph, params, kept), *args)` equals `fn(masked params, *args)` to rounding, where the
        masked parameters are 0 in every place of every unit that goes. Numbers that depend on sizes (a mean over units,
        1/sqrt(d)) are those of the whole network, and so is every random number. What is returned of parameters
        (running statistics) is as small as they are. It is an ordinary function: `jit`, `grad`, `vmap`, `jax.export`.
        Functions with their own derivative keep it, as it is for the whole arrays; the backward one computes again what
        it would have saved.

        Arguments of shapes that have not been met are traced again.

        Args:
          kept: `{name: bool (size,)}`, concrete arrays.
          probes: what to do in the place of equations (`sparsejax.units.replay`), for a traced function and what stays.

        Returns:
          `(small params, *args) -> outputs`.

        Raises:
          ValueError: `kept` is traced, does not fit, keeps nothing of a group, or has an inexact group that was not
            asked for. From the function: the parameters have other shapes than `shrink` gives, or arguments have shapes
            at which the units cannot be removed.
        """
        self.check(kept)
        stays = staying(self.groups, kept, self.params)
        expected = cut_tree(stays, self.params, self.params)
        known: dict[Program, tuple[Plan, Probes]] = {}

        def small_fn(params: Params, *args: Any) -> Any:
            _check_small(params, expected)
            program, components = self._at(args)
            found = known.get(program)
            if found is None:
                plan = _plan(program, components, stays)
                found = plan, probes(program, plan)
            if not program.holds_tracers:
                known[program] = found
            arrays = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in jax.tree.leaves((params, args))]
            return jax.tree.unflatten(program.results, run(program.body, arrays, *found))

        return small_fn

    def along(self, axis: Axis) -> dict[str, np.ndarray]:
        """Returns the units along an axis of a value of the program: `{name: int (axis length,)}`, -1 for none."""
        found = self.components.along(axis)
        units = {}
        for name, numbers in self.numbers.items():
            order = np.argsort(numbers)
            places = order[np.searchsorted(numbers, found, sorter=order).clip(max=len(numbers) - 1)]
            here = np.where(numbers[places] == found, places, -1)
            if (here >= 0).any():
                units[name] = here
        return units

    def check(self, kept: Kept, argument: str = "kept") -> None:
        """Raises `ValueError` if an entry of a dict by group is an inexact group that was not asked for."""
        _checks.check_kind(argument, kept, Mapping, f"pass {{group: array (size,)}} for some of {list(self.groups)}")
        for name in kept:
            if name in self.inexact:
                raise ValueError(
                    f"{argument} has an entry {name!r}, whose units cannot be removed exactly: "
                    f"{self.inexact[name].reason}; leave it out, or trace with inexact=True if the network may differ "
                    f"from the masked one"
                )

    def __str__(self) -> str:
        return table.table(self.groups, self.inexact, self.frozen, self.program.returned)

    def _at(self, args: tuple[Any, ...]) -> tuple[Program, Components]:
        """Returns the program at the shapes of arguments, traced if it has not been."""
        key = _key(args)
        if key in self._traced:
            return self._traced[key]
        program = structure(self.fn, self.params, args)
        found = program, solve(program)
        if not program.holds_tracers:
            self._traced[key] = found
        return found


def trace(fn: Callable[..., Any], params: Params, *args: Any, inexact: bool = False) -> UnitGraph:
    """Returns the units of a function: which axes of which parameters carry the same channels, neurons, heads.

    Units are found for any function of a tree of arrays. Inputs and outputs stay as they are, and so does what an
    unknown primitive touches. An output that has a parameter's name, shape and dtype (running statistics, in training)
    is taken for the parameter's next value and gets smaller with it. Of an axis that is a product (heads x size), units
    lie along one factor, the first one if nothing speaks against it.

    Args:
      fn: `fn(params, *args)` -> any pytree; it is traced, not executed.
      params: its parameters, any pytree of arrays or `jax.ShapeDtypeStruct`; running statistics are parameters too.
      *args: its other arguments, arrays or `jax.ShapeDtypeStruct`; what is no array must be bound before.
      inexact: whether units belong to `groups` without which the network is not the one in which they are masked.

    Returns:
      A `UnitGraph`.

    Raises:
      ValueError: `fn` is no function, or `params` has no leaves.

    >>> shapes = {"in": jax.ShapeDtypeStruct((2, 3), "float32"), "out": jax.ShapeDtypeStruct((3, 1), "float32")}
    >>> graph = trace(lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"], shapes, jax.ShapeDtypeStruct((4, 2), "float32"))
    >>> graph.groups["in"].size, graph.frozen["in", 0], graph.frozen["out", 1]
    (3, 'it is an input', 'its size is 1')
    """
    _checks.check_function("fn", fn, "call trace(fn, params, *args)")
    if not jax.tree.leaves(params):
        raise ValueError(
            f"params={params!r} has no leaves, so there are no units; give fn's parameters as its first argument"
        )
    program = structure(fn, params, args)
    components = solve(program)
    live = {a for value in program.leaves.values() for axis in value.axes for a in atoms_of(axis)}
    live |= {a for tie in program.ties for axis in (tie.first, tie.second or ()) for a in atoms_of(axis)}
    live = {atom for atom in live if components.free(atom).any()}
    found_roles = roles(program)
    grouped = group(program, components, found_roles, seen(program, live))
    exact = {name: one for name, one in grouped.groups.items() if inexact or one.exact}
    others = {name: one for name, one in grouped.groups.items() if name not in exact}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    edges = tuple(found_roles.edges.values())
    graph = UnitGraph(exact, others, grouped.frozen, shapes, program, components, grouped.numbers, edges, fn)
    graph._traced[_key(args)] = program, components
    return graph


def shrink(graph: UnitGraph, params: Any, kept: Kept) -> Any:
    """Returns the arrays of the parameters without the units that are not kept.

    Args:
      graph: the units, from `trace`.
      params: the parameters, or any tree that has leaves of their names and shapes inside: momenta, averages, the state
        of an optimizer. A leaf belongs to the parameter whose name its own name ends with; for the optimizer of one
        collection ("params"), the name without the first part will do. Other leaves stay.
      kept: `{name: bool (size,)}`, concrete arrays; groups without an entry stay whole.

    Returns:
      A tree of the same structure and dtypes; shapes where shapes were given.

    Raises:
      ValueError: as `UnitGraph.small` does; or no leaf is named like a parameter, or one is that has another shape.

    >>> params = {"in": jnp.ones((2, 3)), "out": jnp.ones((3, 1))}
    >>> graph = trace(lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"], params, jnp.ones((4, 2)))
    >>> jax.tree.map(jnp.shape, shrink(graph, params, {"in": jnp.array([True, False, True])}))
    {'in': (2, 2), 'out': (2, 1)}
    """
    graph.check(kept)
    return cut_tree(staying(graph.groups, kept, graph.params), graph.params, params)


def _key(args: tuple[Any, ...]) -> Any:
    leaves, structure_of_args = jax.tree.flatten(args)
    return structure_of_args, tuple((jnp.shape(x), jnp.result_type(x), _is_weak(x)) for x in leaves)


def _is_weak(x: Any) -> bool:
    return isinstance(x, int | float | complex | bool) or bool(getattr(x, "weak_type", False))


def _check_small(params: Params, expected: Params) -> None:
    tree.check_structure(params, expected, "params")
    for (name, leaf), shape in zip(tree.named(params).items(), jax.tree.leaves(expected), strict=True):
        if jnp.shape(leaf) != shape.shape:
            raise ValueError(
                f"leaf {name!r} has shape {jnp.shape(leaf)}, but without the units that go it has {shape.shape}; give "
                f"the parameters that sparsejax.shrink returns for the same graph and kept"
            )


def _plan(program: Program, components: Components, stays: Stays) -> Plan:
    """Returns which positions of the atoms of a program stay; raises if that is not what was asked for."""
    lost = np.zeros(len(components.frozen), bool)
    for (leaf, axis), here in stays.items():
        for atom in atoms_of(program.leaves[leaf].axes[axis]):
            index = index_along(program.leaves[leaf].axes[axis], atom)
            gone = np.setdiff1d(np.arange(atom.size), index[here])
            if np.array_equal(~np.isin(index, gone), here):  # the atom along which units go
                lost[components.numbers[atom][gone]] = True
    lost &= ~components.frozen
    plan = Plan({atom: ~lost[numbers] for atom, numbers in components.numbers.items() if lost[numbers].any()})
    for leaf, value in program.leaves.items():
        for axis, atoms in enumerate(value.axes):
            here, wanted = plan.stays(atoms), stays.get((leaf, axis))
            if not np.array_equal(True if here is None else here, True if wanted is None else wanted):
                raise ValueError(
                    f"at these shapes of arguments, the units along axis {axis} of {leaf!r} are not those that were "
                    f"traced, so they cannot be removed; trace at these shapes"
                )
    return plan
