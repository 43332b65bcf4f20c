"""Residual networks: pre-activation and wide for CIFAR, bottlenecks for ImageNet."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.layers import (
    Conv,
    Dense,
    Initial,
    batch_norm,
    conv_norm,
    he_normal,
    one_by_one,
    torch_uniform,
)


class Block(nn.Module):
    """The residual block of `WideResNet`: BN, ReLU, 3x3, BN, ReLU, 3x3 with the stride, plus the shortcut.

    Attributes:
      width: number of output channels.
      stride: stride of the second convolution and of the shortcut.
      initial: initialiser of the convolutions.
    """

    width: int
    stride: int = 1
    initial: Initial = he_normal

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the block's output for `x`, (n, h, w, c): (n, ceil(h / stride), ceil(w / stride), width)."""
        normalise, inputs = batch_norm(train), x.shape[-1]
        # Padding by 1 on every side is PyTorch's; "SAME" would pad a strided convolution on one side only.
        y = nn.relu(normalise(name="norm1")(x))
        y = Conv(self.width, (3, 3), padding=1, name="conv1", **self.initial(9 * inputs))(y)
        y = nn.relu(normalise(name="norm2")(y))
        y = Conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv2", **self.initial(9 * self.width))(y)
        if self.stride != 1 or inputs != self.width:
            x = Conv(self.width, (1, 1), strides=self.stride, name="shortcut", **self.initial(inputs))(x)
        return x + y


class WideResNet(nn.Module):
    """Wide residual network as in the authors' code of *Adaptive Sparsity Loss*; WRN-16-8 unless told otherwise.

    Pre-activation blocks, a bias on every convolution, no dropout; the shortcut takes the block's input, before its
    normalisation, through a 1x1 convolution where the shape changes; the stride is on a block's second convolution.
    WRN-16-8 with 100 classes has 11,012,036 parameters. WRN-d-k has widths (16, 16k, 32k, 64k).

    Biases start from zero and kernels from He normal with fan-in. The authors leave PyTorch's default in place, as in
    `WideResNet28x10`.

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

    initial = staticmethod(he_normal)
    last_momentum = 0.9
    """Momentum of the last batch norm; that of the others is 0.9."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of `images`, float (n, h, w, c); raises `ValueError` if the depth is not 6 n + 4."""
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"depth: got {self.depth}, but three stages of two-layer blocks need 10, 16, 22, 28, ...")
        x = Conv(self.widths[0], (3, 3), padding=1, name="stem", **self.initial(9 * images.shape[-1]))(images)
        for stage, width in enumerate(self.widths[1:], start=1):
            for block in range((self.depth - 4) // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                x = Block(width, stride, self.initial, name=f"stage{stage}_block{block + 1}")(x, train)
        x = batch_norm(train, self.last_momentum)(name="norm")(x)
        x = jnp.mean(nn.relu(x), axis=(1, 2))
        return Dense(self.classes, name="classifier", **self.initial(x.shape[-1]))(x)


class WideResNet16x2(WideResNet):
    """WRN-16-2: `WideResNet` for where WRN-16-8 is too slow. It has 704,420 parameters on 32x32x3 with 100 classes.

    Attributes:
      classes: number of classes.
      depth: as for `WideResNet`.
      widths: channels of the stem and of the three stages.
    """

    widths: tuple[int, int, int, int] = (16, 32, 64, 128)


class WideResNet28x10(WideResNet):
    """WRN-28-10 as in the authors' code of directional pruning: the layers of `WideResNet`, begun as PyTorch does.

    It has 36,489,290 parameters with 10 classes and 36,546,980 with 100. Kernels and biases start from PyTorch's
    default, which for kernels has a sixth of He normal's variance; what gRDA thresholds is the start plus all steps, so
    the start matters. The last batch norm takes 0.9 of every new batch into its statistics, not 0.1.

    Chao et al., *Directional Pruning of Deep Neural Networks*, NeurIPS 2020.

    Attributes:
      classes: number of classes.
      depth: as for `WideResNet`.
      widths: channels of the stem and of the three stages.
    """

    depth: int = 28
    widths: tuple[int, int, int, int] = (16, 160, 320, 640)

    initial = staticmethod(torch_uniform)
    last_momentum = 0.1


class Bottleneck(nn.Module):
    """The residual block of `ResNet50`: 1x1, 3x3 with the stride, 1x1, plus the shortcut, then a ReLU.

    Batch norm follows every convolution, none of which has a bias, and a ReLU the first two.

    Attributes:
      width: channels of the first two convolutions; a quarter of the output's.
      stride: stride of the 3x3 convolution and of the shortcut.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the block's output for `x`, (n, h, w, c): (n, ceil(h / stride), ceil(w / stride), 4 width)."""
        y = nn.relu(conv_norm(x, self.width, train, "conv1"))
        y = nn.relu(conv_norm(y, self.width, train, "conv2", 3, self.stride))
        y = conv_norm(y, 4 * self.width, train, "conv3")
        if self.stride != 1 or x.shape[-1] != 4 * self.width:
            x = conv_norm(x, 4 * self.width, train, "shortcut", stride=self.stride)
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """ResNet-50 for ImageNet as in torchvision: version 1.5, whose stride is on the 3x3 convolution of a block.

    It has 25,557,032 parameters on images of 3 channels with 1000 classes, and 4.09 G multiply-adds at 224x224.
    Convolutions start from He normal with fan-out, scales of batch norm from 1, the dense layer from PyTorch's default.

    He, Zhang, Ren and Sun, *Deep Residual Learning for Image Recognition*, 2015.

    Attributes:
      classes: number of classes.
      widths: channels of the stem; of the 3x3 convolutions of the four stages, whose outputs are four times as wide.
    """

    classes: int
    widths: tuple[int, int, int, int, int] = (64, 64, 128, 256, 512)

    fixed_widths = 0
    over_seeds = staticmethod(one_by_one)

    blocks = (3, 4, 6, 3)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of `images`, float (n, h, w, c)."""
        x = nn.relu(conv_norm(images, self.widths[0], train, "stem", 7, 2))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, (width, blocks) in enumerate(zip(self.widths[1:], self.blocks, strict=True), start=1):
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                x = Bottleneck(width, stride, name=f"stage{stage}_block{block + 1}")(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return Dense(self.classes, name="classifier", **torch_uniform(x.shape[-1]))(x)
