"""Primitives applied to arrays of which some positions are gone: which of their parameters change, and how.

A function takes an equation, its operands and a `Plan`, and returns the results. Most primitives read sizes from their
operands and are applied as they are. Numbers stay: a mean over units is still divided by how many there were.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.units.atoms import Atom, Axis, spread
from sparsejax.units.patterns import Labels
from sparsejax.units.program import Equation, Value, bind

__all__ = [
    "Plan",
    "Resize",
    "as_it_is",
    "broadcast",
    "constrained",
    "convolution",
    "dynamic_slice",
    "gather",
    "generated",
    "pad",
    "reshape",
    "slices",
    "split",
    "tile",
]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which positions stay.

    Attributes:
      kept: bool (atom size,) for the atoms that lose any.
    """

    kept: Mapping[Atom, np.ndarray]

    def stays(self, axis: Axis) -> np.ndarray | None:
        """Returns which positions along an axis stay, or `None` if all do."""
        return spread(axis, self.kept)

    def positions(self, value: Value, axis: int) -> np.ndarray:
        """Returns the positions that stay along an axis of a value."""
        stays = self.stays(value.axes[axis])
        return np.arange(value.shape[axis]) if stays is None else np.flatnonzero(stays)

    def shape(self, value: Value) -> tuple[int, ...]:
        """Returns the shape a value has without the positions that go."""
        kept = [self.stays(axis) for axis in value.axes]
        return tuple(size if s is None else int(s.sum()) for size, s in zip(value.shape, kept, strict=True))

    def size(self, labels: Labels) -> int:
        """Returns the length of an axis that is a product of labels."""
        axis = tuple(atom for one in labels for atom in one.atoms)
        stays, whole = self.stays(axis), int(np.prod([one.size for one in labels], dtype=int))
        return whole if stays is None else int(stays.sum())

    def is_whole(self, equation: Equation) -> bool:
        """Returns whether operands and results keep all their positions."""
        return all(self.stays(axis) is None for value in equation.values for axis in value.axes)

    def cut(self, array: Any, value: Value) -> Any:
        """Returns the positions of a whole array that stay."""
        for axis in range(len(value.shape)):
            if self.stays(value.axes[axis]) is not None:
                array = take(array, axis, self.positions(value, axis))
        return array


Resize = Callable[[Equation, Sequence[Any], Plan], list[Any]]


def take(array: Any, axis: int, positions: np.ndarray) -> Any:
    """Returns known positions of an array along an axis; a slice where they are evenly spaced."""
    if isinstance(array, np.ndarray):
        return np.take(array, positions, axis)
    steps = np.unique(np.diff(positions))
    if positions.size and steps.size <= 1 and (steps > 0).all():
        step = int(steps[0]) if steps.size else 1
        return jax.lax.slice_in_dim(array, int(positions[0]), int(positions[-1]) + 1, step, axis)
    return jnp.take(array, positions, axis, mode="clip")


def as_it_is(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Applies the primitive with its own parameters."""
    return bind(equation, operands)


def broadcast(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Broadcasts to the smaller shape."""
    return bind(equation, operands, shape=plan.shape(equation.outputs[0]))


def reshape(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Reshapes to the smaller shape."""
    return bind(equation, operands, new_sizes=plan.shape(equation.outputs[0]))


def tile(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Repeats less often where repetitions go."""
    before, after = plan.shape(equation.inputs[0]), plan.shape(equation.outputs[0])
    return bind(equation, operands, reps=tuple(n // m if m else 1 for n, m in zip(after, before, strict=True)))


def generated(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Generates all values, so that those that stay are what they were, and cuts the others."""
    results = bind(equation, operands)
    return [plan.cut(result, value) for result, value in zip(results, equation.outputs, strict=True)]


def constrained(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Leaves a constraint on the layout out, which may not divide the smaller shape."""
    return list(operands)


def convolution(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Convolves with fewer groups."""
    groups = equation.params["feature_group_count"]
    if groups != 1:
        feature_axis = equation.params["dimension_numbers"].lhs_spec[1]
        groups = plan.size(equation.pattern.operands[0][feature_axis][:1])
    return bind(equation, operands, feature_group_count=groups)


def split(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Splits into the smaller sizes."""
    axis = equation.params["axis"]
    return bind(equation, operands, sizes=tuple(plan.shape(value)[axis] for value in equation.outputs))


def slices(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Takes the positions that stay of those that are taken."""
    return [_follow(equation, operands[0], plan)]


def dynamic_slice(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Takes known positions as `slices` does, and at data what it takes at data."""
    linked = {link.operand[1] for link in equation.pattern.links}
    array, (operand, *_), (result,) = operands[0], equation.inputs, equation.outputs
    sizes = [array.shape[axis] if axis in linked else n for axis, n in enumerate(plan.shape(result))]
    if tuple(sizes) != operand.shape:
        (array,) = bind(equation, operands, slice_sizes=tuple(sizes))
    return [_follow(equation, array, plan)]


def gather(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Gathers smaller slices, and where positions are known those that stay, by their new numbers."""
    operand, indices = operands
    (whole, index), (result,) = equation.inputs, equation.outputs
    offsets = equation.params["dimension_numbers"].offset_dims
    batch = [place for place in range(len(result.shape)) if place not in offsets]
    links = equation.pattern.links
    if links and all(result.shape[place] == 1 for place in batch):  # a single slice
        return [jnp.reshape(_follow(equation, operand, plan), plan.shape(result))]
    for link in links:
        shape = list(index.shape)
        shape[batch.index(link.result[1])] = len(found := _found(equation, link, plan))
        indices = jnp.asarray(found.reshape(shape), indices.dtype)
    sizes = zip(plan.shape(whole), whole.shape, equation.params["slice_sizes"], strict=True)
    return bind(equation, [operand, indices], slice_sizes=tuple(n if size == full else size for n, full, size in sizes))


def pad(equation: Equation, operands: Sequence[Any], plan: Plan) -> list[Any]:
    """Pads with as many entries as stay, and cuts as many."""
    (operand, _), (result,) = equation.inputs, equation.outputs
    config = list(equation.params["padding_config"])
    for axis, (low, high, between) in enumerate(config):
        if any(plan.stays(value.axes[axis]) is not None for value in (operand, result)):
            before, after = plan.positions(operand, axis), plan.positions(result, axis)
            last = result.shape[axis] - high, operand.shape[axis] + high
            low = int((after < low).sum()) if low > 0 else -int((before < -low).sum())
            high = int((after >= last[0]).sum()) if high > 0 else -int((before >= last[1]).sum())
            config[axis] = (low, high, between)
    return bind(equation, operands, padding_config=tuple(config))


def _follow(equation: Equation, array: Any, plan: Plan) -> Any:
    for link in equation.pattern.links:
        array = take(array, link.operand[1], _found(equation, link, plan))
    return array


def _found(equation: Equation, link: Any, plan: Plan) -> np.ndarray:
    """Returns where the positions of a result that stay are among those of the operand that stay."""
    (number, axis), (result, place) = link.operand, link.result
    kept = plan.positions(equation.inputs[number], axis)
    sources = link.sources if place is None else link.sources[plan.positions(equation.outputs[result], place)]
    return np.searchsorted(kept, sources)
