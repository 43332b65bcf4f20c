"""A traced function as lists of equations between values that are used nowhere else.

What a loop, a branch, a rematerialised part or a function with its own derivative runs is a *region* of its equation: a
body, and which operands, results and turns of the loop its inputs and outputs are. `sparsejax.units.flattening` makes
all this from a jaxpr.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sparsejax.units.atoms import Axis

__all__ = ["CALLS", "Body", "Equation", "Port", "Region", "Value", "bind", "equations_of", "evaluate", "reached_once"]

CALLS = frozenset({"remat2", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call"})
"""Primitives whose first region is what they compute, and no more."""

_LARGEST_EVALUATED = 2**20
_DEEPEST_EVALUATED = 50


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """An array of the program.

    Attributes:
      shape: its shape.
      dtype: its dtype, which may be an extended one (keys).
      axes: the atoms of each axis.
      constant: its value if it is written in the program or closed over; it may be a tracer.
      producer: the equation that computes it; `None` for inputs and constants.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[Axis, ...]
    constant: Any = None
    producer: "Equation | None" = None


@dataclasses.dataclass(eq=False, slots=True)
class Body:
    """A list of equations that turns inputs into outputs."""

    inputs: list[Value]
    equations: "list[Equation]"
    outputs: list[Value]


@dataclasses.dataclass(frozen=True, slots=True)
class Port:
    """Where a region's input comes from or an output goes to.

    Attributes:
      place: of the equation's operands followed by its results.
      stacked: whether the region sees one slice of it at a time, along its first axis.
    """

    place: int
    stacked: bool = False


@dataclasses.dataclass(eq=False, slots=True)
class Region:
    """What an equation runs inside.

    Attributes:
      body: its equations.
      inputs: a port for every input of the body.
      outputs: a port for every output; none where they are the equation's own business (the test of a loop).
      carried: `(output, input)` of the body: what the next turn of a loop begins with.
      derivative: whether it is run for the derivative only.
    """

    body: Body
    inputs: list[Port]
    outputs: list[Port]
    carried: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    derivative: bool = False


@dataclasses.dataclass(eq=False, slots=True)
class Equation:
    """A primitive applied to values.

    Attributes:
      primitive: what it computes.
      params: the primitive's parameters.
      inputs: its operands.
      outputs: its results.
      regions: the bodies it runs; empty for most.
      pattern: how the axes of operands and results hang together (`sparsejax.units.patterns`), once that is known.
      effects: whether it does more than compute its results.
    """

    primitive: core.Primitive
    params: dict[str, Any]
    inputs: list[Value]
    outputs: list[Value]
    regions: list[Region] = dataclasses.field(default_factory=list)
    pattern: Any = None
    effects: bool = False

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name

    @property
    def values(self) -> list[Value]:
        """Operands, then results: what a `Port` counts."""
        return self.inputs + self.outputs


def equations_of(body: Body) -> Iterator[Equation]:
    """Yields all equations of a body, those of regions before the equation that runs them."""
    for equation in body.equations:
        for region in equation.regions:
            yield from equations_of(region.body)
        yield equation


def reached_once(body: Body) -> Iterator[Equation]:
    """Yields the equations of a body that run once in a run of it, in order: none of loops and branches."""
    for equation in body.equations:
        if equation.name in CALLS and equation.regions:
            yield from reached_once(equation.regions[0].body)
        yield equation


def bind(equation: Equation, operands: Sequence[Any], **changed: Any) -> list[Any]:
    """Applies an equation's primitive to arrays, with some of its parameters changed; returns its results."""
    params = equation.primitive.get_bind_params(equation.params | changed)
    results = equation.primitive.bind(*operands, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def evaluate(value: Value, depth: int = 0) -> np.ndarray | None:
    """Returns a value that depends on nothing but constants, or `None` if it does, or is large, or far from them."""
    if depth > _DEEPEST_EVALUATED:
        return None
    if any(not isinstance(n, int) for n in value.shape) or np.prod(value.shape, dtype=float) > _LARGEST_EVALUATED:
        return None
    if value.constant is None and value.producer is not None and not value.producer.regions:
        operands = [evaluate(operand, depth + 1) for operand in value.producer.inputs]
        if all(operand is not None for operand in operands) and not value.producer.effects:
            with jax.ensure_compile_time_eval():
                results = bind(value.producer, [jnp.asarray(operand) for operand in operands])
            for output, result in zip(value.producer.outputs, results, strict=True):
                output.constant = result
    if value.constant is None or isinstance(value.constant, jax.core.Tracer):
        return None
    return None if jnp.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value.constant)
