"""A convolution whose gradient is fast inside a loop on the CPU.

XLA's CPU compiler has fast code for one layout only, images NHWC and kernels HWIO. It brings other layouts into that
form outside loops but not inside them (jax-ml/jax#12868), and JAX writes both gradients of a convolution in other
layouts. That makes a step of LeNet-5 inside the `lax.scan` of an epoch several times slower than outside it. Here the
transpositions are written out.
"""

from collections.abc import Sequence
from functools import partial

import jax

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

    Args:
      lhs: images (n, h, w, c).
      rhs: kernels (kh, kw, c, o).
      window_strides: of the height and the width.
      padding: a name, or (low, high) for the height and the width.
      lhs_dilation: None or ones.
      rhs_dilation: None or ones.
      dimension_numbers: Flax's, which are those of `lhs` and `rhs` above.
      feature_group_count: 1.
      precision: None.

    Returns:
      (n, h', w', o).

    Raises:
      ValueError: for anything but an ordinary convolution of images.
    """
    ones = {1, *(lhs_dilation or ()), *(rhs_dilation or ()), feature_group_count} == {1}
    if lhs.ndim != 4 or not ones or precision is not None:
        raise ValueError(
            f"lhs of shape {lhs.shape}, dilations {lhs_dilation} and {rhs_dilation}, {feature_group_count} groups, "
            f"precision {precision}: only ordinary convolutions of images are written out here; "
            "use jax.lax.conv_general_dilated"
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
    """Returns the gradients with respect to images and kernels, as convolutions in the layout that is fast.

    The gradient of the images convolves the dilated `gradient` with the mirrored kernels. That of the kernels
    convolves the images with the dilated `gradient` as the kernel, the batch in the place of the channels.
    """
    image_pads, kernel_pads = [], []
    for axis, stride, (low, _) in zip((0, 1), strides, pads, strict=True):
        size, width = images.shape[1 + axis], kernels.shape[axis]
        reach = (gradient.shape[1 + axis] - 1) * stride + 1
        image_pads.append((width - 1 - low, size + low - reach))
        kernel_pads.append((low, width - 1 + reach - size - low))
    of_images = jax.lax.conv_general_dilated(
        gradient,
        kernels[::-1, ::-1].transpose(0, 1, 3, 2),
        (1, 1),
        image_pads,
        lhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )
    of_kernels = jax.lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        gradient.transpose(1, 2, 0, 3),
        (1, 1),
        kernel_pads,
        rhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )
    return of_images, of_kernels.transpose(1, 2, 0, 3)


def _forward(images, kernels, strides, pads):
    # Not `convolve`: a custom gradient inside would forbid the forward mode that Hessian-vector products need.
    return plain(images, kernels, strides, pads), (images, kernels)


def _backward(strides, pads, saved, gradient):
    def own(images, kernels, gradient):
        return jax.vjp(lambda i, k: plain(i, k, strides, pads), images, kernels)[1](gradient)

    cpu = partial(cpu_gradients, strides=strides, pads=pads)
    return jax.lax.platform_dependent(*saved, gradient, cpu=cpu, default=own)


convolve.defvjp(_forward, _backward)
