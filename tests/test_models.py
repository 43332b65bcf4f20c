"""The networks: exact sizes, what they compute, thin versions, and the convolution that is fast inside a loop."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import convolution, models
from experiments.models import Block, LeNet5, LeNet300100, WideResNet

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def wide_resnet_count(depth, widths, classes, channels=3):
    """Sums layer by layer: convolutions with biases, two numbers a normalised channel, shortcuts at new shapes."""
    count, before = 9 * channels * widths[0] + widths[0], widths[0]
    for stage, width in enumerate(widths[1:]):
        for block in range((depth - 4) // 6):
            count += 2 * before + 9 * before * width + width + 2 * width + 9 * width * width + width
            if (stage > 0 and block == 0) or before != width:
                count += before * width + width
            before = width
    return count + 2 * before + before * classes + classes


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (LeNet300100(10), (28, 28, 1), 266_610),
        (LeNet300100(10), (8, 8, 1), 64 * 300 + 300 + 30_000 + 100 + 1010),
        (LeNet300100(3, widths=(5, 4, 2)), (2, 2, 3), 12 * 5 + 5 + 24 + 10 + 9),
        (LeNet5(10), (28, 28, 1), 431_080),
        (LeNet5(10), (16, 16, 3), 75 * 20 + 20 + 25_050 + 50 * 500 + 500 + 5010),
        (WideResNet(100), (32, 32, 3), 11_012_036),
        (WideResNet(100, widths=(16, 48, 96, 192)), (32, 32, 3), 1_568_596),
        (WideResNet(100, widths=(16, 49, 99, 198)), (32, 32, 3), 1_665_210),
        (WideResNet(100, widths=(16, 50, 99, 198)), (32, 32, 3), 1_669_046),
        (WideResNet(10, widths=(16, 32, 64, 128)), (28, 28, 1), wide_resnet_count(16, (16, 32, 64, 128), 10, 1)),
        (WideResNet(10, depth=10, widths=(4, 4, 6, 6)), (8, 8, 1), wide_resnet_count(10, (4, 4, 6, 6), 10, 1)),
    ],
)
def test_parameter_counts(model, shape, count):
    assert models.parameter_count(model, shape) == count
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, *shape)))
    assert jax.eval_shape(model.apply, variables, jnp.zeros((2, *shape))).shape == (2, model.classes)


def test_initial_values():
    variables = WideResNet(10, depth=10, widths=(16, 16, 16, 64)).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    params = variables["params"]
    kernel = np.asarray(params["stage3_block1"]["conv2"]["kernel"])
    assert abs(kernel.mean()) < 0.002
    assert abs(kernel.std() / math.sqrt(2 / (9 * 64)) - 1) < 0.02
    biases = [np.asarray(leaf["bias"]) for leaf in (params["stem"], params["classifier"], params["norm"])]
    assert not any(bias.any() for bias in biases)
    assert set(variables) == {"params", "batch_stats"}


def test_initial_values_of_lenet5_are_caffes():
    params = LeNet5(10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    for name, inputs in (("Conv_0", 25), ("Conv_1", 500), ("Dense_0", 800), ("Dense_1", 500)):
        kernel = np.asarray(params[name]["kernel"])
        assert 0.95 < np.abs(kernel).max() / math.sqrt(3 / inputs) <= 1
        assert abs(kernel.std() / math.sqrt(1 / inputs) - 1) < 0.1


def convolve(images, kernels, stride, pad):
    """A convolution of NHWC images with HWIO kernels, in float64 loops."""
    n, height, width, _ = images.shape
    size = kernels.shape[0]
    padded = np.zeros((n, height + 2 * pad, width + 2 * pad, images.shape[3]))
    padded[:, pad : pad + height, pad : pad + width] = images
    rows, columns = ((side + 2 * pad - size) // stride + 1 for side in (height, width))
    out = np.zeros((n, rows, columns, kernels.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.tensordot(window, kernels, 3)
    return out


def test_lenet5_is_caffes():
    # No ReLU after a convolution, pooling by 2 after each, a ReLU after the hidden dense layer only.
    model, images = LeNet5(3, widths=(2, 3, 4)), normal(2, 17, 16, 1)
    variables = model.init(jax.random.key(1), images)
    layers = {
        name: [np.float64(layer["kernel"]), normal(layer["bias"].size)] for name, layer in variables["params"].items()
    }
    x = images
    for name in ("Conv_0", "Conv_1"):
        x = convolve(x, layers[name][0], 1, 0) + layers[name][1]
        n, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
    x = np.maximum(x.reshape(2, -1) @ layers["Dense_0"][0] + layers["Dense_0"][1], 0)
    expected = x @ layers["Dense_1"][0] + layers["Dense_1"][1]
    params = {name: {"kernel": variables["params"][name]["kernel"], "bias": layers[name][1]} for name in layers}
    np.testing.assert_allclose(model.apply({"params": params}, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 15, 1)])
def test_lenet5_refuses_small_images(shape):
    with pytest.raises(ValueError, match="at least 16x16 pixels"):
        jax.eval_shape(LeNet5(10).init, jax.random.key(0), jnp.zeros((1, *shape)))


@pytest.mark.parametrize("depth", [4, 15])
def test_wide_resnet_refuses_depths(depth):
    with pytest.raises(ValueError, match="10, 16, 22"):
        jax.eval_shape(WideResNet(10, depth=depth).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize(("width", "stride"), [(3, 2), (2, 1)])
def test_block_is_the_authors(width, stride):
    # Pre-activation; the stride is on the second convolution; the shortcut takes the input as it is.
    block, images = Block(width, stride), normal(2, 5, 4, 2)
    shapes = jax.eval_shape(block.init, jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: normal(*leaf.shape), shapes["params"])
    statistics = jax.tree.map(lambda leaf: np.abs(normal(*leaf.shape)) + 0.5, shapes["batch_stats"])

    def norm_relu(name, y):
        scaled = (y - statistics[name]["mean"]) / np.sqrt(statistics[name]["var"] + 1e-5)
        return np.maximum(scaled * params[name]["scale"] + params[name]["bias"], 0)

    y = convolve(norm_relu("norm1", images), params["conv1"]["kernel"], 1, 1) + params["conv1"]["bias"]
    y = convolve(norm_relu("norm2", y), params["conv2"]["kernel"], stride, 1) + params["conv2"]["bias"]
    shortcut = images
    assert ("shortcut" in params) == (width != 2)
    if width != 2:
        shortcut = convolve(images, params["shortcut"]["kernel"], stride, 0) + params["shortcut"]["bias"]
    output = jax.jit(block.apply)({"params": params, "batch_stats": statistics}, images)
    np.testing.assert_allclose(output, shortcut + y, rtol=1e-4, atol=1e-4)


def test_batch_statistics():
    model, images = WideResNet(3, depth=10, widths=(2, 2, 2, 2)), normal(4, 4, 4, 1)
    variables = model.init(jax.random.key(0), images)
    _, updated = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    stem = convolve(images, np.asarray(variables["params"]["stem"]["kernel"]), 1, 1)
    statistics = updated["batch_stats"]["stage1_block1"]["norm1"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "kept", "widths"),
    [
        (WideResNet(100), 0.15, (16, 49, 99, 198)),
        (WideResNet(100), 1.0, (16, 128, 256, 512)),
        (LeNet300100(10), 0.15, (116, 38)),
        (LeNet300100(10), 1e-9, (1, 1)),
        (LeNet300100(10, widths=(100, 50)), 0.29**2, (29, 14)),  # 100 * 0.29 is 28.999999999999996 in floating point
        (LeNet5(10), 0.25, (10, 25, 250)),
    ],
)
def test_scaled_widths(model, kept, widths):
    assert models.scaled(model, kept) == model.clone(widths=widths)


def test_scaled_lenet_keeps_more_than_it_is_asked_to():
    # 784 inputs stay, so 0.15 of the weights is out of Eq. 12's reach: the docstring's 36%.
    count = models.parameter_count(models.scaled(LeNet300100(10), 0.15), (28, 28, 1))
    assert count == 784 * 116 + 116 + 116 * 38 + 38 + 38 * 10 + 10
    assert round(count / 266_610, 2) == 0.36


@pytest.mark.parametrize("kept", [0, -0.1, 1.5, math.nan])
def test_scaled_refuses(kept):
    with pytest.raises(ValueError, match="kept"):
        models.scaled(LeNet300100(10), kept)


def lenet_count(widths):
    first, second = widths
    return 6 * first + first + first * second + second + second * 4 + 4


@pytest.mark.parametrize("target", [17, 18, 50, 90, 130, 149, 150, lenet_count((9, 7))])
def test_thin_is_the_nearest_of_all_multipliers(target):
    model = LeNet300100(4, widths=(9, 7))
    found = models.thin(model, target, lambda m: models.parameter_count(m, (3, 2, 1)))
    every = {tuple(max(1, (width * i) // 63) for width in (9, 7)) for i in range(1, 64)}
    allowed = [widths for widths in every if lenet_count(widths) <= 1.01 * target]
    best = min(abs(lenet_count(widths) - target) for widths in allowed)
    assert found.widths in allowed
    assert abs(lenet_count(found.widths) - target) == best


def test_thin_networks_of_the_papers():
    # Eq. 12 leaves 36% of LeNet-300-100 at 0.15; here it is 15%, within what one unit more or less is worth.
    target = round(0.15 * 266_610)
    found = models.thin(LeNet300100(10), target, lambda m: models.parameter_count(m, (28, 28, 1)))
    assert abs(models.parameter_count(found, (28, 28, 1)) - target) < 0.01 * target
    resnet = models.thin(WideResNet(100), 1_651_805, lambda m: wide_resnet_count(16, m.widths, 100))
    assert resnet.widths[0] == 16
    assert abs(wide_resnet_count(16, resnet.widths, 100) - 1_651_805) < 0.01 * 1_651_805


@pytest.mark.parametrize("target", [15, 10**6])
def test_thin_refuses(target):
    with pytest.raises(ValueError, match=f"target: got {target}"):
        models.thin(LeNet300100(4, widths=(9, 7)), target, lambda m: lenet_count(m.widths))


def test_one_by_one_maps_as_vmap_does():
    def function(tree, y):
        return {"sum": tree["x"].sum() + y, "y": -y}

    x, y = normal(3, 4), normal(3)
    mapped = models.one_by_one(function)({"x": x}, y)
    np.testing.assert_allclose(mapped["sum"], x.sum(1) + y, rtol=1e-6)
    np.testing.assert_array_equal(mapped["y"], -y)


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
    assert len(layouts) > 20
    assert set(layouts) == {"b01f_01io->b01f"}


def test_convolution_has_hessian_vector_products():
    images, kernels = normal(1, 4, 4, 1), normal(3, 3, 1, 1)

    def loss(kernels):
        return jnp.sum(convolution.convolve(images, kernels, (1, 1), ((0, 0), (0, 0))) ** 2) / 2

    product = jax.jit(lambda v: jax.jvp(jax.grad(loss), (kernels,), (v,))[1])(kernels)
    output = convolve(images, kernels, 1, 0)
    _, expected = gradients(images, kernels, output, (1, 1), ((0, 0), (0, 0)))  # quadratic: H k is the gradient at k
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [{"rhs_dilation": (2, 2)}, {"lhs_dilation": (1, 2)}, {"feature_group_count": 2}, {"precision": "highest"}],
)
def test_convolution_refuses_what_it_does_not_write_out(arguments):
    with pytest.raises(ValueError, match="only ordinary convolutions"):
        convolution.conv_general_dilated(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 2)), (1, 1), "SAME", **arguments)
