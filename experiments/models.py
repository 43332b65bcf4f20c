"""The networks of the papers, in Flax Linen, and their thin dense equivalents.

A thin network is the same class with other `widths`. Two rules choose them: `scaled` is Eq. 12 of *Adaptive Sparsity
Loss*, which fixes the width multiplier and takes the size that follows; `thin` fixes the size and searches the
multiplier. The number of input channels and of classes never changes, and neither do the first `fixed_widths` widths.

Biases start from zero and kernels from He normal with fan-in, but for LeNet-5, which has Caffe's initialiser, uniform
with variance 1/fan-in: He normal is for layers followed by a ReLU, and LeNet-5's convolutions are not. The authors of
*Adaptive Sparsity Loss* leave PyTorch's default in place, uniform in +-1/sqrt(fan-in), biases too.
"""

import bisect
import math
from collections.abc import Callable
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

import sparsejax as sj
from experiments.convolution import conv_general_dilated

KERNEL_INIT = nn.initializers.he_normal()
CAFFE_INIT = nn.initializers.lecun_uniform()
Dense = partial(nn.Dense, kernel_init=KERNEL_INIT)
Conv = partial(nn.Conv, kernel_init=KERNEL_INIT, conv_general_dilated=conv_general_dilated)


def one_by_one(function: Callable) -> Callable:
    """Returns `function` mapped over the leading axis of its arguments in a loop, as `jax.vmap` maps it in parallel.

    Args:
      function: takes and returns trees of arrays.

    Returns:
      A function of the same trees with one more leading axis, which all of them share.
    """
    return lambda *args: jax.lax.map(lambda one: function(*one), args)


class LeNet300100(nn.Module):
    """LeNet-300-100: images (n, h, w, c) -> logits (n, classes), 266,610 parameters on 28x28x1 with 10 classes.

    Attributes:
      classes: number of classes.
      widths: number of units of each hidden layer.
    """

    classes: int
    widths: tuple[int, ...] = (300, 100)

    fixed_widths = 0
    over_seeds = staticmethod(jax.vmap)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of `images`, float (n, h, w, c); training and inference are the same."""
        x = images.reshape(images.shape[0], -1)
        for width in self.widths:
            x = nn.relu(Dense(width)(x))
        return Dense(self.classes)(x)


class LeNet5(nn.Module):
    """LeNet-5 as in Caffe's example: 5x5 VALID convolutions of 20 and 50, max pooling by 2 after each, dense 500.

    It has 431,080 parameters on 28x28x1 with 10 classes. Only the dense layer is followed by a ReLU, as in Caffe. Caffe
    trains it with SGD at learning rate 0.01 and momentum 0.9; at 0.05 it diverged on 5,000 images of MNIST.

    Attributes:
      classes: number of classes.
      widths: channels of the first and the second convolution, units of the dense layer.
    """

    classes: int
    widths: tuple[int, int, int] = (20, 50, 500)

    fixed_widths = 0
    # Kernels that differ from seed to seed would become grouped convolutions, which are slow.
    over_seeds = staticmethod(one_by_one)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of `images`, float (n, h, w, c), h and w at least 16; otherwise raises `ValueError`."""
        if min(images.shape[1:3]) < 16:
            raise ValueError(
                f"images: LeNet-5 needs at least 16x16 pixels, got {images.shape[1]}x{images.shape[2]}: two 5x5 VALID "
                "convolutions, each followed by pooling by 2, would leave nothing; use LeNet300100 or larger images"
            )
        x = images
        for width in self.widths[:2]:
            x = Conv(width, (5, 5), padding="VALID", kernel_init=CAFFE_INIT)(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(Dense(self.widths[2], kernel_init=CAFFE_INIT)(x.reshape(x.shape[0], -1)))
        return Dense(self.classes, kernel_init=CAFFE_INIT)(x)


class Block(nn.Module):
    """The residual block of `WideResNet`: BN, ReLU, 3x3, BN, ReLU, 3x3 with the stride, plus the shortcut.

    Attributes:
      width: number of output channels.
      stride: stride of the second convolution and of the shortcut.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the block's output for `x`, (n, h, w, c): (n, ceil(h / stride), ceil(w / stride), width)."""
        normalise = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        # Padding by 1 on every side is PyTorch's; "SAME" would pad a strided convolution on one side only.
        y = Conv(self.width, (3, 3), padding=1, name="conv1")(nn.relu(normalise(name="norm1")(x)))
        y = nn.relu(normalise(name="norm2")(y))
        y = Conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv2")(y)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = Conv(self.width, (1, 1), strides=self.stride, padding="VALID", name="shortcut")(x)
        return x + y


class WideResNet(nn.Module):
    """Wide residual network as in the authors' code of *Adaptive Sparsity Loss*; WRN-16-8 unless told otherwise.

    Pre-activation blocks, a bias on every convolution, no dropout; the shortcut takes the block's input, before its
    normalisation, through a 1x1 convolution where the shape changes; the stride is on a block's second convolution.
    WRN-16-8 with 100 classes has 11,012,036 parameters. WRN-d-k has widths (16, 16k, 32k, 64k).

    Attributes:
      classes: number of classes.
      depth: number of convolutions and dense layers outside the shortcuts, 6 n + 4 for n blocks in each stage.
      widths: channels of the stem and of the three stages.
    """

    classes: int
    depth: int = 16
    widths: tuple[int, int, int, int] = (16, 128, 256, 512)

    fixed_widths = 1
    over_seeds = staticmethod(one_by_one)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of `images`, float (n, h, w, c); raises `ValueError` if the depth is not 6 n + 4."""
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"depth: got {self.depth}, but three stages of two-layer blocks need 10, 16, 22, 28, ...")
        x = Conv(self.widths[0], (3, 3), padding=1, name="stem")(images)
        for stage, width in enumerate(self.widths[1:], start=1):
            for block in range((self.depth - 4) // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                x = Block(width, stride, name=f"stage{stage}_block{block + 1}")(x, train)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="norm")(x)
        return Dense(self.classes, name="classifier")(jnp.mean(nn.relu(x), axis=(1, 2)))


def parameter_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> chex.ArrayTree:
    """Returns the tree of trainable parameters of `model` on images (h, w, c) as shapes, without allocating them."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def parameter_count(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Returns the exact number of trainable parameters of `model` on images (h, w, c), without allocating them."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(model, image_shape)))


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
