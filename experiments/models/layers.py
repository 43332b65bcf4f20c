"""What the networks are built of: layers, the initialisers of the papers, and the way to map a network over seeds.

An initialiser here is a function of the number of inputs of one unit, a convolution's kernel counted in, that returns
the keyword arguments of a layer: PyTorch draws biases too, within a bound that the shape of a bias does not tell.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from experiments.convolution import conv_general_dilated

Initial = Callable[[int], dict[str, nn.initializers.Initializer]]

Dense = partial(nn.Dense, kernel_init=nn.initializers.he_normal())
Conv = partial(nn.Conv, kernel_init=nn.initializers.he_normal(), conv_general_dilated=conv_general_dilated)


def kernels(initializer: nn.initializers.Initializer) -> Initial:
    """Returns the initialiser that draws kernels as told and leaves biases at zero."""
    return lambda inputs: {"kernel_init": initializer}


he_normal = kernels(nn.initializers.he_normal())
he_fan_out = kernels(nn.initializers.variance_scaling(2.0, "fan_out", "normal"))
glorot = kernels(nn.initializers.glorot_uniform())
caffe = kernels(nn.initializers.lecun_uniform())


def torch_uniform(inputs: int) -> dict[str, nn.initializers.Initializer]:
    """Returns PyTorch's default initialisers: kernels and biases uniform in +-1/sqrt(inputs)."""
    bound = 1 / math.sqrt(inputs)

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {"kernel_init": uniform, "bias_init": uniform}


def batch_norm(train: bool, momentum: float = 0.9, epsilon: float = 1e-5) -> Callable[..., nn.BatchNorm]:
    """Returns batch norm with PyTorch's defaults, as a layer to give a name to.

    Args:
      train: whether it normalises by the batch and moves its statistics, or normalises by them.
      momentum: the share of the statistics that a batch leaves in place; PyTorch's momentum is 1 - this.
      epsilon: what is added to the variance.
    """
    return partial(nn.BatchNorm, use_running_average=not train, momentum=momentum, epsilon=epsilon)


def activated(x: jax.Array, normalised: bool, train: bool) -> jax.Array:
    """Returns the ReLU of `x`, or of its batch norm without a scale and a shift, a submodule of the calling module."""
    return nn.relu(batch_norm(train)(use_scale=False, use_bias=False)(x) if normalised else x)


def conv_norm(
    x: jax.Array, width: int, train: bool, name: str, size: int = 1, stride: int = 1, groups: int = 1
) -> jax.Array:
    """Returns batch norm of a convolution of `x` that has no bias, as submodules of the module that calls this.

    Kernels start from He normal with fan-out. Padding keeps the height and the width but for the stride.

    Args:
      x: (n, h, w, c).
      width: number of output channels.
      train: as for `batch_norm`.
      name: of the convolution; batch norm is `<name>_norm`.
      size: height and width of the kernel, odd.
      stride: of the height and the width.
      groups: number of groups of channels.

    Returns:
      (n, ceil(h / stride), ceil(w / stride), width).
    """
    initial = he_fan_out(size * size * x.shape[-1] // groups)
    settings = {"strides": stride, "padding": size // 2, "feature_group_count": groups, "use_bias": False}
    return batch_norm(train)(name=f"{name}_norm")(Conv(width, (size, size), name=name, **settings, **initial)(x))


def check_size(images: jax.Array, least: int, network: str) -> None:
    """Raises `ValueError` if images (n, h, w, c) are smaller than `least` pixels either way."""
    height, width = images.shape[1:3]
    if min(height, width) < least:
        raise ValueError(
            f"images: {network} needs at least {least}x{least} pixels, got {height}x{width}: its convolutions and "
            "poolings would leave nothing; use larger images, or LeNet300100, which takes images of any size"
        )


def one_by_one(function: Callable) -> Callable:
    """Returns `function` mapped over the leading axis of its arguments in a loop, as `jax.vmap` maps it in parallel.

    Args:
      function: takes and returns trees of arrays.

    Returns:
      A function of the same trees with one more leading axis, which all of them share.
    """
    return lambda *args: jax.lax.map(lambda one: function(*one), args)
