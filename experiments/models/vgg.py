"""The VGGs for CIFAR: 3x3 convolutions in five stages, which leave one pixel of 32x32."""

import flax.linen as nn
import jax

from experiments.models.layers import Conv, Dense, batch_norm, he_fan_out, one_by_one, torch_uniform
from experiments.models.plain import ConvNet


class Vgg11(ConvNet):
    """The VGG11 of mean replacement pruning on CIFAR-10: eight 3x3 convolutions, dense 512, 512, no batch norm.

    It has 9,750,922 parameters on 32x32x3 with 10 classes. Initialisers as in `SmallConv`, and no dropout: the paper
    names none, while the VGG11 of the authors' later code has dense layers of 4096 and dropout.

    *Mean Replacement Pruning*, submitted to ICLR 2019, section 6.3.

    Attributes:
      classes: number of classes.
      widths: channels of the eight convolutions, units of the two hidden dense layers.
    """

    widths: tuple[int, ...] = (64, 128, 256, 256, 512, 512, 512, 512, 512, 512)

    stages = ((3,), (3,), (3, 3), (3, 3), (3, 3))
    smallest = 32


class Vgg16(ConvNet):
    """VGG16 for CIFAR as in the authors' code of directional pruning: 13 convolutions, dense 512, 512, no batch norm.

    It has 15,245,130 parameters on 32x32x3 with 10 classes. Training drops half the inputs of each hidden dense layer.
    As in the authors' code, the convolutions start from He normal with fan-out and no biases, the dense layers from
    PyTorch's default.

    Chao et al., *Directional Pruning of Deep Neural Networks*, NeurIPS 2020.

    Attributes:
      classes: number of classes.
      widths: channels of the thirteen convolutions, units of the two hidden dense layers.
    """

    widths: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)

    stages = ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    smallest = 32
    dropout = 0.5
    of_convolutions = staticmethod(he_fan_out)
    of_dense_layers = staticmethod(torch_uniform)


class VggLike(nn.Module):
    """The "VGG-like" of the pruning literature: VGG16 for CIFAR with batch norm, dense 512, and dropout throughout.

    It has 14,991,946 parameters on 32x32x3 with 10 classes, 14,977,728 of them weights. *AutoPrune* names it and
    describes it no further; the papers it compares with (such as Molchanov, Ashukha and Vetrov, *Variational Dropout
    Sparsifies Deep Neural Networks*, 2017) take this network of Zagoruyko, *92.45% on CIFAR-10 in Torch*, 2015.

    Batch norm, with Torch's epsilon of 0.001, and a ReLU follow every layer but the output, biases stay. Training drops
    0.3 of the first layer's outputs, 0.4 of those of every other convolution that no pooling follows, and half of what
    enters the dense layers. Pooling keeps an odd last row or column. Convolutions start from He normal with fan-out and
    no biases, dense layers from PyTorch's default, and the scales of batch norm from 1, not at random as in Torch.

    Attributes:
      classes: number of classes.
      widths: channels of the thirteen convolutions, units of the hidden dense layer.
    """

    classes: int
    widths: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512)

    fixed_widths = 0
    over_seeds = staticmethod(one_by_one)

    stages = (2, 2, 3, 3, 3)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of `images`, float (n, h, w, c)."""
        normalise = batch_norm(train, epsilon=1e-3)
        widths, x = iter(self.widths), images
        for stage, depth in enumerate(self.stages):
            for layer in range(depth):
                x = Conv(next(widths), (3, 3), padding=1, **he_fan_out(9 * x.shape[-1]))(x)
                x = nn.relu(normalise()(x))
                if layer < depth - 1:
                    x = nn.Dropout(0.4 if stage else 0.3, deterministic=not train)(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        x = x.reshape(x.shape[0], -1)
        for width in widths:
            x = nn.Dropout(0.5, deterministic=not train)(x)
            x = nn.relu(normalise()(Dense(width, **torch_uniform(x.shape[-1]))(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return Dense(self.classes, **torch_uniform(x.shape[-1]))(x)
