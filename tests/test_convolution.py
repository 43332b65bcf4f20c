"""The convolution that is fast inside a loop: its gradients, its layout, and what it leaves to JAX."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from experiments import convolution
from experiments.models import WideResNet

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def gradients(images, kernels, gradient, strides, pads):
    """The gradients of sum(gradient * convolution) by the definition of the convolution, one product at a time."""
    of_images, of_kernels = np.zeros(images.shape), np.zeros(kernels.shape)
    for n, i, j, o in np.ndindex(gradient.shape):
        for a, b, c in np.ndindex(kernels.shape[:3]):
            row, column = i * strides[0] + a - pads[0][0], j * strides[1] + b - pads[1][0]
            if 0 <= row < images.shape[1] and 0 <= column < images.shape[2]:
                of_images[n, row, column, c] += gradient[n, i, j, o] * kernels[a, b, c, o]
                of_kernels[a, b, c, o] += gradient[n, i, j, o] * images[n, row, column, c]
    return of_images, of_kernels


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "pads"),
    [
        ((6, 5), 3, (1, 1), ((1, 1), (1, 1))),
        ((6, 5), 3, (2, 2), ((1, 1), (1, 1))),
        ((6, 6), 1, (2, 2), ((0, 0), (0, 0))),
        ((6, 7), 5, (1, 1), ((0, 0), (0, 0))),
        ((7, 6), 3, (2, 1), ((0, 1), (2, 0))),
    ],
)
def test_convolution_gradients(size, kernel, strides, pads):
    images, kernels = normal(2, *size, 2), normal(kernel, kernel, 2, 3)

    def outputs(images, kernels, gradient):
        output, pull = jax.vjp(lambda i, k: convolution.convolve(i, k, strides, pads), images, kernels)
        return output, pull(gradient)

    shape = jax.eval_shape(lambda i, k: convolution.convolve(i, k, strides, pads), images, kernels).shape
    gradient = normal(*shape)
    output, found = jax.jit(outputs)(images, kernels, gradient)
    of_images, of_kernels = gradients(images, kernels, gradient, strides, pads)
    np.testing.assert_allclose(found[0], of_images, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], of_kernels, rtol=1e-4, atol=1e-5)
    # The convolution is linear in the images, so the same loops check its value.
    np.testing.assert_allclose(np.vdot(output, gradient), np.vdot(of_images, images), rtol=1e-3, atol=1e-4)


def test_every_convolution_in_a_loop_has_the_fast_layout():
    # Of images of a few pixels XLA may swap the operands by itself, for then the kernels are the larger ones.
    model, images = WideResNet(3, depth=10, widths=(2, 2, 3, 3)), normal(2, 16, 16, 1)
    variables = model.init(jax.random.key(0), images)

    def loss(params):
        return jnp.sum(model.apply({**variables, "params": params}, images) ** 2)

    def descend(params, _):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params)), None

    program = jax.jit(lambda params: jax.lax.scan(descend, params, length=2)).lower(variables["params"]).compile()
    layouts = re.findall(r"dim_labels=(\S+?),? ", program.as_text())
    assert len(layouts) >= 9  # those of the forward pass; the gradients are convolutions in the same layout or none
    assert set(layouts) == {"b01f_01io->b01f"}


def test_convolution_has_hessian_vector_products():
    images, kernels = normal(1, 4, 4, 1), normal(3, 3, 1, 1)

    def loss(kernels):
        return jnp.sum(convolution.convolve(images, kernels, (1, 1), ((0, 0), (0, 0))) ** 2) / 2

    product = jax.jit(lambda v: jax.jvp(jax.grad(loss), (kernels,), (v,))[1])(kernels)
    output = oracles.convolve(images, kernels, 1, 0)
    _, expected = gradients(images, kernels, output, (1, 1), ((0, 0), (0, 0)))  # quadratic: H k is the gradient at k
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-5)


def spread(array, steps, axis):
    """The array with zeros between its entries along `axis` and the next, as a dilation inserts them."""
    for step in steps:
        shape = list(array.shape)
        shape[axis] = (shape[axis] - 1) * step + 1
        out = np.zeros(shape, array.dtype)
        out[(slice(None),) * axis + (slice(None, None, step),)] = array
        array, axis = out, axis + 1
    return array


IMAGES, KERNELS, GROUPED = normal(2, 6, 5, 4), normal(3, 3, 4, 6), normal(3, 3, 2, 6)
BLOCKS = np.zeros((3, 3, 4, 6), np.float32)  # the two groups as one kernel, which is zero between them
BLOCKS[:, :, :2, :3], BLOCKS[:, :, 2:, 3:] = GROUPED[..., :3], GROUPED[..., 3:]


@pytest.mark.parametrize(
    ("kernels", "arguments", "equal_images", "equal_kernels"),
    [
        (KERNELS, {"rhs_dilation": (2, 1)}, IMAGES, spread(KERNELS, (2, 1), 0)),
        (KERNELS, {"lhs_dilation": (1, 2)}, spread(IMAGES, (1, 2), 1), KERNELS),
        (GROUPED, {"feature_group_count": 2}, IMAGES, BLOCKS),
    ],
)
def test_convolution_leaves_the_others_to_jax(kernels, arguments, equal_images, equal_kernels):
    pads, numbers = ((1, 1), (1, 1)), convolution.LAYOUT
    convolve_any = partial(convolution.conv_general_dilated, dimension_numbers=numbers, **arguments)
    found = convolve_any(IMAGES, kernels, (1, 1), pads)
    padded = np.pad(equal_images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = (i - k + 1 for i, k in zip(padded.shape[1:3], equal_kernels.shape[:2], strict=True))
    expected = np.zeros((2, height, width, 6))
    for a, b in np.ndindex(equal_kernels.shape[:2]):
        expected += padded[:, a : a + height, b : b + width] @ equal_kernels[a, b]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    gradient = jax.eval_shape(jax.grad(lambda k: convolve_any(IMAGES, k, (1, 1), pads).sum()), kernels)
    assert gradient.shape == kernels.shape


def test_convolution_keeps_the_precision():
    # On a CPU all precisions are one, so this reads the program.
    settings = {"dimension_numbers": convolution.LAYOUT, "precision": "highest"}
    traced = jax.make_jaxpr(lambda i, k: convolution.conv_general_dilated(i, k, (1, 1), "SAME", **settings))
    (product,) = traced(IMAGES, KERNELS).eqns
    assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


def test_convolution_of_signals():
    signals, kernels = normal(2, 6, 3), normal(3, 3, 4)
    found = convolution.conv_general_dilated(signals, kernels, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    expected = sum(np.float64(signals[:, i : i + 4]) @ kernels[i] for i in range(3))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
