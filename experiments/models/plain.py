"""Networks of convolutions, ReLUs, max pooling and dense layers, without shortcuts, and without batch norm at first."""

from typing import ClassVar

import flax.linen as nn
import jax

from experiments.models.layers import Conv, Dense, activated, check_size, glorot, one_by_one, torch_uniform
from experiments.pooling import max_pool


class ConvNet(nn.Module):
    """Stages of convolutions, each followed by max pooling by 2, then dense layers; a ReLU after all but the output.

    The classes below fix what a network consists of. Pooling drops an odd last row or column, as PyTorch and Keras do.

    Attributes:
      classes: number of classes.
      widths: channels of the convolutions, then units of the hidden dense layers, as many as there are.
      normalised: whether batch norm, without a scale and a shift, comes before every ReLU.
    """

    classes: int
    widths: tuple[int, ...]
    normalised: bool = False

    fixed_widths = 0
    over_seeds = staticmethod(one_by_one)

    stages: ClassVar[tuple[tuple[int, ...], ...]]
    """Sizes of the square kernels of each stage."""
    smallest: ClassVar[int]
    """Height and width of the smallest images of which the stages leave anything."""
    padding = "SAME"
    dropout = 0.0
    """Share of the inputs of each hidden dense layer that training drops."""
    of_convolutions = staticmethod(glorot)
    of_dense_layers = staticmethod(glorot)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of `images`, float (n, h, w, c); raises `ValueError` if they are too small."""
        check_size(images, self.smallest, type(self).__name__)
        widths, x = iter(self.widths), images
        for stage in self.stages:
            for size in stage:
                initial = self.of_convolutions(size * size * x.shape[-1])
                x = Conv(next(widths), (size, size), padding=self.padding, **initial)(x)
                x = activated(x, self.normalised, train)
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        for width in widths:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = activated(Dense(width, **self.of_dense_layers(x.shape[-1]))(x), self.normalised, train)
        return Dense(self.classes, **self.of_dense_layers(x.shape[-1]))(x)


class SmallConv(ConvNet):
    """The SMALL CONV of mean replacement pruning: 5x5, 3x3, 3x3 VALID, max pooling by 2 after each, dense 512, 128.

    It has 424,394 parameters on 32x32x3 with 10 classes. Biases start from zero and kernels from Glorot uniform, which
    is Keras's default, as in the authors' code.

    *Mean Replacement Pruning*, submitted to ICLR 2019, section 6.3.

    Attributes:
      classes: number of classes.
      widths: channels of the three convolutions, units of the two hidden dense layers.
    """

    widths: tuple[int, ...] = (32, 64, 128, 512, 128)

    stages = ((5,), (3,), (3,))
    padding = "VALID"
    smallest = 24


class MediumConv(SmallConv):
    """The MEDIUM CONV of mean replacement pruning: `SmallConv` of twice the width, 1,688,458 parameters.

    Attributes:
      classes: number of classes.
      widths: channels of the three convolutions, units of the two hidden dense layers.
    """

    widths: tuple[int, ...] = (64, 128, 256, 1024, 256)


class AlexNet(nn.Module):
    """AlexNet as in torchvision, the single-column variant of *One weird trick*, without local response normalisation.

    It has 61,100,840 parameters on 224x224x3 with 1000 classes, the 61.10 million of *Adaptive Sparsity Loss*, which
    starts from torchvision's weights. *Mean Replacement Pruning* has another one, `ValidAlexNet`. Everything starts
    from PyTorch's default. Training drops half the inputs of each hidden dense layer.

    torchvision averages what the convolutions leave to 6x6, which is what they leave of 224x224; here the dense layers
    take what they get.

    Krizhevsky, *One weird trick for parallelizing convolutional neural networks*, 2014.

    Attributes:
      classes: number of classes.
      widths: channels of the five convolutions, units of the two hidden dense layers.
      normalised: whether batch norm, without a scale and a shift, comes before every ReLU.
    """

    classes: int
    widths: tuple[int, ...] = (64, 192, 384, 256, 256, 4096, 4096)
    normalised: bool = False

    fixed_widths = 0
    over_seeds = staticmethod(one_by_one)

    # Size, stride and padding of each convolution, and whether 3x3 max pooling with stride 2 follows.
    convolutions = ((11, 4, 2, True), (5, 1, 2, True), (3, 1, 1, False), (3, 1, 1, False), (3, 1, 1, True))
    smallest = 63
    dropout = 0.5
    initial = staticmethod(torch_uniform)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of `images`, float (n, h, w, c); raises `ValueError` if they are too small."""
        check_size(images, self.smallest, type(self).__name__)
        widths, x = iter(self.widths), images
        for size, stride, padding, pooled in self.convolutions:
            initial = self.initial(size * size * x.shape[-1])
            x = Conv(next(widths), (size, size), strides=stride, padding=padding, **initial)(x)
            x = activated(x, self.normalised, train)
            if pooled:
                x = nn.max_pool(x, (3, 3), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for width in widths:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = activated(Dense(width, **self.initial(x.shape[-1]))(x), self.normalised, train)
        return Dense(self.classes, **self.initial(x.shape[-1]))(x)


class ValidAlexNet(AlexNet):
    """The AlexNet of mean replacement pruning: wider than torchvision's, without padding and without dropout.

    It has 41,406,824 parameters on 224x224x3 with 1000 classes. No pooling follows the last convolution. Initialisers
    as in `SmallConv`.

    *Mean Replacement Pruning*, submitted to ICLR 2019, section 6.3.

    Attributes:
      classes: number of classes.
      widths: channels of the five convolutions, units of the two hidden dense layers.
      normalised: as for `AlexNet`.
    """

    widths: tuple[int, ...] = (96, 256, 384, 384, 256, 4096, 4096)

    convolutions = ((11, 4, 0, True), (5, 1, 0, True), (3, 1, 0, False), (3, 1, 0, False), (3, 1, 0, False))
    smallest = 163
    dropout = 0.0
    initial = staticmethod(glorot)
