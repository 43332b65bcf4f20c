"""Multiply-adds against loops that form every product, and against counts by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from sparsejax.multiply_adds import effective, multiply_adds

f32 = partial(jax.ShapeDtypeStruct, dtype="float32")
i32 = partial(jax.ShapeDtypeStruct, dtype="int32")
conv = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def looped_convolution(x, kernel, strides, padding, dilation, groups):
    """NHWC convolution, a product at a time; padding counts as input. Returns the outputs and their products."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    (batch, *space, _), (*taps, inputs, outputs) = padded.shape, kernel.shape
    reach = [(t - 1) * d + 1 for t, d in zip(taps, dilation, strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(space, reach, strides, strict=True)]
    out, products = np.zeros((batch, *sizes, outputs)), 0
    for b, i, j, o, p, q, c in np.ndindex(*out.shape, *taps, inputs):
        row, column = i * strides[0] + p * dilation[0], j * strides[1] + q * dilation[1]
        out[b, i, j, o] += padded[b, row, column, o // (outputs // groups) * inputs + c] * kernel[p, q, c, o]
        products += 1
    return out, products


def looped_transposed_convolution(x, kernel, strides):
    """NHWC transposed convolution: each input goes through each tap, to where VALID of `conv_transpose` puts it."""
    (batch, height, width, _), (*taps, inputs, outputs) = x.shape, kernel.shape
    sizes = [(n - 1) * s + max(t, s) for n, s, t in zip((height, width), strides, taps, strict=True)]
    out, products = np.zeros((batch, *sizes, outputs)), 0
    for b, i, j, p, q, c, o in np.ndindex(batch, height, width, *taps, inputs, outputs):
        row, column = i * strides[0] + taps[0] - 1 - p, j * strides[1] + taps[1] - 1 - q
        out[b, row, column, o] += x[b, i, j, c] * kernel[p, q, c, o]
        products += 1
    return out, products


def random_convolutions(number):
    rng, cases = np.random.default_rng(0), []
    for _ in range(number):
        batch, groups, inputs, outputs = (int(n) for n in rng.integers(1, 3, 4))
        strides, dilation = rng.integers(1, 4, 2).tolist(), rng.integers(1, 3, 2).tolist()
        x = rng.standard_normal((batch, *rng.integers(5, 8, 2), inputs * groups))
        kernel = rng.standard_normal((*rng.integers(1, 4, 2), inputs, outputs * groups))
        cases.append((x, kernel, (strides, rng.integers(0, 3, (2, 2)).tolist(), dilation, groups)))
    return cases


@pytest.mark.parametrize(("x", "kernel", "settings"), random_convolutions(10))
def test_a_convolution_forms_the_products_of_a_loop(x, kernel, settings):
    strides, padding, dilation, groups = settings

    @jax.jit
    def fn(kernel, x):
        return conv(x, kernel, strides, padding, rhs_dilation=dilation, feature_group_count=groups)

    out, products = looped_convolution(x, kernel, *settings)
    x, kernel = jnp.asarray(x, "float32"), jnp.asarray(kernel, "float32")
    np.testing.assert_allclose(fn(kernel, x), out, atol=1e-4)
    assert multiply_adds(fn, kernel, x).by_leaf == {"": products}


@pytest.mark.parametrize(("strides", "taps"), [((2, 2), (3, 2)), ((2, 3), (3, 3)), ((3, 2), (2, 4))])
def test_a_transposed_convolution_forms_the_products_of_a_scatter(strides, taps):
    rng = np.random.default_rng(1)
    x, kernel = rng.standard_normal((2, 3, 4, 2)), rng.standard_normal((*taps, 2, 3))
    out, products = looped_transposed_convolution(x, kernel, strides)
    x, kernel = jnp.asarray(x, "float32"), jnp.asarray(kernel, "float32")
    valid, same = (partial(lambda p, k, x: jax.lax.conv_transpose(x, k, strides, p), p) for p in ("VALID", "SAME"))
    np.testing.assert_allclose(jax.jit(valid)(kernel, x), out, atol=1e-4)
    assert multiply_adds(valid, kernel, x).by_leaf == {"": products}
    assert multiply_adds(same, kernel, x).by_leaf == {"": products}


@jax.custom_vjp
def half(w):
    return jnp.where(jnp.abs(w) > 0.5, w, 0)


half.defvjp(lambda w: (half(w), None), lambda _, g: (g,))


@jax.custom_jvp
def doubled(w):
    return 2 * w


doubled.defjvps(lambda t, ans, w: 2 * t)

W, V, B = f32((3, 5)), f32((5, 3)), f32((5,))
X = f32((2, 3))
MASK = np.ones((3, 5), bool)


def scanned(p, x):
    return jax.lax.scan(lambda h, w: (h @ w, h), x, p["w"])


def masked_scan(p, x):
    return jax.lax.scan(lambda h, layer: (h @ (layer["w"] * layer["scale"]), None), x, p)


def generated(p):  # what is carried is stacked, unstacked and stacked again: origins must stop growing
    def turn(h, _):
        _, copies = jax.lax.scan(lambda c, _: (c, c), jnp.tanh(h * p["b"]), None, length=4)
        return copies[-1], None

    return jax.lax.scan(turn, p["h"], None, length=3)[0] @ p["w"]


def mixed_later(p, x):  # the carry starts as a parameter and meets data in the second turn only
    return jax.lax.scan(lambda c, _: ((c[1], c[1] + x, c[0] @ p["w"]), None), (p["h"], p["h"], p["h"]), None, length=2)


def attention(p, x):
    q, k = x @ p["q"], x @ p["k"]
    return jax.nn.softmax(q @ k.T) @ x


ATTRIBUTION = {
    # name: (fn, params, args, multiply-adds by leaf, of no leaf)
    "matrix": (lambda w, x: x @ w, W, (X,), {"": 30}, 0),
    "bare list": (lambda p, x: x @ p[1] + p[0][None], [B, W], (X,), {"0": 0, "1": 30}, 0),
    "weight on the left": (lambda w, x: jnp.einsum("io,bi->ob", w, x), W, (X,), {"": 30}, 0),
    "batch axes": (lambda w, x: jnp.einsum("hio,hbi->hbo", w, x), f32((4, 3, 5)), (f32((4, 2, 3)),), {"": 120}, 0),
    "two contracted axes": (lambda w, x: jnp.tensordot(x, w, 2), f32((3, 4, 5)), (f32((2, 3, 4)),), {"": 120}, 0),
    "vector": (lambda w, x: x @ w, f32((7,)), (f32((7,)),), {"": 7}, 0),
    "elementwise": (lambda w, x: jnp.einsum("bi,i->bi", x, w) * w[None], f32((3,)), (X,), {"": 0}, 0),
    "reshape, transpose, cast": (
        lambda w, x: x.astype("bfloat16") @ w.T.reshape(3, 5).astype("bfloat16"), V, (X,), {"": 30}, 0,
    ),
    "closed-over mask": (lambda w, x: x @ jnp.where(MASK, w, 0), W, (X,), {"": 30}, 0),
    "mask drawn from data": (lambda w, x: x @ jnp.where(x.sum() > 0, w, 0), W, (X,), {"": 30}, 0),
    "mask from an auxiliary": (
        lambda p, x: x @ jnp.where(p["aux"] > 0, p["w"], 0), {"w": W, "aux": W}, (X,), {"aux": 0, "w": 30}, 0,
    ),
    "cast mask from an auxiliary": (
        lambda p, x: x @ (p["w"] * (p["aux"] > 0).astype("float32")), {"w": W, "aux": W}, (X,), {"aux": 0, "w": 30}, 0,
    ),
    "centred and scaled": (
        lambda p, x: x @ ((p["w"] - p["w"].mean()) * p["g"]), {"w": W, "g": f32(())}, (X,), {"g": 0, "w": 30}, 0,
    ),
    "two leaves of one size": (lambda p, x: x @ (p["a"] * p["b"]), {"a": W, "b": W}, (X,), {"a": 0, "b": 0}, 30),
    "straight-through": (lambda w, x: x @ half(w), W, (X,), {"": 30}, 0),
    "custom_jvp": (lambda w, x: x @ doubled(w), W, (X,), {"": 30}, 0),
    "slice": (lambda w, x: jnp.split(x @ w[:, :2], 2), W, (X,), {"": 12}, 0),
    "quantised": (
        lambda p, x: x @ (p["q"].astype("float32") * p["s"]), {"q": i32((3, 5)), "s": f32(())}, (X,),
        {"q": 30, "s": 0}, 0,
    ),
    "concatenated": (
        lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], 1), {"a": W, "b": f32((3, 2))}, (X,), {"a": 30, "b": 12}, 0,
    ),
    "stacked by hand": (
        lambda p, x: jax.lax.scan(lambda h, w: (h @ w, None), x, jnp.stack(p)), [f32((3, 3))] * 2, (X,),
        {"0": 18, "1": 18}, 0,
    ),
    "used twice": (lambda w, x: x @ w @ w.T, W, (X,), {"": 60}, 0),
    "low rank correction": (
        lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), {"w": W, "a": f32((3, 1)), "b": f32((1, 5))}, (X,),
        {"a": 0, "b": 0, "w": 30}, 15,
    ),
    "product of weights": (lambda p, x: x @ (p["a"] @ p["b"]), {"a": W, "b": V}, (X,), {"a": 0, "b": 0}, 45 + 18),
    "rotated weight": (lambda w, x: x @ (w @ np.eye(5, dtype="float32")), W, (X,), {"": 75}, 30),
    "closed-over data": (
        lambda p: jnp.tanh(np.ones((3, 3), "float32") @ p["a"]) @ p["b"], {"a": f32((3, 3)), "b": f32((3, 3))}, (),
        {"a": 27, "b": 27}, 0,
    ),
    "gram": (lambda w: w.T @ w, W, (), {"": 75}, 0),
    "activations": (attention, {"q": f32((3, 4)), "k": f32((3, 4))}, (X,), {"k": 24, "q": 24}, 2 * 2 * 4 + 2 * 2 * 3),
    "embedding looked up": (lambda w, t: w[t], W, (i32((9,)),), {"": 0}, 0),
    "tied embedding": (lambda w, t: w[t] @ w.T, W, (i32((9,)),), {"": 9 * 5 * 3}, 0),
    "gathered by data": (lambda w, t, x: x @ w[t], f32((4, 3, 5)), (i32(()), X), {"": 0}, 30),
    "ragged": (lambda w, x, n: jax.lax.ragged_dot(x, w, n), f32((4, 3, 5)), (f32((7, 3)), i32((4,))), {"": 105}, 0),
    "barrier": (lambda w, x: jnp.matmul(*jax.lax.optimization_barrier((x, w))), W, (X,), {"": 30}, 0),
    "jit in jit": (jax.jit(lambda w, x: jax.jit(jnp.matmul)(x, w)), W, (X,), {"": 30}, 0),
    "remat": (jax.checkpoint(lambda w, x: jnp.sin(x @ w)), W, (X,), {"": 30}, 0),
    "vmap": (jax.vmap(lambda w, x: x @ w, (None, 0)), W, (f32((4, 2, 3)),), {"": 120}, 0),
    "ensemble": (jax.vmap(lambda w, x: x @ w, (0, None)), f32((4, 3, 5)), (X,), {"": 120}, 0),
    "map": (lambda w, x: jax.lax.map(lambda row: row @ w, x), W, (X,), {"": 30}, 0),
    "scan over layers": (scanned, {"w": f32((6, 3, 3))}, (X,), {"w": 6 * 18}, 0),
    "scan over masked layers": (
        masked_scan, {"w": f32((6, 3, 3)), "scale": f32((6,))}, (X,), {"scale": 0, "w": 108}, 0,
    ),
    "loop over layers": (
        lambda w, x: jax.lax.fori_loop(0, 6, lambda i, h: h @ w[i], x), f32((6, 3, 3)), (X,), {"": 108}, 0,
    ),
    "carry without data": (
        generated, {"w": f32((3, 3)), "b": f32((3,)), "h": f32((3,))}, (), {"b": 0, "h": 0, "w": 0}, 9,
    ),
    "carry that meets data late": (mixed_later, {"w": f32((3, 3)), "h": f32((3,))}, (f32((3,)),), {"h": 0, "w": 18}, 0),
    "no layers": (scanned, {"w": f32((0, 3, 3))}, (X,), {"w": 0}, 0),
    "gradient": (jax.grad(lambda w, x: (x @ w).var()), W, (X,), {"": 30}, 30),
}  # fmt: skip


@pytest.mark.parametrize("case", ATTRIBUTION)
def test_a_product_belongs_to_the_leaf_of_its_weight(case):
    fn, params, args, by_leaf, unattributed = ATTRIBUTION[case]
    counts = multiply_adds(fn, params, *args)
    assert (counts.by_leaf, counts.unattributed, counts.notes) == (by_leaf, unattributed, ())
    assert counts.total == sum(by_leaf.values()) + unattributed


class Lenet5(nn.Module):
    @nn.compact
    def __call__(self, x):
        for channels in (20, 50):
            x = nn.max_pool(nn.Conv(channels, (5, 5), padding="VALID")(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(500)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class Vgg16(nn.Module):
    @nn.compact
    def __call__(self, x):
        for channels, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(depth):
                x = nn.relu(nn.Conv(channels, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for features in (4096, 4096, 1000):
            x = nn.Dense(features)(x)
        return x


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Conv(6, (3, 3), strides=2)(x))


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=7)
        return layer()(x, None)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(4)(x)), None


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(11, 6)
        return table.attend(table(tokens))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)(x, x)


GATES = {f"h{gate}": 2 * 5 * 4 * 4 for gate in "ifgo"} | {f"i{gate}": 2 * 5 * 3 * 4 for gate in "ifgo"}
FLAX = {
    # name: (module, input, {end of the leaf's name: multiply-adds}, of no leaf)
    "Dense": (nn.Dense(5), f32((2, 7, 3)), {"kernel": 2 * 7 * 3 * 5}, 0),
    "Conv SAME": (nn.Conv(6, (3, 3)), f32((2, 8, 8, 4)), {"kernel": 2 * 8 * 8 * 9 * 4 * 6}, 0),
    "Conv VALID": (nn.Conv(6, (3, 2), padding="VALID"), f32((2, 8, 8, 4)), {"kernel": 2 * 6 * 7 * 6 * 4 * 6}, 0),
    "Conv strided": (nn.Conv(6, (3, 3), strides=2), f32((2, 8, 8, 4)), {"kernel": 2 * 4 * 4 * 9 * 4 * 6}, 0),
    "depthwise": (nn.Conv(4, (3, 3), feature_group_count=4), f32((1, 8, 8, 4)), {"kernel": 8 * 8 * 9 * 4}, 0),
    "ConvTranspose": (nn.ConvTranspose(6, (3, 3), (2, 2)), f32((2, 4, 4, 5)), {"kernel": 2 * 16 * 9 * 5 * 6}, 0),
    "BatchNorm": (Normalised(), f32((2, 8, 8, 4)), {"params/Conv_0/kernel": 2 * 4 * 4 * 9 * 4 * 6}, 0),
    "attention": (
        Attention(), f32((2, 5, 6)),
        {f"{part}/kernel": 2 * 5 * 6 * 8 for part in ("query", "key", "value", "out")}, 2 * (2 * 2 * 5 * 5 * 4),
    ),
    "scan of remat": (Stacked(), f32((2, 4)), {"kernel": 7 * 2 * 4 * 4}, 0),
    "tied embedding": (Tied(), i32((2, 3)), {"embedding": 2 * 3 * 11 * 6}, 0),
    "LSTM": (nn.RNN(nn.OptimizedLSTMCell(4)), f32((2, 5, 3)), {f"{gate}/kernel": n for gate, n in GATES.items()}, 0),
    "LeNet-5": (
        Lenet5(), f32((1, 28, 28, 1)),
        {"Conv_0/kernel": 288_000, "Conv_1/kernel": 1_600_000, "Dense_0/kernel": 400_000, "Dense_1/kernel": 5_000}, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FLAX)
def test_flax_modules_cost_what_a_count_by_hand_says(case):
    module, x, ends, unattributed = FLAX[case]
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    counts = multiply_adds(lambda v, x: module.apply(v, x, mutable=["batch_stats"]), variables, x)
    assert {name: n for name, n in counts.by_leaf.items() if n} == {
        name: n for end, n in ends.items() for name in counts.by_leaf if name.endswith(end)
    }
    assert sum(n > 0 for n in counts.by_leaf.values()) == len(ends)
    assert len(counts.by_leaf) == len(jax.tree.leaves(variables))
    assert (counts.unattributed, counts.notes) == (unattributed, ())


def test_lenet_300_100():
    def fn(params, x):
        for kernel in params:
            x = jnp.tanh(x @ kernel)
        return x

    params = [f32((784, 300)), f32((300, 100)), f32((100, 10))]
    counts = multiply_adds(fn, params, f32((1, 784)))
    assert counts.by_leaf == {"0": 235_200, "1": 30_000, "2": 1_000}
    assert counts.total == 266_200
    assert multiply_adds(fn, params, f32((8, 784))).total == 8 * 266_200


def test_vgg16_costs_the_published_number():
    x = f32((1, 224, 224, 3))
    params = jax.eval_shape(Vgg16().init, jax.random.key(0), x)
    assert multiply_adds(Vgg16().apply, params, x).total == 15_470_264_320


def test_nothing_is_executed_and_counts_are_python_ints():
    side = 10**7
    counts = multiply_adds(lambda w, x: x @ w, f32((side, side)), f32((side, side)))
    assert counts.total == side**3 > 2**64
    assert type(counts.total) is int


STRIDED = {
    "strided": lambda k, x: conv(x, k, (2, 2), "SAME"),
    "grouped": lambda k, x: conv(x, k[:, :, :2], (2, 1), "SAME", feature_group_count=2),
    "transposed": lambda k, x: jax.lax.conv_transpose(x, k, (2, 2), "SAME"),
}


@pytest.mark.parametrize("name", STRIDED)
def test_the_gradients_to_kernel_and_input_cost_as_much_as_the_layer(name):
    fn, shapes = STRIDED[name], (f32((3, 3, 4, 6)), f32((2, 8, 8, 4)))
    forward = multiply_adds(fn, *shapes)
    backward = multiply_adds(jax.grad(lambda *args: fn(*args).var(), argnums=(0, 1)), *shapes)
    assert forward.unattributed == 0
    assert backward.by_leaf == {"": 2 * forward.total}  # the layer, and the gradient to its input
    assert backward.unattributed == forward.total  # the gradient to its kernel: inputs times gradients


NOTED = {
    # name: (fn, multiply-adds, a part of the note)
    "cond": (lambda w, x: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w.T, lambda: x), {"": 60}, "[0, 60]"),
    "switch": (lambda w, x: jax.lax.switch(1, [lambda: x, lambda: x @ w @ w.T, lambda: 2 * x]), {"": 60}, "[0, 60, 0]"),
    "while": (
        lambda w, x: jax.lax.while_loop(lambda h: (h @ w).sum() < 1, lambda h: h @ w @ w.T, x),
        {"": 90},
        "one turn",
    ),
    "solve": (lambda w, x: jnp.linalg.solve(w @ w.T, x.T), {"": 45}, "custom_linear_solve"),
}


@pytest.mark.parametrize("case", NOTED)
def test_what_is_not_exact_is_noted(case):
    fn, by_leaf, note = NOTED[case]
    counts = multiply_adds(fn, W, X)
    assert counts.by_leaf == by_leaf
    assert len(counts.notes) == 1
    assert note in counts.notes[0]


def test_branches_of_one_cost_and_loops_without_products_are_exact():
    def fn(w, x):
        x = jax.lax.while_loop(lambda h: h.sum() < 1, lambda h: 2 * h, x)
        return jax.lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: x @ (2 * w), w)

    assert multiply_adds(fn, W, X).notes == ()


def test_a_shard_map_costs_the_work_of_its_devices():
    mesh = jax.make_mesh((2, 4), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)

    def fn(params, x):
        local = lambda w, g, x: jax.lax.psum(x @ (w * g), "columns")  # noqa: E731
        specs = (P("columns", None), P("columns", None), P("rows", "columns"))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("rows"))(params["w"], params["g"], x)

    counts = multiply_adds(fn, {"w": f32((8, 5)), "g": f32((8, 1))}, f32((6, 8)))
    assert counts.by_leaf == {"g": 0, "w": 6 * 8 * 5}
    assert counts.unattributed == 0


@pytest.mark.parametrize(
    ("products", "nonzeros", "size", "remaining"),
    [
        (288_000, 125, 500, 72_000),
        (10, 1, 3, 3),
        (11, 1, 2, 6),
        (10**21, 10**14 - 1, 10**14, 10**21 - 10**7),
        (0, 0, 0, 0),
    ],
)
def test_zeros_are_skipped_exactly(products, nonzeros, size, remaining):
    assert effective(products, nonzeros, size) == remaining


def test_a_count_is_immutable():
    counts = multiply_adds(lambda w, x: x @ w, W, X)
    with pytest.raises(dataclasses.FrozenInstanceError):
        counts.unattributed = 1
