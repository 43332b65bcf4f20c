"""How large a network is, and its thin dense equivalents.

A thin network is the same class with other `widths`. Two rules choose them: `scaled` is Eq. 12 of *Adaptive Sparsity
Loss*, which fixes the width multiplier and takes the size that follows; `thin` fixes the size and searches the
multiplier. The number of input channels and of classes never changes, and neither do the first `fixed_widths` widths.
"""

import bisect
import functools
import math
from collections.abc import Callable
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

import sparsejax as sj


@functools.cache
def variable_shapes(
    model: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[dict[str, chex.ArrayTree], jax.ShapeDtypeStruct]:
    """Returns the variables of `model` on images (h, w, c), and a batch of one, as shapes that allocate nothing."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images), images


def parameter_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> chex.ArrayTree:
    """Returns the tree of trainable parameters of `model` on images (h, w, c) as shapes, without allocating them."""
    return variable_shapes(model, image_shape)[0]["params"]


def parameter_count(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Returns the exact number of trainable parameters of `model` on images (h, w, c), without allocating them."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(model, image_shape)))


@functools.cache
def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> sj.report.MultiplyAdds:
    """Returns the multiply-adds of `model` for one image (h, w, c), counted without allocating anything."""
    variables, image = variable_shapes(model, image_shape)
    params, state = variables["params"], {name: value for name, value in variables.items() if name != "params"}
    return sj.report.multiply_adds(lambda p, x, state: model.apply({"params": p, **state}, x), params, image, state)


def multiplied(model: nn.Module, multiplier: float) -> nn.Module:
    """Returns `model` with max(1, floor(multiplier width)) for every width after the first `fixed_widths`."""
    # The slack is for products such as 0.29 * 100 = 28.999999999999996, which are whole numbers but for rounding.
    return _resized(model, lambda width: max(1, math.floor(multiplier * width + 1e-9)))


def scaled(model: nn.Module, kept: float) -> nn.Module:
    """Returns the dense equivalent of `model` with a share `kept` of its weights, by the rule of the paper.

    C' = floor(sqrt(kept) C) for every width, at least 1. A layer between two scaled widths keeps `kept` of its
    weights. A layer with one scaled width keeps sqrt(kept) of them: LeNet-300-100, most of whose weights hang on
    784 inputs that stay, is left with 36% of its parameters at kept = 0.15. `thin` meets a number of parameters.

    Retsinas, Elafrou, Goumas and Maragos, *Weight Pruning via Adaptive Sparsity Loss*, 2020, Eq. 12.

    Args:
      model: a network with `widths` and `fixed_widths`.
      kept: share of the weights to keep, in (0, 1].

    Returns:
      A network of the same class with smaller widths.

    Raises:
      ValueError: if `kept` is outside (0, 1].
    """
    return _resized(model, partial(sj.report.dense_equivalent_width, kept=kept))


def thin(model: nn.Module, target: int, count: Callable[[nn.Module], int], excess: float = 0.01) -> nn.Module:
    """Returns the thin version of `model` whose size is nearest to `target` among all common width multipliers.

    min over m in (0, 1] of |count(multiplied(model, m)) - target|, where the count may exceed the target by the
    share `excess` at most.

    Args:
      model: a network with `widths` and `fixed_widths`.
      target: the size to meet, in the units of `count`.
      count: size of a network, such as `lambda m: parameter_count(m, (28, 28, 1))`; it must grow with the widths.
      excess: the largest share by which the size may exceed the target.

    Returns:
      A network of the same class with smaller widths.

    Raises:
      ValueError: if `target` is larger than the size of `model` or smaller than that of the thinnest network.
    """
    # A width changes only where the multiplier is a multiple of its inverse, so these are all networks there are.
    scalable = set(model.widths[model.fixed_widths :])
    multipliers = sorted({unit / width for width in scalable for unit in range(1, width + 1)})

    def size(multiplier: float) -> int:
        return count(multiplied(model, multiplier))

    smallest, largest = size(multipliers[0]), size(1.0)
    if not smallest <= target <= largest:
        raise ValueError(
            f"target: got {target}, but thin versions of {type(model).__name__} have {smallest} to {largest}"
        )
    above = bisect.bisect_right(multipliers, target, key=size)
    neighbours = [m for m in multipliers[above - 1 : above + 1] if size(m) <= (1 + excess) * target]
    return multiplied(model, min(neighbours, key=lambda m: abs(size(m) - target)))


def _resized(model: nn.Module, rule: Callable[[int], int]) -> nn.Module:
    fixed = model.fixed_widths
    return model.clone(widths=(*model.widths[:fixed], *map(rule, model.widths[fixed:])))
