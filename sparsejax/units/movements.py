"""The patterns of primitives that rearrange whole arrays: reshapes, transposes, concatenations, padding."""

import numpy as np

from sparsejax.units.layouts import frozen
from sparsejax.units.patterns import Link, Pattern, label, labels_of, refine
from sparsejax.units.program import Equation

__all__ = [
    "broadcast",
    "concatenation",
    "pad",
    "reshape",
    "split",
    "squeeze",
    "stack",
    "tile",
    "transpose",
    "unstack",
]


def broadcast(equation: Equation) -> Pattern:
    """Axes are added or repeated."""
    operand, (result,) = equation.inputs[0], equation.outputs
    labels, sources = labels_of(result.shape), [()] * len(operand.shape)
    for axis, place in enumerate(equation.params["broadcast_dimensions"]):
        if operand.shape[axis] == result.shape[place]:
            sources[axis] = labels[place]
    return Pattern([sources], [labels])


def reshape(equation: Equation) -> Pattern:
    """Axes are merged and cut."""
    operand, (result,) = equation.inputs[0], equation.outputs
    if 0 in operand.shape or equation.params.get("dimensions") is not None:
        return frozen("a reshape of nothing, or in another order", equation)
    before, after = refine(operand.shape, result.shape)
    return Pattern([before], [after])


def squeeze(equation: Equation) -> Pattern:
    """Axes of length 1 vanish."""
    labels = labels_of(equation.inputs[0].shape)
    left = [x for axis, x in enumerate(labels) if axis not in equation.params["dimensions"]]
    return Pattern([labels], [left])


def transpose(equation: Equation) -> Pattern:
    """Axes change places."""
    labels = labels_of(equation.inputs[0].shape)
    return Pattern([labels], [[labels[axis] for axis in equation.params["permutation"]]])


def tile(equation: Equation) -> Pattern:
    """Axes are repeated as a whole."""
    operand, repeats = equation.inputs[0], equation.params["reps"]
    labels = labels_of(operand.shape)
    return Pattern([labels], [[label(n) + axis for n, axis in zip(repeats, labels, strict=True)]])


def stack(equation: Equation) -> Pattern:
    """Operands become positions of a new axis."""
    labels, axis = labels_of(equation.inputs[0].shape), equation.params["axis"]
    new = label(len(equation.inputs), "arrays are stacked along it")
    return Pattern([labels] * len(equation.inputs), [[*labels[:axis], new, *labels[axis:]]])


def unstack(equation: Equation) -> Pattern:
    """The positions along an axis become results."""
    axis = equation.params["axis"]
    labels = labels_of(equation.inputs[0].shape)
    labels[axis] = label(equation.inputs[0].shape[axis], "it is taken apart")
    return Pattern([labels], [labels[:axis] + labels[axis + 1 :]] * len(equation.outputs))


def pad(equation: Equation) -> Pattern:
    """Axes are made longer with a constant, or cut."""
    operand, (result,) = equation.inputs[0], equation.outputs
    before, after, links = [], [], []
    for axis, (low, high, between) in enumerate(equation.params["padding_config"]):
        size = operand.shape[axis]
        if (low, high, between) == (0, 0, 0):
            shared = label(size)
            before.append(shared)
            after.append(shared)
            continue
        reason = "entries are put between its positions" if between or not isinstance(size, int) else None
        before.append(label(size, reason))
        after.append(label(result.shape[axis], reason))
        if not reason:
            sources = np.arange(result.shape[axis]) - low
            links.append(Link((0, axis), (0, axis), np.where((sources >= 0) & (sources < size), sources, -1)))
    return Pattern([before, []], [after], links)


def concatenation(equation: Equation) -> Pattern:
    """Operands follow one another along an axis."""
    axis, (result,) = equation.params["dimension"], equation.outputs
    labels, links, start = labels_of(result.shape), [], 0
    operands = []
    for number, operand in enumerate(equation.inputs):
        size = operand.shape[axis]
        own = list(labels)
        own[axis] = label(size)
        operands.append(own)
        sources = np.arange(result.shape[axis]) - start
        links.append(Link((number, axis), (0, axis), np.where((sources >= 0) & (sources < size), sources, -1)))
        start += size
    return Pattern(operands, [labels], links)


def split(equation: Equation) -> Pattern:
    """Parts of an axis become results."""
    axis, (operand,) = equation.params["axis"], equation.inputs
    labels, results, links, start = labels_of(operand.shape), [], [], 0
    for number, size in enumerate(equation.params["sizes"]):
        own = list(labels)
        own[axis] = label(int(size))
        results.append(own)
        links.append(Link((0, axis), (number, axis), start + np.arange(size)))
        start += size
    return Pattern([labels], results, links)
