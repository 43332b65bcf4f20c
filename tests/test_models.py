"""The networks: exact sizes, what they compute, and thin versions."""

import math
from functools import partial
from typing import get_args

import flax
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import sparsejax as sj
from experiments import models, setup
from experiments.models import (
    AlexNet,
    Block,
    Bottleneck,
    InvertedResidual,
    LeNet5,
    LeNet300100,
    MediumConv,
    MobileNetV2,
    ReluLeNet5,
    ResNet50,
    SmallConv,
    ValidAlexNet,
    Vgg11,
    Vgg16,
    VggLike,
    WideResNet,
    WideResNet16x2,
    WideResNet28x10,
)

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def layer(inputs, outputs, size=1, side=1, bias=True, norm=False):
    """Parameters and multiply-adds of a convolution of square kernels and outputs, or of a dense layer."""
    weights = size * size * inputs * outputs
    return np.array([weights + outputs * (bias + 2 * norm), weights * side * side])


def batch_norm(channels):
    return np.array([2 * channels, 0])


def lenet_size(widths, classes, inputs=784):
    first, second = widths
    return layer(inputs, first) + layer(first, second) + layer(second, classes)


def lenet5_size(widths, classes):
    a, b, c = widths
    return layer(1, a, 5, 24) + layer(a, b, 5, 8) + layer(16 * b, c) + layer(c, classes)


def small_conv_size(widths, classes):
    # 32 -> 28 -> 14 -> 12 -> 6 -> 4 -> 2 pixels
    a, b, c, d, e = widths
    convolutions = layer(3, a, 5, 28) + layer(a, b, 3, 12) + layer(b, c, 3, 4)
    return convolutions + layer(4 * c, d) + layer(d, e) + layer(e, classes)


def vgg_size(depths, norm, widths, classes):
    widths, before, side, total = list(widths), 3, 32, 0
    for depth in depths:
        for _ in range(depth):
            total = total + layer(before, widths[0], 3, side, norm=norm)
            before = widths.pop(0)
        side //= 2
    for width in widths:
        total = total + layer(before, width, norm=norm)
        before = width
    return total + layer(before, classes)


def wide_resnet_size(depth, widths, classes, channels=3, side=32):
    """A bias on every convolution, and two numbers a normalised channel, before the convolution."""
    before = widths[0]
    total = layer(channels, before, 3, side)
    for stage, width in enumerate(widths[1:]):
        for block in range((depth - 4) // 6):
            strided = stage > 0 and block == 0
            total = total + layer(before, width, 3, side, norm=True) + batch_norm(before)
            side = math.ceil(side / 2) if strided else side
            total = total + layer(width, width, 3, side)
            if strided or before != width:
                total = total + layer(before, width, 1, side)
            before = width
    return total + batch_norm(before) + layer(before, classes)


def alexnet_size(widths, classes):
    # 224 -> 55 -> 27 -> 13 -> 6 pixels
    a, b, c, d, e, f, g = widths
    convolutions = layer(3, a, 11, 55) + layer(a, b, 5, 27) + layer(b, c, 3, 13) + layer(c, d, 3, 13)
    return convolutions + layer(d, e, 3, 13) + layer(36 * e, f) + layer(f, g) + layer(g, classes)


def valid_alexnet_size(widths, classes):
    # 224 -> 54 -> 26 -> 22 -> 10 -> 8 -> 6 -> 4 pixels
    a, b, c, d, e, f, g = widths
    convolutions = layer(3, a, 11, 54) + layer(a, b, 5, 22) + layer(b, c, 3, 8) + layer(c, d, 3, 6)
    return convolutions + layer(d, e, 3, 4) + layer(16 * e, f) + layer(f, g) + layer(g, classes)


def resnet50_size(widths, classes):
    normed = partial(layer, bias=False, norm=True)
    total, before, side = normed(3, widths[0], 7, 112), widths[0], 56
    for stage, (width, blocks) in enumerate(zip(widths[1:], (3, 4, 6, 3), strict=True)):
        for block in range(blocks):
            total = total + normed(before, width, 1, side)
            side = side // 2 if stage > 0 and block == 0 else side
            total = total + normed(width, width, 3, side) + normed(width, 4 * width, 1, side)
            if block == 0:
                total = total + normed(before, 4 * width, 1, side)
            before = 4 * width
    return total + layer(before, classes)


def mobilenet_size(widths, classes):
    normed = partial(layer, bias=False, norm=True)
    total, before, side = normed(3, widths[0], 3, 112), widths[0], 112
    table = zip(widths[1:-1], (1, 6, 6, 6, 6, 6, 6), (1, 2, 3, 4, 3, 3, 1), (1, 2, 2, 2, 1, 2, 1), strict=True)
    for width, expansion, blocks, stride in table:
        for block in range(blocks):
            middle = expansion * before
            if expansion > 1:
                total = total + normed(before, middle, 1, side)
            side = side // stride if block == 0 else side
            # Every channel of the 3x3 convolution has one input.
            total = total + normed(1, middle, 3, side) + normed(middle, width, 1, side)
            before = width
    return total + normed(before, widths[-1], 1, side) + layer(widths[-1], classes)


# Image, classes, parameters, multiply-adds in the digits in which they are published (torchvision's tables; Li et al.,
# Pruning Filters for Efficient ConvNets, 2017; formula sheet) or None, and the count by hand.
NETWORKS = {
    "lenet300": ((28, 28, 1), 10, 266_610, None, lenet_size),
    "lenet5": ((28, 28, 1), 10, 431_080, "2.29e+06", lenet5_size),
    "lenet5-relu": ((28, 28, 1), 10, 431_080, "2.29e+06", lenet5_size),
    "small-conv": ((32, 32, 3), 10, 424_394, None, small_conv_size),
    "medium-conv": ((32, 32, 3), 10, 1_688_458, None, small_conv_size),
    "vgg11": ((32, 32, 3), 10, 9_750_922, None, partial(vgg_size, (1, 1, 2, 2, 2), False)),
    "vgg16": ((32, 32, 3), 10, 15_245_130, "3.1e+08", partial(vgg_size, (2, 2, 3, 3, 3), False)),
    "vgg-like": ((32, 32, 3), 10, 14_991_946, "3.13e+08", partial(vgg_size, (2, 2, 3, 3, 3), True)),
    "wrn-16-2": ((28, 28, 1), 10, None, None, partial(wide_resnet_size, 16, channels=1, side=28)),
    "wrn-16-8": ((32, 32, 3), 100, 11_012_036, None, partial(wide_resnet_size, 16)),
    "wrn-28-10": ((32, 32, 3), 100, 36_546_980, None, partial(wide_resnet_size, 28)),
    "alexnet": ((224, 224, 3), 1000, 61_100_840, "7.1e+08", alexnet_size),
    "alexnet-valid": ((224, 224, 3), 1000, 41_406_824, None, valid_alexnet_size),
    "resnet50": ((224, 224, 3), 1000, 25_557_032, "4.09e+09", resnet50_size),
    "mobilenetv2": ((224, 224, 3), 1000, 3_504_872, "3.0e+08", mobilenet_size),
}


def test_every_name_has_a_network_and_a_row_here():
    assert list(NETWORKS) == list(setup.MODELS) == list(get_args(setup.ModelName))


def shapes_of(model, image):
    """Shapes of parameters, of statistics and of one image."""
    images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    state = dict(jax.eval_shape(model.init, jax.random.key(0), images))
    return state.pop("params"), state, images


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_of_the_papers(name):
    image, classes, parameters, published, count = NETWORKS[name]
    model = setup.MODELS[name](classes)
    params, state, images = shapes_of(model, image)
    expected, products = count(model.widths, classes)
    assert models.parameter_count(model, image) == expected
    assert parameters in (None, expected)

    def apply(params, state, images):
        return model.apply({"params": params, **state}, images)

    found = sj.report.multiply_adds(apply, params, state, images)
    assert (found.total, found.unattributed, found.notes) == (products, 0, ())
    if published is not None:
        assert f"{found.total:.{len(published) - 6}e}" == published
    assert jax.eval_shape(apply, params, state, images).shape == (1, classes)


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (LeNet300100(10), (8, 8, 1), 64 * 300 + 300 + 30_000 + 100 + 1010),
        (LeNet300100(3, widths=(5, 4, 2)), (2, 2, 3), 12 * 5 + 5 + 24 + 10 + 9),
        (LeNet5(10), (16, 16, 3), 75 * 20 + 20 + 25_050 + 50 * 500 + 500 + 5010),
        (WideResNet(100, widths=(16, 48, 96, 192)), (32, 32, 3), 1_568_596),
        (WideResNet(100, widths=(16, 49, 99, 198)), (32, 32, 3), 1_665_210),
        (WideResNet(100, widths=(16, 50, 99, 198)), (32, 32, 3), 1_669_046),
        (WideResNet(10, depth=10, widths=(4, 4, 6, 6)), (8, 8, 1), wide_resnet_size(10, (4, 4, 6, 6), 10, 1)[0]),
        (WideResNet16x2(100), (32, 32, 3), 704_420),
        (WideResNet28x10(10), (32, 32, 3), 36_489_290),
        (WideResNet28x10(10, depth=10, widths=(4, 4, 6, 6)), (8, 8, 1), wide_resnet_size(10, (4, 4, 6, 6), 10, 1)[0]),
        (VggLike(3, widths=(2,) * 13 + (5,)), (8, 8, 1), 18 + 12 * 36 + 13 * 6 + 2 * 5 + 15 + 15 + 3),
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


@pytest.mark.parametrize(("network", "least"), [(LeNet5, -np.inf), (ReluLeNet5, 0)])
def test_lenet5_is_caffes_or_has_relus(network, least):
    # Pooling by 2 after each convolution; Caffe's has a ReLU after the hidden dense layer only.
    model, images = network(3, widths=(2, 3, 4)), normal(2, 17, 16, 1)
    variables = model.init(jax.random.key(1), images)
    layers = {
        name: [np.float64(layer["kernel"]), normal(layer["bias"].size)] for name, layer in variables["params"].items()
    }
    x = images
    for name in ("Conv_0", "Conv_1"):
        x = oracles.convolve(x, layers[name][0], 1, 0) + layers[name][1]
        n, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        x = np.maximum(x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4)), least)
    x = np.maximum(x.reshape(2, -1) @ layers["Dense_0"][0] + layers["Dense_0"][1], 0)
    expected = x @ layers["Dense_1"][0] + layers["Dense_1"][1]
    params = {name: {"kernel": variables["params"][name]["kernel"], "bias": layers[name][1]} for name in layers}
    np.testing.assert_allclose(model.apply({"params": params}, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "least"),
    [
        (LeNet5(10), 16),
        (SmallConv(10), 24),
        (MediumConv(10), 24),
        (Vgg11(10), 32),
        (Vgg16(10), 32),
        (AlexNet(10), 63),
        (ValidAlexNet(10), 163),
    ],
)
def test_networks_refuse_images_of_which_nothing_would_be_left(model, least):
    for shape in ((least, least - 1, 3), (least - 1, least, 3)):
        with pytest.raises(ValueError, match=f"at least {least}x{least} pixels, got {shape[0]}x{shape[1]}"):
            shapes_of(model, shape)
    assert all(leaf.size for leaf in jax.tree.leaves(shapes_of(model, (least, least, 3))))


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

    y = oracles.convolve(norm_relu("norm1", images), params["conv1"]["kernel"], 1, 1) + params["conv1"]["bias"]
    y = oracles.convolve(norm_relu("norm2", y), params["conv2"]["kernel"], stride, 1) + params["conv2"]["bias"]
    shortcut = images
    assert ("shortcut" in params) == (width != 2)
    if width != 2:
        shortcut = oracles.convolve(images, params["shortcut"]["kernel"], stride, 0) + params["shortcut"]["bias"]
    output = jax.jit(block.apply)({"params": params, "batch_stats": statistics}, images)
    np.testing.assert_allclose(output, shortcut + y, rtol=1e-4, atol=1e-4)


def flattened(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


class Reference:
    """The layers of a network in NumPy, with random parameters and statistics, by the names that Flax gives them."""

    def __init__(self, model, image):
        self.rng = np.random.default_rng(1)  # of its own: which few channels die must not depend on the order of tests
        params, state, _ = shapes_of(model, image)
        statistics = flattened(state.get("batch_stats", {}))
        self.params = {name: self.draw(name, leaf.shape) for name, leaf in flattened(params).items()}
        self.statistics = {name: self.draw(name, leaf.shape) for name, leaf in statistics.items()}

    def draw(self, name, shape):
        # Near what keeps the signal: variance 2 / fan-in, and scales and variances about 1. More in the last layer of
        # MobileNetV2, which would not reach the end of its ReLU6.
        if name.endswith(("scale", "var")):
            return np.float32(self.rng.uniform(0.5, 1.5, shape))
        scale = 0.2 if len(shape) == 1 else math.sqrt(2 / math.prod(shape[:-1]))
        return np.float32((8 if name == "head/kernel" else 1) * scale * self.rng.normal(size=shape))

    def variables(self):
        state = {"params": self.params, "batch_stats": self.statistics}
        return {name: flax.traverse_util.unflatten_dict(tree, sep="/") for name, tree in state.items()}

    def conv(self, name, x, stride=1, pad=0):
        kernel = self.params[f"{name}/kernel"]
        if kernel.shape[2] < x.shape[3]:  # depthwise: a kernel of all channels that is zero between different ones
            kernel = kernel * np.eye(x.shape[3])
        return oracles.convolve(x, kernel, stride, pad) + self.params.get(f"{name}/bias", 0)

    def norm(self, name, x, epsilon=1e-5):
        x = (x - self.statistics[f"{name}/mean"]) / np.sqrt(self.statistics[f"{name}/var"] + epsilon)
        return x * self.params.get(f"{name}/scale", 1) + self.params.get(f"{name}/bias", 0)

    def conv_norm(self, name, x, stride=1, pad=0):
        return self.norm(f"{name}_norm", self.conv(name, x, stride, pad))

    def dense(self, name, x):
        return x @ np.float64(self.params[f"{name}/kernel"]) + self.params[f"{name}/bias"]


def relu(x):
    return np.maximum(x, 0)


def relu6(x):
    return np.minimum(relu(x), 6)


def pooled(x, size=2, stride=2, pad=0):
    """Maxima of windows; `pad` is a number for both sides, or (low, high)."""
    x = np.pad(x, ((0, 0), *(np.broadcast_to(pad, (2, 2))), (0, 0)), constant_values=-np.inf)
    rows, columns = ((side - size) // stride + 1 for side in x.shape[1:3])
    out = np.zeros((x.shape[0], rows, columns, x.shape[3]))
    for i in range(rows):
        for j in range(columns):
            out[:, i, j] = x[:, i * stride : i * stride + size, j * stride : j * stride + size].max((1, 2))
    return out


def flat(x):
    return x.reshape(len(x), -1)


def plain_forward(depths, pad, net, x):
    convolutions = iter(range(20))
    for depth in depths:
        for _ in range(depth):
            x = relu(net.conv(f"Conv_{next(convolutions)}", x, 1, pad))
        x = pooled(x)
    x = relu(net.dense("Dense_0", flat(x)))
    return net.dense("Dense_2", relu(net.dense("Dense_1", x)))


def vgg_like_forward(net, x):
    layers = iter(range(13))
    for depth in (2, 2, 3, 3, 3):
        for _ in range(depth):
            i = next(layers)
            x = relu(net.norm(f"BatchNorm_{i}", net.conv(f"Conv_{i}", x, 1, 1), 1e-3))
        x = pooled(x, pad=[(0, x.shape[1] % 2), (0, x.shape[2] % 2)])
    return net.dense("Dense_1", relu(net.norm("BatchNorm_13", net.dense("Dense_0", flat(x)), 1e-3)))


def alexnet_forward(net, x):
    x = pooled(relu(net.conv("Conv_0", x, 4, 2)), 3)
    x = pooled(relu(net.conv("Conv_1", x, 1, 2)), 3)
    for name in ("Conv_2", "Conv_3", "Conv_4"):
        x = relu(net.conv(name, x, 1, 1))
    x = relu(net.dense("Dense_0", flat(pooled(x, 3))))
    return net.dense("Dense_2", relu(net.dense("Dense_1", x)))


def normalised_valid_alexnet_forward(net, x):
    for i, stride in enumerate((4, 1, 1, 1, 1)):
        x = relu(net.norm(f"BatchNorm_{i}", net.conv(f"Conv_{i}", x, stride)))
        x = pooled(x, 3) if i < 2 else x
    x = flat(x)
    for i in range(2):
        x = relu(net.norm(f"BatchNorm_{i + 5}", net.dense(f"Dense_{i}", x)))
    return net.dense("Dense_2", x)


def normalised_small_forward(net, x):
    for i in range(3):
        x = pooled(relu(net.norm(f"BatchNorm_{i}", net.conv(f"Conv_{i}", x))))
    x = flat(x)
    for i in range(2):
        x = relu(net.norm(f"BatchNorm_{i + 3}", net.dense(f"Dense_{i}", x)))
    return net.dense("Dense_2", x)


def resnet50_forward(net, x):
    x = pooled(relu(net.conv_norm("stem", x, 2, 3)), 3, pad=1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(1, blocks + 1):
            name, stride = f"stage{stage}_block{block}", 2 if stage > 1 and block == 1 else 1
            y = relu(net.conv_norm(f"{name}/conv1", x))
            y = net.conv_norm(f"{name}/conv3", relu(net.conv_norm(f"{name}/conv2", y, stride, 1)))
            x = relu(y + (net.conv_norm(f"{name}/shortcut", x, stride) if block == 1 else x))
    return net.dense("classifier", x.mean((1, 2)))


def mobilenet_forward(net, x):
    x = relu6(net.conv_norm("stem", x, 2, 1))
    for stage, (blocks, stride) in enumerate(((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)), start=1):
        for block in range(1, blocks + 1):
            name = f"stage{stage}_block{block}"
            y = x if stage == 1 else relu6(net.conv_norm(f"{name}/expand", x))
            y = relu6(net.conv_norm(f"{name}/depthwise", y, stride if block == 1 else 1, 1))
            y = net.conv_norm(f"{name}/project", y)
            x = y if block == 1 else x + y
    return net.dense("classifier", relu6(net.conv_norm("head", x)).mean((1, 2)))


@pytest.mark.parametrize(
    ("model", "image", "forward"),
    [
        (SmallConv(3, widths=(7, 6, 5, 9, 8)), (25, 32, 2), partial(plain_forward, (1, 1, 1), 0)),
        (Vgg11(3, widths=(7, 6) * 4 + (9, 8)), (32, 33, 2), partial(plain_forward, (1, 1, 2, 2, 2), 1)),
        (Vgg16(3, widths=(7, 6) * 6 + (7, 9, 8)), (32, 33, 2), partial(plain_forward, (2, 2, 3, 3, 3), 1)),
        (VggLike(3, widths=(7, 6) * 6 + (7, 9)), (20, 13, 2), vgg_like_forward),
        (AlexNet(3, widths=(7, 6, 7, 6, 5, 9, 8)), (63, 68, 2), alexnet_forward),
        (
            ValidAlexNet(3, widths=(7, 6, 7, 6, 8, 12, 9), normalised=True),
            (163, 165, 1),
            normalised_valid_alexnet_forward,
        ),
        (SmallConv(3, widths=(7, 6, 5, 9, 8), normalised=True), (24, 25, 2), normalised_small_forward),
        (ResNet50(3, widths=(5, 2, 3, 2, 3)), (21, 28, 2), resnet50_forward),
        (MobileNetV2(3, widths=(4, 5, 4, 5, 4, 5, 4, 5, 8)), (21, 28, 2), mobilenet_forward),
    ],
    ids=lambda value: type(value).__name__,
)
def test_networks_are_the_authors(model, image, forward):
    net = Reference(model, image)
    images = np.float32(net.rng.normal(size=(2, *image)))
    expected = forward(net, images)
    assert np.ptp(expected, axis=0).min() > 1e-3 * np.abs(expected).max()  # the images still matter
    found = jax.jit(model.apply)(net.variables(), images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("model", "side", "block", "stages"),
    [
        (WideResNet(100), 32, Block, [(32, 128)] * 2 + [(16, 256)] * 2 + [(8, 512)] * 2),
        (WideResNet28x10(10), 32, Block, [(32, 160)] * 4 + [(16, 320)] * 4 + [(8, 640)] * 4),
        (ResNet50(10), 224, Bottleneck, [(56, 256)] * 3 + [(28, 512)] * 4 + [(14, 1024)] * 6 + [(7, 2048)] * 3),
        (
            MobileNetV2(10),
            224,
            InvertedResidual,
            [(112, 16), *[(56, 24)] * 2, *[(28, 32)] * 3, *[(14, 64)] * 4, *[(14, 96)] * 3, *[(7, 160)] * 3, (7, 320)],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_outputs_of_every_residual_block(model, side, block, stages):
    found = []

    def record(next_function, args, kwargs, context):
        output = next_function(*args, **kwargs)
        if type(context.module) is block and context.method_name == "__call__":
            found.append(output.shape[1:])
        return output

    with flax.linen.intercept_methods(record):
        shapes_of(model, (side, side, 3))
    assert found == [(side, side, channels) for side, channels in stages]


def test_batch_statistics():
    model, images = WideResNet(3, depth=10, widths=(2, 2, 2, 2)), normal(4, 4, 4, 1)
    variables = model.init(jax.random.key(0), images)
    _, updated = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    stem = oracles.convolve(images, np.asarray(variables["params"]["stem"]["kernel"]), 1, 1)
    statistics = updated["batch_stats"]["stage1_block1"]["norm1"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-4)


class ShallowResNet(ResNet50):
    """One block a stage, because most of these tests' time is compilation."""

    blocks = (1, 1, 1, 1)


class ShallowMobileNet(MobileNetV2):
    stages = ((1, 1, 1), (6, 2, 2))


class ShallowVggLike(VggLike):
    stages = (2, 1)


@pytest.mark.parametrize(
    "model",
    [
        WideResNet28x10(3, depth=10, widths=(8, 4, 4, 4)),
        ShallowVggLike(3, widths=(8, 8, 8, 16)),
        ShallowResNet(3, widths=(8, 4, 4, 4, 4)),
        ShallowMobileNet(3, widths=(8, 4, 4, 40)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_training_moves_every_statistic_and_inference_none(model):
    images = normal(8, 12, 12, 3)
    variables = Reference(model, images.shape[1:]).variables()

    @partial(jax.jit, static_argnums=1)
    def statistics(variables, train):
        rngs = {"dropout": jax.random.key(1)}
        return model.apply(variables, images, train=train, mutable=["batch_stats"], rngs=rngs)[1]["batch_stats"]

    before = flattened(variables["batch_stats"])
    for train in (True, False):
        after = flattened(statistics(variables, train))
        moved = {name for name in before if not np.array_equal(before[name], after[name])}
        assert moved == (set(before) if train else set())


def test_the_last_batch_norm_of_the_authors_of_directional_pruning_follows_the_batch():
    sizes, images = {"depth": 10, "widths": (2, 2, 2, 2)}, normal(8, 4, 4, 1)
    variables = jax.jit(WideResNet(3, **sizes).init)(jax.random.key(0), images)
    usual, found = (
        jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)[1]["batch_stats"]
        for model in (WideResNet(3, **sizes), WideResNet28x10(3, **sizes))
    )
    np.testing.assert_allclose(found["norm"]["mean"], 9 * usual["norm"]["mean"], rtol=1e-5)
    np.testing.assert_array_equal(found["stage3_block1"]["norm2"]["mean"], usual["stage3_block1"]["norm2"]["mean"])


@pytest.mark.parametrize(
    ("model", "image", "rate"),
    [
        (Vgg16(3, widths=(8,) * 12 + (64, 16, 16)), (32, 32, 3), 0.5),
        (ShallowVggLike(3, widths=(8, 8, 8, 16)), (8, 8, 3), 0.3),
        (AlexNet(3, widths=(8, 8, 8, 8, 64, 16, 16)), (63, 63, 3), 0.5),
        (ShallowMobileNet(3, widths=(8, 4, 4, 200)), (8, 8, 3), 0.2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_dropout_is_active_in_training_only(model, image, rate):
    images = normal(16, *image)
    variables = Reference(model, image).variables()

    @jax.jit
    def first_dropped(variables, key):
        _, state = model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats", "intermediates"],
            rngs={"dropout": key},
            capture_intermediates=lambda module, _: module.name == "Dropout_0",
        )
        return state["intermediates"]["Dropout_0"]["__call__"][0]

    one, other = (np.asarray(first_dropped(variables, jax.random.key(seed))) for seed in (1, 2))
    np.testing.assert_array_equal(one[(one != 0) & (other != 0)], other[(one != 0) & (other != 0)])
    dropped = (one == 0)[other != 0]
    assert abs(dropped.mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / dropped.size)
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(partial(model.apply, train=True, mutable=["batch_stats"]), variables, images)
    jax.eval_shape(model.apply, variables, images)  # needs no random numbers


@pytest.mark.parametrize(
    ("model", "calls"),
    [
        (Vgg11(3), "C C CC CC CC D D D"),
        (Vgg16(3), "CC CC CCC CCC CCC 0.5 D 0.5 D D"),
        (VggLike(3), "C0.3C C0.4C " + 3 * "C0.4C0.4C " + "0.5 D 0.5 D"),
        (AlexNet(3), "CCCCC 0.5 D 0.5 D D"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_where_dropout_stands(model, calls):
    found = []

    def record(next_function, args, kwargs, context):
        names = {flax.linen.Conv: "C", flax.linen.Dense: "D"}
        rate = getattr(context.module, "rate", 0.0)
        found.append(str(rate) if rate else names.get(type(context.module), ""))
        return next_function(*args, **kwargs)

    with flax.linen.intercept_methods(record):
        shapes_of(model, (64, 64, 3))
    assert "".join(found) == calls.replace(" ", "")


def kernels_and_biases(params):
    leaves = {name: np.asarray(leaf) for name, leaf in flattened(params).items()}
    for name, kernel in leaves.items():
        if name.endswith("kernel"):
            yield name, kernel, leaves.get(name.removesuffix("kernel") + "bias", np.zeros(1))


def check_torch(kernel, bias):
    bound = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
    assert 0.9 < np.abs(kernel).max() / bound <= 1
    assert abs(kernel.std() / bound * math.sqrt(3) - 1) < 0.1
    assert 0.5 < np.abs(bias).max() / bound <= 1


def check_glorot(kernel, bias):
    taps = math.prod(kernel.shape[:-2])
    bound = math.sqrt(6 / (taps * (kernel.shape[-2] + kernel.shape[-1])))
    assert 0.9 < np.abs(kernel).max() / bound <= 1
    assert abs(kernel.std() / bound * math.sqrt(3) - 1) < 0.1
    assert not bias.any()


def check_fan_out(kernel, bias):
    scale = math.sqrt(2 / math.prod([*kernel.shape[:-2], kernel.shape[-1]]))
    assert abs(kernel.std() / scale - 1) < 0.15
    assert np.abs(kernel).max() > 2.4 * scale  # JAX's he_normal ends at 2.27
    assert not bias.any()


def check_small(kernel, bias):
    assert abs(kernel.std() / 0.01 - 1) < 0.15
    assert not bias.any()


@pytest.mark.parametrize(
    ("model", "side", "convolutions", "dense"),
    [
        (SmallConv(16, widths=(16, 16, 16, 32, 32)), 24, check_glorot, check_glorot),
        (Vgg16(16, widths=(16,) * 13 + (32, 32)), 32, check_fan_out, check_torch),
        (ShallowVggLike(16, widths=(16, 24, 16, 32)), 4, check_fan_out, check_torch),
        (AlexNet(16, widths=(8, 16, 16, 16, 16, 32, 32)), 63, check_torch, check_torch),
        (WideResNet28x10(16, depth=10, widths=(16, 24, 16, 32)), 8, check_torch, check_torch),
        (ShallowResNet(16, widths=(16, 24, 16, 16, 16)), 8, check_fan_out, check_torch),
        (ShallowMobileNet(16, widths=(16, 24, 16, 64)), 8, check_fan_out, check_small),
    ],
    ids=lambda value: type(value).__name__,
)
def test_initial_values_are_the_authors(model, side, convolutions, dense):
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]
    for name, kernel, bias in kernels_and_biases(params):
        if kernel.size > 300:
            (convolutions if kernel.ndim == 4 else dense)(kernel, bias), name


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
    return lenet_size(widths, 4, inputs=6)[0]


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
    resnet = models.thin(WideResNet(100), 1_651_805, lambda m: wide_resnet_size(16, m.widths, 100)[0])
    assert resnet.widths[0] == 16
    assert abs(wide_resnet_size(16, resnet.widths, 100)[0] - 1_651_805) < 0.01 * 1_651_805


@pytest.mark.parametrize("target", [15, 10**6])
def test_thin_refuses(target):
    with pytest.raises(ValueError, match=f"target: got {target}"):
        models.thin(LeNet300100(4, widths=(9, 7)), target, lambda m: lenet_count(m.widths))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_thin_versions(name):
    image, classes, _, _, count = NETWORKS[name]
    model = setup.MODELS[name](classes)
    fixed = model.fixed_widths
    half = model.clone(widths=(*model.widths[:fixed], *(width // 2 for width in model.widths[fixed:])))
    assert models.multiplied(model, 0.5) == models.scaled(model, 0.25) == half
    target = round(0.3 * count(model.widths, classes)[0])
    found = models.thin(model, target, lambda m: count(m.widths, classes)[0])
    assert found.widths[:fixed] == model.widths[:fixed]
    assert abs(count(found.widths, classes)[0] - target) < 0.02 * target
    params, state, images = shapes_of(found, image)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count(found.widths, classes)[0]
    logits = jax.eval_shape(found.apply, {"params": params, **state}, images)
    assert logits.shape == (1, classes)


def test_one_by_one_maps_as_vmap_does():
    def function(tree, y):
        return {"sum": tree["x"].sum() + y, "y": -y}

    x, y = normal(3, 4), normal(3)
    mapped = models.one_by_one(function)({"x": x}, y)
    np.testing.assert_allclose(mapped["sum"], x.sum(1) + y, rtol=1e-6)
    np.testing.assert_array_equal(mapped["y"], -y)
