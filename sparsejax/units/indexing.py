"""The patterns of primitives that take from arrays, or write into them, at positions: slices, gathers, scatters."""

from collections.abc import Sequence

import numpy as np

from sparsejax.units.atoms import reason_of
from sparsejax.units.patterns import Labels, Link, Pattern, label, labels_of
from sparsejax.units.program import Equation, Value, evaluate

__all__ = ["dynamic_slice", "dynamic_update", "gather", "reversal", "scatter", "slices"]

_INDEXED = "{} takes from it at positions that are data"


def slices(equation: Equation) -> Pattern:
    """Some positions of each axis are taken."""
    (operand,), (result,) = equation.inputs, equation.outputs
    starts, strides = equation.params["start_indices"], equation.params["strides"] or (1,) * len(operand.shape)
    places = zip(operand.shape, result.shape, starts, strides, strict=True)
    return _taken(operand, result, [_spaced(*place) for place in places])


def reversal(equation: Equation) -> Pattern:
    """Axes run backwards."""
    (operand,), (result,) = equation.inputs, equation.outputs
    backwards = equation.params["dimensions"]
    places = [
        (size, size, size - 1, -1) if axis in backwards else (size, size) for axis, size in enumerate(operand.shape)
    ]
    return _taken(operand, result, [_spaced(*place) for place in places])


def dynamic_slice(equation: Equation) -> Pattern:
    """A part of each axis is taken, from a start that may be data."""
    operand, *starts = equation.inputs
    (result,) = equation.outputs
    sources = []
    for axis, (size, taken) in enumerate(zip(operand.shape, result.shape, strict=True)):
        start = 0 if size == taken else evaluate(starts[axis])
        sources.append(None if start is None else _spaced(size, taken, min(max(int(start), 0), size - taken)))
    pattern = _taken(operand, result, sources)
    return Pattern([*pattern.operands, *([] for _ in starts)], pattern.results, pattern.links)


def dynamic_update(equation: Equation) -> Pattern:
    """A part of each axis is overwritten, from a start that may be data."""
    operand, update, *starts = equation.inputs
    first, second = _whole_or_frozen(operand.shape, update.shape, equation)
    return Pattern([first, second, *([] for _ in starts)], [first])


def gather(equation: Equation) -> Pattern:
    """Slices are taken at places that are data, or known: then single positions are followed."""
    operand, indices = equation.inputs
    (result,) = equation.outputs
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    index_labels = labels_of(indices.shape)
    labels = labels_of(operand.shape, _INDEXED.format("gather"))
    result_labels, links = [()] * len(result.shape), []

    hidden = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    shown = [axis for axis in range(len(operand.shape)) if axis not in hidden]
    for axis, place in zip(shown, numbers.offset_dims, strict=True):
        if sizes[axis] == operand.shape[axis] and axis not in numbers.start_index_map:
            labels[axis] = result_labels[place] = label(sizes[axis])
        else:
            result_labels[place] = label(sizes[axis], _INDEXED.format("gather"))
    for axis, place in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        labels[axis] = index_labels[place]
    batch = [place for place in range(len(result.shape)) if place not in numbers.offset_dims]
    for place, axis_labels in zip(batch, index_labels[:-1], strict=True):
        result_labels[place] = axis_labels

    for axis, place, sources in _known_positions(equation, batch):
        labels[axis] = label(operand.shape[axis])
        if place is not None:
            result_labels[place] = label(result.shape[place])
        links.append(Link((0, axis), (0, place), sources))
    return Pattern([labels, index_labels], [result_labels], links)


def scatter(equation: Equation) -> Pattern:
    """Slices are written, or added, at places that are data."""
    operand, indices, updates = equation.inputs
    numbers = equation.params["dimension_numbers"]
    labels = labels_of(operand.shape, _INDEXED.format("scatter"))
    index_labels, update_labels = labels_of(indices.shape), [()] * len(updates.shape)
    hidden = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    shown = [axis for axis in range(len(operand.shape)) if axis not in hidden]
    for axis, place in zip(shown, numbers.update_window_dims, strict=True):
        whole = updates.shape[place] == operand.shape[axis] and axis not in numbers.scatter_dims_to_operand_dims
        update_labels[place] = label(updates.shape[place], None if whole else _INDEXED.format("scatter"))
        if whole:
            labels[axis] = update_labels[place]
    for axis, place in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        labels[axis] = index_labels[place]
    batch = [place for place in range(len(updates.shape)) if place not in numbers.update_window_dims]
    for place, axis_labels in zip(batch, index_labels[:-1], strict=True):
        update_labels[place] = axis_labels
    return Pattern([labels, index_labels, update_labels], [labels])


_WHOLE = np.zeros(0, int)
"""Stands for all positions in order."""


def _spaced(size: int, taken: int, start: int = 0, step: int = 1) -> np.ndarray | None:
    """Returns evenly spaced positions; `None` if the sizes are symbolic and not all of them are taken."""
    if size == taken and step == 1:
        return _WHOLE
    return start + step * np.arange(taken) if isinstance(size, int) and isinstance(taken, int) else None


def _taken(operand: Value, result: Value, sources: Sequence[np.ndarray | None]) -> Pattern:
    """Returns the pattern of taking positions, an array for each axis; `None` for one whose positions are data."""
    before, after, links = [], [], []
    for axis, (size, taken, positions) in enumerate(zip(operand.shape, result.shape, sources, strict=True)):
        if positions is _WHOLE:
            shared: Labels = label(size)
            before.append(shared)
            after.append(shared)
            continue
        reason = _INDEXED.format("a slice") if positions is None else None
        before.append(label(size, reason))
        after.append(label(taken, reason))
        if positions is not None:
            links.append(Link((0, axis), (0, axis), positions))
    return Pattern([before], [after], links)


def _whole_or_frozen(whole: Sequence[int], part: Sequence[int], equation: Equation) -> tuple[list, list]:
    first, second = [], []
    for size, other in zip(whole, part, strict=True):
        reason = None if size == other else _INDEXED.format(equation.name)
        first.append(label(size, reason))
        second.append(first[-1] if size == other else label(other, reason))
    return first, second


def _known_positions(equation: Equation, batch: list[int]) -> list[tuple[int, int | None, np.ndarray]]:
    """Returns `(operand axis, result axis, positions)` of the axes that are taken from, if the positions are known.

    They are followed for a single slice, and for slices of one position along one axis.
    """
    operand, indices = equation.inputs
    numbers, (result,), sizes = equation.params["dimension_numbers"], equation.outputs, equation.params["slice_sizes"]
    axes, long = numbers.start_index_map, [place for place in batch if result.shape[place] != 1]
    if numbers.operand_batching_dims or len(long) > 1 or all(reason_of(operand.axes[axis]) for axis in axes):
        return []
    if long and (len(axes) > 1 or axes[0] not in numbers.collapsed_slice_dims):
        return []
    if (starts := evaluate(indices)) is None:
        return []
    starts = starts.reshape(-1, len(axes)).astype(int)
    room = [operand.shape[axis] - sizes[axis] for axis in axes]
    if (starts < 0).any() or (starts > room).any():
        return []  # what happens then depends on the mode
    if long:
        return [(axes[0], long[0], starts[:, 0])]
    shown = [axis for axis in range(len(operand.shape)) if axis not in numbers.collapsed_slice_dims]
    places = dict(zip(shown, numbers.offset_dims, strict=True))
    return [
        (axis, places.get(axis), start + np.arange(sizes[axis])) for axis, start in zip(axes, starts[0], strict=True)
    ]
