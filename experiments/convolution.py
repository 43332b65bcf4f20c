"""A convolution whose gradient is fast inside a loop on the CPU.

XLA's CPU compiler has fast code for one layout only, images NHWC and kernels HWIO. It brings other layouts into that
form outside loops but not inside them (jax-ml/jax#12868), and JAX writes both gradients of a convolution in other
layouts. That makes a step of LeNet-5 inside the `lax.scan` of an epoch several times slower than outside it. Here both
gradients are written as products of matrices.
"""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp

LAYOUT = ("NHWC", "HWIO", "NHWC")
Pair = tuple[int, int]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: jax.lax.ConvDimensionNumbers | None = None,
    feature_group_count: int = 1,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Computes what `jax.lax.conv_general_dilated` does, for Flax's `nn.Conv(conv_general_dilated=...)`.

    Ordinary convolutions of images get the gradient that is fast; all others (with groups, dilations, a precision, or
    other than two dimensions of space) are left to JAX.

    Args:
      lhs: images (n, h, w, c).
      rhs: kernels (kh, kw, c, o).
      window_strides: of the height and the width.
      padding: a name, or (low, high) for the height and the width.
      lhs_dilation: of the images.
      rhs_dilation: of the kernels.
      dimension_numbers: Flax's, which are those of `lhs` and `rhs` above.
      feature_group_count: number of groups of channels; as many as channels are a depthwise convolution.
      precision: of the products.

    Returns:
      (n, h', w', o).
    """
    ones = {1, *(lhs_dilation or ()), *(rhs_dilation or ()), feature_group_count} == {1}
    if lhs.ndim != 4 or not ones or precision is not None:
        return jax.lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            precision=precision,
        )
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    return convolve(lhs, rhs, tuple(window_strides), tuple(tuple(pair) for pair in padding))


def plain(images: jax.Array, kernels: jax.Array, strides: Pair, pads: tuple[Pair, Pair]) -> jax.Array:
    """Returns the convolution with JAX's own gradient."""
    return jax.lax.conv_general_dilated(images, kernels, strides, pads, dimension_numbers=LAYOUT)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(images: jax.Array, kernels: jax.Array, strides: Pair, pads: tuple[Pair, Pair]) -> jax.Array:
    """Returns the convolution of images (n, h, w, c) with kernels (kh, kw, c, o), on every platform.

    Its gradient is JAX's own but on the CPU, where it is `cpu_gradients`, which is equal up to rounding.
    """
    return plain(images, kernels, strides, pads)


def cpu_gradients(images, kernels, gradient, strides: Pair, pads: tuple[Pair, Pair]) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients with respect to images and kernels, each as one product of matrices.

    A row of `columns` holds what a pixel of the output owes to each pixel of its window, which for the images is added
    up where the windows lie; for the kernels, the windows themselves are a matrix. On two cores this took a quarter to
    two thirds of the time of a convolution of the gradient, the smaller share for the images.
    """
    (height, width, *_), outputs = kernels.shape, kernels.shape[-1]
    places = [(row, column) for row in range(height) for column in range(width)]
    rows = gradient.reshape(-1, outputs)

    columns = (rows @ kernels.reshape(-1, outputs).T).reshape(*gradient.shape[:3], len(places), -1)
    zero = jnp.zeros((), columns.dtype)
    moved = [
        jax.lax.pad(columns[..., index, :], zero, _placing(place, images.shape, gradient.shape, strides, pads))
        for index, place in enumerate(places)
    ]
    of_images = reduce(jnp.add, moved)

    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    ends = [(size - 1) * stride + 1 for size, stride in zip(gradient.shape[1:3], strides, strict=True)]
    windows = [padded[:, r : r + ends[0] : strides[0], c : c + ends[1] : strides[1]] for r, c in places]
    if images.shape[-1] == 1:  # pixel by pixel side by side would be numbers one by one: a third of the speed
        of_kernels = jnp.stack(windows).reshape(len(places), -1) @ rows
    else:
        of_kernels = jnp.stack(windows, axis=3).reshape(len(rows), -1).T @ rows
    return of_images, of_kernels.reshape(kernels.shape)


def _placing(place: Pair, images: tuple, gradient: tuple, strides: Pair, pads: tuple[Pair, Pair]) -> list:
    """Returns how to pad one pixel of every window to where it lies in the images; below 0 where that is outside."""
    config = []
    for axis in (0, 1):
        low = place[axis] - pads[axis][0]
        reach = (gradient[1 + axis] - 1) * strides[axis] + 1
        config.append((low, images[1 + axis] - reach - low, strides[axis] - 1))
    return [(0, 0, 0), *config, (0, 0, 0)]


def _forward(images, kernels, strides, pads):
    # Not `convolve`: a custom gradient inside would forbid the forward mode that Hessian-vector products need.
    return plain(images, kernels, strides, pads), (images, kernels)


def _backward(strides, pads, saved, gradient):
    def own(images, kernels, gradient):
        return jax.vjp(lambda i, k: plain(i, k, strides, pads), images, kernels)[1](gradient)

    cpu = partial(cpu_gradients, strides=strides, pads=pads)
    return jax.lax.platform_dependent(*saved, gradient, cpu=cpu, default=own)


convolve.defvjp(_forward, _backward)
