"""Products with known matrices in a traced function: those whose one operand is computed from parameters alone."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sparsejax.inference.ways import Multiply
from sparsejax.units.program import Body, Equation, Value, bind

__all__ = ["Known", "Product", "convolutions", "find", "without_unused"]

_PRODUCTS = {"dot_general", "conv_general_dilated", "ragged_dot_general"}


class Known:
    """Which values of a program depend on parameters and constants alone, and on which parameters.

    Attributes:
      names: `{value: the leaves it is computed from}`; the others depend on the arguments.
      changing: the same of those that depend on parameters alone, but that a loop slices or carries.
    """

    def __init__(self, body: Body, leaves: Mapping[str, Any]):
        inputs = body.inputs[: len(leaves)]
        self.names = {value: frozenset([name]) for value, name in zip(inputs, leaves, strict=True)}
        self.changing: dict[Value, frozenset[str]] = {}
        self._arrays = dict(zip(inputs, map(jnp.asarray, leaves.values()), strict=True))
        self._sources: dict[Value, Value] = {}  # of what is passed into a region
        self._mark(body)

    def array(self, value: Value) -> Any:
        """Returns a value that is known; it is computed at the first call."""
        if value.constant is not None:
            return value.constant
        if value in self._sources:
            return self.array(self._sources[value])
        if value not in self._arrays:
            operands = [jnp.asarray(self.array(operand)) for operand in value.producer.inputs]
            self._arrays.update(zip(value.producer.outputs, bind(value.producer, operands), strict=True))
        return self._arrays[value]

    def is_given(self, value: Value) -> bool:
        """Returns whether a value is a leaf or a constant, or one of these as it is passed into a region."""
        while value in self._sources:
            value = self._sources[value]
        return value.producer is None

    def of(self, value: Value) -> frozenset[str] | None:
        """Returns the leaves that a value is computed from, or `None` if it is not known."""
        if value.constant is not None:
            return None if isinstance(value.constant, jax.core.Tracer) else frozenset()
        return self.names.get(value)

    def _mark(self, body: Body) -> None:
        for equation in body.equations:
            for region in equation.regions:
                if not region.derivative:
                    self._enter(equation, region)
                    self._mark(region.body)
            origins = [self.of(value) for value in equation.inputs]
            if None not in origins and not equation.effects:
                self.names |= dict.fromkeys(equation.outputs, frozenset().union(*origins))
                continue
            origins = [self.changing.get(value, self.of(value)) for value in equation.inputs]
            if None not in origins:
                self.changing |= dict.fromkeys(equation.outputs, frozenset().union(*origins))

    def _enter(self, equation: Equation, region: Any) -> None:
        carried = {place for _, place in region.carried}
        for place, (port, inside) in enumerate(zip(region.inputs, region.body.inputs, strict=True)):
            outside = equation.values[port.place]
            if place not in carried and not port.stacked and self.of(outside) is not None:
                self.names[inside], self._sources[inside] = self.of(outside), outside
            elif place not in carried and (origin := self.changing.get(outside, self.of(outside))) is not None:
                self.changing[inside] = origin


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """Holds a product of something that depends on the arguments with a known matrix.

    Attributes:
      equation: the `dot_general`.
      side: which of its operands is known.
      leaf: the names of the leaves it is computed from.
      weight: the operand, as it is given to the product.
      computed: whether that takes more than passing a leaf or a constant on.
    """

    equation: Equation
    side: int
    leaf: str
    weight: Any
    computed: bool

    @property
    def contracted(self) -> tuple[int, ...]:
        """The axes of the operand that are summed over, in the order of memory, in which blocks are blocks."""
        return tuple(sorted(self.equation.params["dimension_numbers"][0][self.side]))

    @property
    def matrix(self) -> np.ndarray:
        """The operand as (inputs, outputs)."""
        inputs, outputs = math.prod(self._lengths(self.contracted)), math.prod(self._lengths(self._others))
        return np.asarray(self.weight).transpose(self.contracted + self._others).reshape(inputs, outputs)

    @property
    def rows(self) -> int:
        """How many vectors are multiplied by the matrix."""
        inputs = math.prod(self._lengths(self.contracted))
        return math.prod(self.equation.inputs[1 - self.side].shape) // max(inputs, 1)

    @property
    def _others(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.weight.ndim) if axis not in self.contracted)

    def _lengths(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.weight.shape[axis] for axis in axes)

    def dense(self, operands: Sequence[Any]) -> list[Any]:
        """Applies the product as it is, to the known operand."""
        operands = list(operands)
        operands[self.side] = self.weight
        return bind(self.equation, operands)

    def by(self, multiply: Multiply) -> Callable[[Sequence[Any]], list[Any]]:
        """Returns `operands -> [result]`, with `multiply` for the matrix."""
        params, (result,) = self.equation.params, self.equation.outputs
        own, other = (params["dimension_numbers"][0][side] for side in (self.side, 1 - self.side))
        axes = tuple(other[own.index(axis)] for axis in self.contracted)
        options = {name: params[name] for name in ("precision", "preferred_element_type")}

        def apply(operands: Sequence[Any]) -> list[Any]:
            x = operands[1 - self.side]
            free = tuple(axis for axis in range(x.ndim) if axis not in axes)
            shape = tuple(x.shape[axis] for axis in free)
            inputs = math.prod(x.shape[axis] for axis in axes)
            y = multiply(x.transpose(free + axes).reshape(*shape, inputs), **options)
            y = y.reshape(shape + self._lengths(self._others)).astype(result.dtype)
            if self.side == 0:  # the axes of the first operand come first
                y = y.transpose(*range(len(shape), y.ndim), *range(len(shape)))
            return [y]

        return apply


def find(body: Body, known: Known) -> tuple[list[Product], list[str]]:
    """Returns the products with known matrices, and sentences on those with parameters that stay what they are."""
    found, notes = [], {}
    for equation in _equations(body, known):
        origins = [known.of(value) for value in equation.inputs[:2]]
        if equation.name == "dot_general" and (origins[0] is None) != (origins[1] is None):
            side = 0 if origins[1] is None else 1
            value, leaf = equation.inputs[side], _title(origins[side])
            weight = known.array(value)
            if not (reason := _unfit(equation, side)):
                found.append(Product(equation, side, leaf, weight, not known.is_given(value)))
            elif np.count_nonzero(np.asarray(weight)) < math.prod(weight.shape):
                notes[f"{leaf}: stays dense, {reason}"] = None
        elif equation.name in _PRODUCTS and any(value in known.changing for value in equation.inputs[:2]):
            leaf = next(known.changing[value] for value in equation.inputs[:2] if value in known.changing)
            notes[f"{_title(leaf)}: stays dense, a loop runs over it"] = None
        elif not equation.regions and _holds_products(equation.params):
            notes[f"{equation.name}: what it multiplies stays dense"] = None
    return found, list(notes)


def convolutions(body: Body, known: Known) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the names and kernels of the convolutions with known kernels, as (rest, outputs)."""
    for equation in _equations(body, known):
        if equation.name == "conv_general_dilated" and (names := known.of(equation.inputs[1])) is not None:
            kernel = np.asarray(known.array(equation.inputs[1]))
            kernel = np.moveaxis(kernel, equation.params["dimension_numbers"].rhs_spec[0], -1)
            yield _title(names), kernel.reshape(-1, kernel.shape[-1])


def without_unused(body: Body, replaced: Mapping[Equation, int]) -> None:
    """Takes equations out whose results nobody needs, once the operand with a number of some others is not read."""
    needed, kept = set(body.outputs), []
    for equation in reversed(body.equations):
        if equation.effects or not needed.isdisjoint(equation.outputs):
            for region in equation.regions:
                without_unused(region.body, replaced)
            needed.update(value for i, value in enumerate(equation.inputs) if replaced.get(equation) != i)
            kept.append(equation)
    body.equations = kept[::-1]


def _equations(body: Body, known: Known) -> Iterator[Equation]:
    """Yields the equations whose results depend on the arguments, those of regions before the one that runs them."""
    for equation in body.equations:
        if all(known.of(value) is not None for value in equation.outputs):
            continue
        for region in equation.regions:
            if not region.derivative:
                yield from _equations(region.body, known)
        yield equation


def _unfit(equation: Equation, side: int) -> str:
    (contracted, batch), weight = equation.params["dimension_numbers"], equation.inputs[side]
    if batch[side]:
        return "it is a stack of matrices"
    if not contracted[side] or len(contracted[side]) == len(weight.shape) or 0 in weight.shape:
        return "it is no matrix here"
    dtypes = {value.dtype for value in equation.inputs}
    if len(dtypes) > 1 or not jnp.issubdtype(weight.dtype, jnp.floating):
        return f"its product is one of {' and '.join(sorted(map(str, dtypes)))}"
    return "its product is sharded by name" if equation.params.get("out_sharding") is not None else ""


def _holds_products(params: Mapping[str, Any]) -> bool:
    bodies = core.jaxprs_in_params(params)
    return any(eqn.primitive.name in _PRODUCTS or _holds_products(eqn.params) for body in bodies for eqn in body.eqns)


def _title(names: frozenset[str] | None) -> str:
    return " + ".join(sorted(name or "(array)" for name in names)) if names else "(constant)"
