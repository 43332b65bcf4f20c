"""A function traced, with the axes of all its values joined: which of them are the same, and which cannot be cut."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import tree
from sparsejax._types import Params
from sparsejax.units.atoms import Axis, freeze, join, new_axis
from sparsejax.units.flattening import flatten
from sparsejax.units.program import Body, Equation, Port, Region, Value, equations_of
from sparsejax.units.rules import rule_of

__all__ = ["Program", "Tie", "structure"]


@dataclasses.dataclass(frozen=True, eq=False)
class Tie:
    """Positions of two axes that live and die together.

    Attributes:
      first: an axis.
      second: another; `None`: the positions of the first are taken out on their own.
      positions: of the first, for every position of the second; -1 where there is none.
    """

    first: Axis
    second: Axis | None
    positions: np.ndarray


@dataclasses.dataclass(eq=False)
class Program:
    """A traced function.

    Attributes:
      body: its equations; the inputs are the leaves of the parameters, then those of the arguments.
      leaves: `{name: value}` of the parameters.
      ties: which single positions of axes live and die together.
      results: the structure of what it returns.
      returned: the names of the parameters of which it returns the next values.
      holds_tracers: whether it closes over values that are being traced, and so must not outlive their trace.
    """

    body: Body
    leaves: dict[str, Value]
    ties: list[Tie]
    results: Any
    returned: list[str]
    holds_tracers: bool


def structure(fn: Callable[..., Any], params: Params, args: tuple[Any, ...]) -> Program:
    """Traces a function at the shapes of its arguments and joins the axes of all values.

    Args:
      fn: `fn(params, *args)`.
      params: its first argument; only shapes and dtypes are read.
      args: its other arguments, arrays or shapes.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    jaxpr, out_shapes = jax.make_jaxpr(fn, return_shape=True)(shapes, *args)
    body = flatten(jaxpr)
    names = list(tree.named(params))
    leaves = dict(zip(names, body.inputs, strict=False))
    ties: list[Tie] = []
    _join_body(body, ties)
    for value in body.inputs[len(names) :]:
        _freeze(value, "it is an input")
    used = {value for equation in body.equations for value in equation.inputs} | set(body.outputs)
    for value in leaves.values():
        if value not in used:
            _freeze(value, "nothing uses it")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            _freeze(value, f"its dtype is {value.dtype}")
    returned = _join_results(body, leaves, out_shapes)
    values = [value for equation in equations_of(body) for value in equation.inputs] + body.outputs
    holds_tracers = any(isinstance(value.constant, jax.core.Tracer) for value in values)
    return Program(body, leaves, ties, jax.tree.structure(out_shapes), returned, holds_tracers)


def _join_body(body: Body, ties: list[Tie]) -> None:
    for equation in body.equations:
        if equation.regions:
            for region in equation.regions:
                _join_region(equation, region, ties)
        else:
            equation.pattern = rule_of(equation).pattern(equation)
            _join_equation(equation, ties)


def _join_equation(equation: Equation, ties: list[Tie]) -> None:
    pattern = equation.pattern
    sides = zip(equation.values, [*pattern.operands, *pattern.results], strict=True)
    axes = [pair for value, labels in sides for pair in zip(value.axes, labels, strict=True)]
    for axis, labels in axes:
        if len(labels) == 1 and labels[0].atoms is None:
            labels[0].atoms = axis
            continue
        for one in labels:
            if one.atoms is None:
                one.atoms = new_axis(one.size)
        join(axis, tuple(atom for one in labels for atom in one.atoms))
    for one in pattern.places():
        if one.frozen:
            freeze(one.atoms, one.frozen)
    for link in pattern.links:
        (number, axis), (result, place) = link.operand, link.result
        second = None if place is None else equation.outputs[result].axes[place]
        ties.append(Tie(equation.inputs[number].axes[axis], second, link.sources))


def _join_region(equation: Equation, region: Region, ties: list[Tie]) -> None:
    for port, value in zip(region.inputs, region.body.inputs, strict=True):
        _join_port(equation, port, value)
    _join_body(region.body, ties)
    for port, value in zip(region.outputs, region.body.outputs, strict=len(region.outputs) > 0):
        _join_port(equation, port, value)
    for output, input_ in region.carried:
        _join_values(region.body.outputs[output], region.body.inputs[input_])


def _join_port(equation: Equation, port: Port, inside: Value) -> None:
    outside = equation.values[port.place]
    if port.stacked:
        freeze(outside.axes[0], "a loop runs over it")
    for first, second in zip(outside.axes[1 if port.stacked else 0 :], inside.axes, strict=True):
        join(first, second)


def _join_values(first: Value, second: Value) -> None:
    for one, other in zip(first.axes, second.axes, strict=True):
        join(one, other)


def _join_results(body: Body, leaves: dict[str, Value], out_shapes: Any) -> list[str]:
    """Freezes what is returned, but for the next values of parameters, which are cut like them; returns their names."""
    returned = []
    for (path, _), value in zip(jax.tree_util.tree_leaves_with_path(out_shapes), body.outputs, strict=True):
        name = _parameter(path, value, leaves)
        if name is None:
            _freeze(value, "it is an output")
        else:
            returned.append(name)
            _join_values(leaves[name], value)
    return returned


def _parameter(path: tuple, value: Value, leaves: dict[str, Value]) -> str | None:
    """Returns the parameter that a result has the whole name, shape and dtype of.

    A position in a tuple or a list is no name: the first of several results is not the first of several parameters.
    """
    for start in range(len(path)):
        own = path[start:]
        name = jax.tree_util.keystr(own, simple=True, separator="/")
        named = not all(isinstance(key, jax.tree_util.SequenceKey | jax.tree_util.FlattenedIndexKey) for key in own)
        if named and name in leaves and (leaves[name].shape, leaves[name].dtype) == (value.shape, value.dtype):
            return name
    return None


def _freeze(value: Value, reason: str) -> None:
    for axis in value.axes:
        freeze(axis, reason)
