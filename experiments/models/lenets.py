"""The two LeNets: dense layers only, and two convolutions before them."""

import flax.linen as nn
import jax

from experiments.models.layers import Conv, Dense, caffe, check_size, one_by_one, torch_uniform
from experiments.pooling import max_pool


class LeNet300100(nn.Module):
    """LeNet-300-100: images (n, h, w, c) -> logits (n, classes), 266,610 parameters on 28x28x1 with 10 classes.

    Biases start from zero and kernels from He normal with fan-in.

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

    Biases start from zero and kernels from Caffe's initialiser, uniform with variance 1/fan-in: He normal is for layers
    followed by a ReLU, and the convolutions are not.

    Attributes:
      classes: number of classes.
      widths: channels of the first and the second convolution, units of the dense layer.
    """

    classes: int
    widths: tuple[int, int, int] = (20, 50, 500)

    fixed_widths = 0
    initial = staticmethod(caffe)
    # Kernels that differ from seed to seed would become grouped convolutions, which are slow.
    over_seeds = staticmethod(one_by_one)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of `images`, float (n, h, w, c), h and w at least 16; otherwise raises `ValueError`."""
        check_size(images, 16, "LeNet-5")
        x = images
        for width in self.widths[:2]:
            x = Conv(width, (5, 5), padding="VALID", **self.initial(25 * x.shape[-1]))(x)
            x = self.activate(max_pool(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(Dense(self.widths[2], **self.initial(x.shape[-1]))(x))
        return Dense(self.classes, **self.initial(x.shape[-1]))(x)

    def activate(self, x: jax.Array) -> jax.Array:
        """Returns what a convolution's pooled output becomes: itself."""
        return x


class ReluLeNet5(LeNet5):
    """LeNet-5 as in PyTorch's MNIST example, on which the authors of *Directional Pruning* show gRDA.

    A ReLU behind every layer but the last, and PyTorch's default start, uniform in +-1/sqrt(fan-in), biases too. Its
    deviation is 0.58 of Caffe's, and gRDA's threshold has to outgrow the start before it prunes.
    """

    initial = staticmethod(torch_uniform)

    def activate(self, x: jax.Array) -> jax.Array:
        """Returns the ReLU of a convolution's pooled output."""
        return nn.relu(x)
