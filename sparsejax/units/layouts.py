"""The patterns of primitives that compute: elementwise functions, reductions, windows, products and convolutions.

Each function takes an equation and returns its pattern. What only moves entries is in `sparsejax.units.movements`.
"""

from collections.abc import Callable

from sparsejax.units.patterns import Labels, Pattern, label, labels_of
from sparsejax.units.program import Equation, Value

__all__ = [
    "along",
    "convolution",
    "dot",
    "each",
    "elementwise",
    "frozen",
    "generated",
    "last_axes",
    "reduction",
    "window",
    "window_back",
]


def elementwise(equation: Equation) -> Pattern:
    """All operands and results have the same axes, but for those of length 1; scalars have none."""
    shape = equation.outputs[0].shape
    labels = labels_of(shape)
    if any(value.shape and len(value.shape) != len(shape) for value in equation.values):
        return frozen(f"{equation.name} of different ranks", equation)

    def axes(value: Value) -> list[Labels]:
        return [() if size == 1 else axis for size, axis in zip(value.shape, labels, strict=False)]

    return Pattern([axes(value) for value in equation.inputs], [labels] * len(equation.outputs))


def each(equation: Equation) -> Pattern:
    """Every result is an operand."""
    labels = [labels_of(value.shape) for value in equation.inputs]
    return Pattern(labels, labels)


def frozen(reason: str, equation: Equation) -> Pattern:
    """Nothing that the equation touches can be removed."""
    return Pattern(*([labels_of(v.shape, reason) for v in values] for values in (equation.inputs, equation.outputs)))


def generated(equation: Equation) -> Pattern:
    """Values are generated from operands that stay whole (keys), and cut afterwards."""
    operands = [labels_of(value.shape, f"{equation.name} draws from it") for value in equation.inputs]
    return Pattern(operands, [labels_of(value.shape) for value in equation.outputs])


def reduction(axes_of: Callable[[dict], tuple[int, ...]], reason: str | None, equation: Equation) -> Pattern:
    """Results lack some axes of the operands, which are frozen if there is a reason."""
    shape, axes = equation.inputs[0].shape, axes_of(equation.params)
    labels = [label(size, reason if axis in axes else None) for axis, size in enumerate(shape)]
    left = [axis_labels for axis, axis_labels in enumerate(labels) if axis not in axes]
    return Pattern([labels if v.shape == shape else [] for v in equation.inputs], [left] * len(equation.outputs))


def along(axis_of: Callable[[dict], int], reason: str | None, equation: Equation) -> Pattern:
    """Results have the operands' axes, one of which is worked along, and frozen if there is a reason."""
    shape, axis = equation.inputs[0].shape, axis_of(equation.params)
    labels = [label(size, reason if i == axis else None) for i, size in enumerate(shape)]
    return Pattern([labels] * len(equation.inputs), [labels] * len(equation.outputs))


def last_axes(count_of: Callable[[dict], int], reason: str, equation: Equation) -> Pattern:
    """The last axes of operands and results are frozen, and those before them shared."""
    count = count_of(equation.params)
    (operand, *_), rank = equation.inputs, len(equation.inputs[0].shape) - count
    shared = labels_of(operand.shape[:rank])

    def axes(value: Value) -> list[Labels]:
        return shared + labels_of(value.shape[rank:], reason)

    return Pattern([axes(value) for value in equation.inputs], [axes(value) for value in equation.outputs])


def window(equation: Equation) -> Pattern:
    """Windows move over the operands; axes over which they do not reach are shared, the others are frozen."""
    operands, (result, *_) = equation.inputs, equation.outputs
    first, second = _window_labels(equation, operands[0].shape, result.shape)
    return Pattern([first if v.shape else [] for v in operands], [second] * len(equation.outputs))


def window_back(equation: Equation) -> Pattern:
    """The transpose of a maximum over windows: `(what the windows gave, the operand, ...) -> like the operand`."""
    source, operand, *scalars = equation.inputs
    second, first = _window_labels(equation, operand.shape, source.shape)
    return Pattern([first, second, *([] for _ in scalars)], [second])


def dot(equation: Equation) -> Pattern:
    """A matrix product: batch axes, then the left operand's, then the right operand's; contracted axes vanish."""
    (contracted, batch) = equation.params["dimension_numbers"]
    left, right = (labels_of(value.shape) for value in equation.inputs[:2])
    for i, j in (*zip(*contracted, strict=True), *zip(*batch, strict=True)):
        right[j] = left[i]
    inner = [{*contracted[side], *batch[side]} for side in (0, 1)]
    outer = [[x for i, x in enumerate(labels) if i not in inner[side]] for side, labels in enumerate((left, right))]
    return Pattern([left, right], [[left[i] for i in batch[0]] + outer[0] + outer[1]])


def convolution(equation: Equation) -> Pattern:
    """Features are contracted, within their group if there are groups; what windows slide over is frozen."""
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    if equation.params["batch_group_count"] != 1:
        return frozen("a convolution with batch groups", equation)
    (left, kernel), (result,) = equation.inputs, equation.outputs
    batch, features = label(left.shape[numbers.lhs_spec[0]]), label(kernel.shape[numbers.rhs_spec[1]])
    group, outputs = label(groups), label(kernel.shape[numbers.rhs_spec[0]] // groups)
    named = (
        (numbers.lhs_spec, (batch, group + features)),
        (numbers.rhs_spec, (group + outputs, features)),
        (numbers.out_spec, (batch, group + outputs)),
    )
    axes = []
    for value, (spec, (first, second)) in zip((left, kernel, result), named, strict=True):
        labels = labels_of(value.shape, "a convolution's window slides over it")
        labels[spec[0]], labels[spec[1]] = first, second
        axes.append(labels)
    return Pattern(axes[:2], axes[2:])


def _window_labels(equation: Equation, before: tuple, after: tuple) -> tuple[list[Labels], list[Labels]]:
    params, rank = equation.params, len(before)
    sizes, strides = params["window_dimensions"], params["window_strides"]
    padding = params["padding"]
    dilations = [params.get(name) or (1,) * rank for name in ("base_dilation", "window_dilation")]
    first, second = [], []
    for axis in range(rank):
        still = {sizes[axis], strides[axis], *(dilation[axis] for dilation in dilations)} == {1}
        if still and tuple(padding[axis]) == (0, 0):
            shared: Labels = label(before[axis])
            first.append(shared)
            second.append(shared)
        else:
            reason = "a window slides over it"
            first.append(label(before[axis], reason))
            second.append(label(after[axis], reason))
    return first, second
