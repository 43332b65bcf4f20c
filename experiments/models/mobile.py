"""MobileNetV2: inverted residual blocks around depthwise convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.layers import conv_norm, one_by_one


class InvertedResidual(nn.Module):
    """The block of `MobileNetV2`: 1x1 to more channels, depthwise 3x3 with the stride, 1x1 to fewer, linear at its end.

    Batch norm follows every convolution and a ReLU6 the first two. Without an expansion there is no first 1x1.
    The input is added where it has the output's shape.

    Attributes:
      width: number of output channels.
      stride: stride of the depthwise convolution.
      expansion: channels in the middle, as a multiple of the input's.
    """

    width: int
    stride: int = 1
    expansion: int = 6

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the block's output for `x`, (n, h, w, c): (n, ceil(h / stride), ceil(w / stride), width)."""
        middle, y = self.expansion * x.shape[-1], x
        if self.expansion != 1:
            y = nn.relu6(conv_norm(y, middle, train, "expand"))
        y = nn.relu6(conv_norm(y, middle, train, "depthwise", 3, self.stride, groups=middle))
        y = conv_norm(y, self.width, train, "project")
        return x + y if self.stride == 1 and x.shape[-1] == self.width else y


class MobileNetV2(nn.Module):
    """MobileNetV2 for ImageNet as in torchvision, with dropout 0.2 before the classifier.

    It has 3,504,872 parameters on images of 3 channels with 1000 classes, and 301 M multiply-adds at 224x224.
    Convolutions start from He normal with fan-out, scales of batch norm from 1, the classifier from a normal
    distribution with standard deviation 0.01 and no biases.

    The paper's own width multiplier rounds to multiples of 8 and leaves the last convolution as it is if it is below 1;
    `multiplied` and `scaled` do neither.

    Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, 2018, table 2.

    Attributes:
      classes: number of classes.
      widths: channels of the stem, of the outputs of the seven stages, and of the last convolution.
    """

    classes: int
    widths: tuple[int, ...] = (32, 16, 24, 32, 64, 96, 160, 320, 1280)

    fixed_widths = 0
    over_seeds = staticmethod(one_by_one)

    # Expansion, number of blocks, and stride of the first block of each stage.
    stages = ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of `images`, float (n, h, w, c)."""
        x = nn.relu6(conv_norm(images, self.widths[0], train, "stem", 3, 2))
        for number, (width, stage) in enumerate(zip(self.widths[1:-1], self.stages, strict=True), start=1):
            expansion, blocks, stride = stage
            for block in range(blocks):
                name = f"stage{number}_block{block + 1}"
                x = InvertedResidual(width, stride if block == 0 else 1, expansion, name=name)(x, train)
        x = nn.relu6(conv_norm(x, self.widths[-1], train, "head"))
        x = nn.Dropout(0.2, deterministic=not train)(jnp.mean(x, axis=(1, 2)))
        return nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.01), name="classifier")(x)
