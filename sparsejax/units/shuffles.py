"""Channel shuffles: an axis cut, its parts exchanged and merged again, written as what it is, a permutation.

Left as reshapes, a shuffle lets units live along one of the parts only, and ties what it puts next to each other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.units.program import Equation

__all__ = ["shuffle_of"]


def shuffle_of(equation: Equation) -> tuple[Equation, Callable[[jax.Array], jax.Array]] | None:
    """Returns the first equation of a shuffle that ends with this one, and the shuffle as a function of its operand.

    `None` if it is the end of none: a reshape, a transpose and a reshape back that exchange parts of one axis.
    """
    if equation.name != "reshape" or (turned := equation.inputs[0].producer) is None or turned.name != "transpose":
        return None
    cut = turned.inputs[0].producer
    if cut is None or cut.name != "reshape" or cut.inputs[0].shape != equation.outputs[0].shape:
        return None
    shape, parts = cut.inputs[0].shape, cut.outputs[0].shape
    if any(not isinstance(size, int) for size in shape) or 0 in shape:
        return None
    axis = next((i for i, pair in enumerate(zip(shape, parts, strict=False)) if pair[0] != pair[1]), None)
    count = len(parts) - len(shape) + 1  # that the axis is cut into
    if axis is None or count < 2 or parts != (*shape[:axis], *parts[axis : axis + count], *shape[axis + 1 :]):
        return None
    order = np.arange(len(parts))
    inner = [place - axis for place in turned.params["permutation"][axis : axis + count]]
    if sorted(inner) != list(range(count)):
        return None
    order[axis : axis + count] = np.asarray(inner) + axis
    if tuple(order.tolist()) != tuple(turned.params["permutation"]):
        return None
    positions = np.arange(shape[axis]).reshape(parts[axis : axis + count]).transpose(inner).reshape(-1)
    return cut, lambda x: jnp.take(x, positions, axis, mode="clip")
