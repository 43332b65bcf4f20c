"""Architectures with units, one function each: `() -> (fn, params, args)`, of small widths.

Parameters are drawn, not initialised: offsets, running statistics and scales are all different from 0 and 1, or a mask
that forgets one of them would go unseen.
"""

import math
import re
from collections.abc import Callable
from functools import partial

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import models

NETWORKS: dict[str, Callable] = {}


def network(build: Callable) -> Callable:
    """Puts a network into the table under the name of its function."""
    NETWORKS[build.__name__] = build
    return build


def drawn(shapes, seed: int = 0):
    """Returns random parameters: kernels of variance 4 / inputs, as half of them go, variances > 0, scales about 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.ones(leaf.shape, leaf.dtype)
        values, name = rng.standard_normal(leaf.shape), jax.tree_util.keystr(path)
        if "var" in name:
            values = 0.5 + np.abs(values)
        elif math.prod(leaf.shape) > max(leaf.shape, default=1):
            values = 2 * values / math.sqrt(math.prod(leaf.shape[:-1]))
        elif re.search("scale|norm", name):
            values = 1 + 0.3 * values
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def shaped(tree):
    """Returns a tree of arrays' shapes: a leaf is a shape (float32), or a shape and a dtype."""

    def leaf(shape: tuple):
        return jax.ShapeDtypeStruct(*shape if isinstance(shape[0], tuple) else (shape, jnp.float32))

    return jax.tree.map(leaf, tree, is_leaf=lambda leaf: isinstance(leaf, tuple))


def images(*shape: int, seed: int = 1) -> jax.Array:
    """Returns random images or sequences."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tokens(*shape: int, below: int, seed: int = 1) -> jax.Array:
    """Returns random tokens."""
    return jnp.asarray(np.random.default_rng(seed).integers(below, size=shape), jnp.int32)


def linen(model: nn.Module, *args, **options):
    """Returns a Linen module in evaluation mode."""
    shapes = jax.eval_shape(partial(model.init, **options), jax.random.key(0), *args)
    return partial(model.apply, **options), drawn(shapes), args


class Compact(nn.Module):
    """A Linen module that is one function of the input."""

    body: Callable

    @nn.compact
    def __call__(self, *inputs):
        return self.body(*inputs)


def compact(body: Callable, *args):
    """Returns the Linen module whose compact call is a function."""
    return linen(Compact(body), *args)


@network
def mlp():
    return linen(models.LeNet300100(3, (10, 8)), images(2, 4, 4, 1))


@network
def lenet_valid():
    return linen(models.LeNet5(3, (4, 6, 8)), images(2, 16, 16, 1))


@network
def relu_lenet():
    return linen(models.ReluLeNet5(3, (4, 6, 8)), images(2, 16, 16, 1))


@network
def lenet_same_with_sigmoid():
    def body(x):
        for width in (4, 6):
            x = nn.avg_pool(nn.sigmoid(nn.Conv(width, (5, 5))(x)), (2, 2), (2, 2))
        x = nn.sigmoid(nn.Dense(8)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)

    return compact(body, images(2, 8, 8, 1))


@network
def vgg_with_batch_norm():
    return linen(models.VggLike(3, (4, 4, 6, 6, 4, 4, 6, 6, 6, 4, 4, 4, 6, 8)), images(2, 32, 32, 3))


def basic_block(x, width: int, stride: int, shortcut: str = "convolution"):
    norm = partial(nn.BatchNorm, use_running_average=True)
    y = nn.relu(norm()(nn.Conv(width, (3, 3), stride, use_bias=False)(x)))
    y = norm()(nn.Conv(width, (3, 3), use_bias=False)(y))
    if y.shape != x.shape:
        if shortcut == "convolution":
            x = norm()(nn.Conv(width, (1, 1), stride, use_bias=False)(x))
        else:  # option A of the paper: subsampled, and padded with zero channels
            more = width - x.shape[-1]
            x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
    return nn.relu(x + y)


def resnet(blocks, shortcut, x):
    x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3), use_bias=False)(x)))
    for stage, count in enumerate(blocks):
        for block in range(count):
            x = basic_block(x, 4 + 2 * stage, 2 if stage and not block else 1, shortcut)
    return nn.Dense(3)(x.mean((1, 2)))


@network
def resnet18():
    return compact(partial(resnet, (2, 2, 2, 2), "convolution"), images(2, 8, 8, 3))


@network
def resnet20_with_padded_shortcuts():
    return compact(partial(resnet, (3, 3, 3), "padding"), images(2, 8, 8, 3))


@network
def resnet50():
    return linen(models.ResNet50(3, (4, 2, 3, 3, 4)), images(1, 32, 32, 3))


@network
def wide_resnet():
    return linen(models.WideResNet(3, 10, (4, 6, 8, 8)), images(2, 8, 8, 3))


@network
def mobilenet_v2():
    model = models.MobileNetV2(3, (4, 2, 3, 4, 4, 6, 6, 8, 10))
    return linen(model, images(1, 32, 32, 3))


@network
def resnext():
    def body(x):
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(8, (3, 3))(x)))
        for _ in range(2):
            y = nn.relu(norm()(nn.Conv(12, (1, 1))(x)))
            y = nn.relu(norm()(nn.Conv(12, (3, 3), feature_group_count=4)(y)))
            x = nn.relu(x + norm()(nn.Conv(8, (1, 1))(y)))
        return nn.Dense(3)(x.mean((1, 2)))

    return compact(body, images(2, 6, 6, 3))


@network
def efficientnet_block():
    def body(x):
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.swish(norm()(nn.Conv(6, (3, 3))(x)))
        for _ in range(2):
            y = nn.swish(norm()(nn.Conv(12, (1, 1))(x)))
            y = nn.swish(norm()(nn.Conv(12, (3, 3), feature_group_count=12)(y)))
            squeezed = nn.swish(nn.Conv(4, (1, 1))(y.mean((1, 2), keepdims=True)))
            y = y * nn.sigmoid(nn.Conv(12, (1, 1))(squeezed))
            x = x + norm()(nn.Conv(6, (1, 1))(y))
        return nn.Dense(3)(x.mean((1, 2)))

    return compact(body, images(2, 6, 6, 3))


@network
def densenet():
    def body(x):
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.Conv(6, (3, 3))(x)
        for stage in range(2):
            for _ in range(3):
                y = nn.Conv(8, (1, 1))(nn.relu(norm()(x)))
                x = jnp.concatenate([x, nn.Conv(4, (3, 3))(nn.relu(norm()(y)))], axis=-1)
            if not stage:
                x = nn.avg_pool(nn.Conv(9, (1, 1))(nn.relu(norm()(x))), (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(norm()(x)).mean((1, 2)))

    return compact(body, images(2, 6, 6, 3))


@network
def shufflenet_v2():
    def shuffle(x):
        *space, channels = x.shape
        return x.reshape(*space, 2, channels // 2).swapaxes(-1, -2).reshape(*space, channels)

    def body(x):
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(16, (3, 3))(x)))
        for _ in range(3):
            left, right = jnp.split(x, 2, axis=-1)
            right = nn.relu(norm()(nn.Conv(8, (1, 1))(right)))
            right = norm()(nn.Conv(8, (3, 3), feature_group_count=8)(right))
            right = nn.relu(norm()(nn.Conv(8, (1, 1))(right)))
            x = shuffle(jnp.concatenate([left, right], axis=-1))
        x = nn.relu(nn.Conv(10, (1, 1))(x))
        return nn.Dense(3)(x.mean((1, 2)))

    return compact(body, images(2, 6, 6, 3))


@network
def convnext():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Conv(6, (3, 3), feature_group_count=6)(x)
            y = nn.Dense(6)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(y))))
            return x + y * self.param("scale", nn.initializers.ones, (6,))

    def body(x):
        x = nn.LayerNorm()(nn.Conv(6, (2, 2), 2)(x))
        x = Block()(Block()(x))
        return nn.Dense(3)(nn.LayerNorm()(x.mean((1, 2))))

    return compact(body, images(2, 8, 8, 3))


@network
def unet():
    def twice(x, width):
        for _ in range(2):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(width, (3, 3))(x)))
        return x

    def body(x):
        skips = []
        for width in (4, 6):
            x = twice(x, width)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = twice(x, 8)
        for width in (6, 4):
            x = jnp.concatenate([nn.ConvTranspose(width, (2, 2), (2, 2))(x), skips.pop()], axis=-1)
            x = twice(x, width)
        return nn.Conv(2, (1, 1))(x)

    return compact(body, images(1, 8, 8, 3))


class Attention(nn.Module):
    """Self-attention with separate or fused projections, of heads x size features."""

    heads: int
    size: int
    fused: bool = False

    @nn.compact
    def __call__(self, x):
        features, inner = x.shape[-1], self.heads * self.size
        widths = [3 * inner] if self.fused else [inner] * 3
        parts = [part for width in widths for part in jnp.split(nn.Dense(width)(x), width // inner, axis=-1)]
        q, k, v = (part.reshape(*x.shape[:-1], self.heads, self.size) for part in parts)
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(self.size))
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:-1], inner)
        return nn.Dense(features)(out)


def vit(fused: bool, attention: Callable[[], nn.Module], x):
    x = nn.Conv(8, (4, 4), 4)(x)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    first = jnp.broadcast_to(Compact(lambda: nn.Embed(1, 8)(jnp.zeros((1, 1), int)))(), (x.shape[0], 1, 8))
    x = jnp.concatenate([first, x], axis=1)
    x = x + nn.Embed(x.shape[1], 8)(jnp.arange(x.shape[1])[None])
    for _ in range(2):
        x = x + attention()(nn.LayerNorm()(x))
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))
    return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


def flax_attention():
    def attend(x):
        return nn.MultiHeadDotProductAttention(4, deterministic=True)(x, x)

    return attend


@network
def vit_of_flax():
    return compact(partial(vit, False, flax_attention), images(2, 8, 8, 3))


@network
def vit_with_separate_projections():
    return compact(partial(vit, False, partial(Attention, 4, 2)), images(2, 8, 8, 3))


@network
def vit_with_fused_projections():
    return compact(partial(vit, True, partial(Attention, 4, 2, fused=True)), images(2, 8, 8, 3))


def rotated(x):
    """Rotary embedding of `(batch, time, heads, size)`."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] / 10.0 ** (np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angles), x.dtype)[None, :, None] for f in (np.cos, np.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


class GroupedQueries(nn.Module):
    """Causal attention of which several heads share keys and values, with rotary embedding."""

    heads: int = 4
    shared: int = 2
    size: int = 4

    @nn.compact
    def __call__(self, x):
        _, time, features = x.shape
        q = rotated(nn.DenseGeneral((self.heads, self.size), use_bias=False)(x))
        k, v = (nn.DenseGeneral((self.shared, self.size), use_bias=False)(x) for _ in range(2))
        k, v = (jnp.repeat(part, self.heads // self.shared, axis=2) for part in (rotated(k), v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(self.size)
        scores = jnp.where(jnp.tril(jnp.ones((time, time), bool)), scores, -1e9)
        out = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
        return nn.DenseGeneral(features, axis=(-2, -1), use_bias=False)(out)


def gpt(tied: bool, inputs):
    embed = nn.Embed(11, 8)
    x = embed(inputs)
    for _ in range(2):
        x = x + GroupedQueries()(nn.RMSNorm()(x))
        y = nn.RMSNorm()(x)
        x = x + nn.Dense(8)(nn.silu(nn.Dense(12)(y)) * nn.Dense(12)(y))
    x = nn.RMSNorm()(x)
    return embed.attend(x) if tied else nn.Dense(11)(x)


@network
def gpt_with_tied_embeddings():
    return compact(partial(gpt, True), tokens(2, 5, below=11))


@network
def gpt_with_untied_embeddings():
    return compact(partial(gpt, False), tokens(2, 5, below=11))


@network
def lstm():
    def body(x):
        x = nn.RNN(nn.OptimizedLSTMCell(6))(x)
        x = nn.RNN(nn.LSTMCell(4))(x)
        return nn.Dense(3)(x[:, -1])

    return compact(body, images(2, 5, 3))


@network
def gru():
    return compact(lambda x: nn.Dense(3)(nn.RNN(nn.GRUCell(6))(x)), images(2, 5, 3))


class ScannedBlock(nn.Module):
    """A residual block, as the body of a scan over layers."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(6)(nn.gelu(nn.Dense(10)(x))), None


@network
def scanned_layers():
    def body(x):
        layers = nn.scan(nn.remat(ScannedBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(3)(layers()(nn.Dense(6)(x), None)[0])

    return compact(body, images(2, 4))


@network
def mlp_mixer():
    def body(x):
        x = nn.Conv(6, (4, 4), 4)(x)
        x = x.reshape(x.shape[0], -1, 6)
        for _ in range(2):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            x = x + nn.Dense(x.shape[1])(nn.gelu(nn.Dense(5)(y))).swapaxes(1, 2)
            x = x + nn.Dense(6)(nn.gelu(nn.Dense(10)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x).mean(1))

    return compact(body, images(2, 8, 8, 3))


@network
def group_norm():
    def body(x):
        for _ in range(2):
            x = nn.relu(nn.GroupNorm(num_groups=4)(nn.Conv(8, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))

    return compact(body, images(2, 6, 6, 3))


@network
def nnx_convolutions():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Conv(3, 6, (3, 3), rngs=rngs), nnx.Conv(6, 8, (3, 3), rngs=rngs)
            self.norm, self.last = nnx.BatchNorm(6, use_running_average=True, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.first(x)))
            return self.last(nnx.relu(self.second(x)).mean((1, 2)))

    return of_nnx(Net, images(2, 6, 6, 3))


@network
def nnx_transformer():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(7, 8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(4, 8, decode=False, rngs=rngs)
            self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs) for _ in range(2)])
            self.up, self.down = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(12, 8, rngs=rngs)
            self.last = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            x = self.embed(x)
            x = x + self.attention(self.norms[0](x))
            x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
            return self.last(x)

    return of_nnx(Net, tokens(2, 5, below=7))


def of_nnx(build: Callable, *args):
    """Returns an NNX module, split into its structure and its state."""
    structure, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return lambda state, *args: nnx.merge(structure, state)(*args), drawn(state), args


@network
def equinox_mlp():
    return of_equinox(lambda key: eqx.nn.MLP(4, 3, 8, 2, key=key), images(2, 4))


@network
def equinox_convolutions():
    def build(key):
        keys = jax.random.split(key, 3)
        return eqx.nn.Sequential([
            eqx.nn.Conv2d(3, 6, 3, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(6, 8, 2, key=keys[1]),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(8 * 4, 3, key=keys[2]),
        ])  # fmt: skip

    return of_equinox(build, images(2, 3, 8, 8))


@network
def equinox_attention():
    class Net(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        last: eqx.nn.MLP

        def __init__(self, key):
            self.attention = eqx.nn.MultiheadAttention(4, 8, key=key)
            self.last = eqx.nn.MLP(8, 3, 6, 1, key=key)

        def __call__(self, x):
            return jax.vmap(self.last)(x + self.attention(x, x, x))

    return of_equinox(Net, images(2, 5, 8))


def of_equinox(build: Callable, *args):
    """Returns an Equinox module, partitioned into arrays and the rest."""
    arrays, rest = eqx.partition(eqx.filter_eval_shape(build, jax.random.key(0)), lambda leaf: hasattr(leaf, "shape"))
    return lambda arrays, *args: jax.vmap(eqx.combine(arrays, rest))(*args), drawn(arrays), args


@network
def haiku_convolutions():
    def body(x, training):
        for width in (6, 8):
            x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(width, 3)(x), training))
        return hk.Linear(3)(x.mean((1, 2)))

    transformed = hk.without_apply_rng(hk.transform_with_state(body))
    args = (images(2, 6, 6, 3),)
    shapes = jax.eval_shape(partial(transformed.init, training=True), jax.random.key(0), *args)
    return lambda variables, *args: transformed.apply(*variables, *args, False)[0], drawn(shapes), args


@network
def plain_residual():
    shapes = {
        "in": (4, 6), "up": [(6, 8), (6, 8)], "down": [(8, 6), (8, 6)], "scale": [(1, 6), (1, 6)], "out": (6, 3),
    }  # fmt: skip
    params = drawn(shaped(shapes))

    def fn(p, x):
        x = x @ p["in"]
        for up, down, scale in zip(p["up"], p["down"], p["scale"], strict=True):
            x = x + jnp.tanh(x * scale @ up) @ down
        return x @ p["out"]

    return fn, params, (images(2, 4),)
