"""Constants behind padding, exactly: bias maps, and the networks that run with them, whole and smaller."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
KEPT = {"unit": jnp.array([False, True, False, True])}


def conv(x, kernel, padding="SAME", stride=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


def hidden(p, x):
    """Channels of which the first and the third are constant, if their kernels are 0."""
    return jax.nn.relu(conv(x, p["unit"]) + p["first"].reshape(1, 1, 1, -1))


def one_layer(stride, p, x):
    return jnp.tanh(conv(hidden(p, x), p["out"], stride=stride) + p["bias"].reshape(1, 1, 1, -1))


def pooled(p, x):
    z = jax.lax.reduce_window(hidden(p, x), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return conv(z, p["out"]) + p["bias"].reshape(1, 1, 1, -1)


def no_bias(p, x):
    return jax.nn.relu(conv(hidden(p, x), p["out"]))


def in_training(p, x):
    """A batch norm that sees the constants of the border, and takes their mean away."""
    y = conv(hidden(p, x), p["out"])
    return (y - y.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(y.var((0, 1, 2), keepdims=True) + 1e-3)


def scaled(p, x):
    """A scale of every place comes before a bias of every channel."""
    return conv(hidden(p, x), p["out"], "VALID") * p["scale"][None] + p["bias"].reshape(1, 1, 1, -1)


def untied(p, x):
    return conv(hidden(p, x), p["out"]) + p["places"][None]


def flattened(p, x):
    y = conv(hidden(p, x), p["out"]).reshape(x.shape[0], -1, 3)
    return y + p["bias"].reshape(1, 1, -1)


def dense(p, x):
    return hidden(p, x) @ p["last"] + p["bias"].reshape(1, 1, 1, -1)


SHAPES = {"unit": (3, 3, 2, 4), "first": 4, "last": (4, 3), "bias": 3, "scale": (4, 4, 3), "places": (6, 6, 3)}
CASES = {
    # name: (function, side of the kernel that reads the units, whether there is a map)
    **{
        f"kernel {side}, stride {stride}": (jax.tree_util.Partial(one_layer, stride), side, True)
        for side, stride in itertools.product((3, 5), (1, 2))
    },
    "behind a pool": (pooled, 3, True),
    "no bias": (no_bias, 3, True),
    "batch norm in training mode": (in_training, 3, True),
    "a scale of every place": (scaled, 3, True),
    "a bias of every place": (untied, 3, False),
    "laid out anew": (flattened, 3, True),
    "no padding": (dense, 3, False),
}


def drawn(side=3, constant=(0, 2), seed=0, more=()):
    rng = np.random.default_rng(seed)
    shapes = SHAPES | {"out": (side, side, 4, 3)} | dict(more)
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    params["first"] = 1 + np.abs(params["first"])
    params["unit"][..., list(constant)] = 0
    return {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()}


def images(count=2, side=6):
    return jnp.asarray(np.random.default_rng(9).standard_normal((count, side, side, 2)), jnp.float32)


def measured(fn, params, x, **options):
    graph = sj.units.trace(fn, params, x)
    return graph, sj.units.statistics(graph, lambda p, x: (fn(p, x) ** 2).mean(), params, [x], **options)


@pytest.mark.parametrize("name", CASES)
def test_constant_units_go_and_nothing_changes(name):
    fn, side, has_map = CASES[name]
    params, x = drawn(side), images()
    graph, stats = measured(fn, params, x)
    new, maps = sj.units.bias_maps(graph, params, KEPT, stats)
    assert bool(maps) == has_map
    run = sj.units.with_maps(graph, maps)
    small, small_run = sj.shrink(graph, new, KEPT), sj.units.with_maps(graph, maps, KEPT)
    for inputs in (x, -x, images(3)):
        full = fn(params, inputs)
        np.testing.assert_allclose(run(new, inputs), full, **CLOSE)
        np.testing.assert_allclose(jax.jit(small_run)(small, inputs), full, **CLOSE)
    removed = sj.units.remove(graph, params, KEPT, "mean", stats, unfolded="drop")
    approximate = np.abs(fn(removed, x) - fn(params, x)).max()
    assert approximate > 1e-2 if has_map else approximate < 1e-4


def test_a_map_is_the_convolution_of_the_constants():
    fn, side, _ = CASES["kernel 5, stride 2"]
    params, x = drawn(side), images()
    graph, stats = measured(fn, params, x)
    _, maps = sj.units.bias_maps(graph, params, KEPT, stats)
    first, out = np.asarray(params["first"], float), np.asarray(params["out"], float)
    expected = np.zeros((1, 3, 3, 3))
    for r, c, i, j, u in itertools.product(range(3), range(3), range(5), range(5), (0, 2)):
        row, column = 2 * r + i - 1, 2 * c + j - 1  # XLA pads 3 in all, the smaller half before
        if 0 <= row < 6 and 0 <= column < 6:
            expected[0, r, c] += first[u] * out[i, j, u]
    assert list(maps) == ["out[2]"]
    np.testing.assert_allclose(maps["out[2]"], expected, rtol=1e-5, atol=1e-5)


def two_layers(p, x):
    z = jax.nn.relu(conv(hidden(p, x), p["middle"]) + p["second"].reshape(1, 1, 1, -1))
    return conv(z, p["out"]) + p["bias"].reshape(1, 1, 1, -1)


TWO = {"middle": (3, 3, 4, 4), "second": 4}
BOTH = KEPT | {"middle": jnp.array([True, False, True, False])}


def of_two_layers(**options):
    """The second and the fourth channel of the second layer see constant channels only."""
    params, x = drawn(more=TWO), images(4)
    params["middle"] = params["middle"].at[:, :, [1, 3], 1].set(0).at[..., 3].set(0)
    params["second"] = jnp.abs(params["second"]) + 8
    graph, stats = measured(two_layers, params, x, **options)
    return graph, stats, params, x


def test_two_padded_layers_in_a_row():
    """Units of the second layer differ from place to place, as the border does: one map of means cannot say so."""
    graph, stats, params, x = of_two_layers()
    for kept, exact in ((KEPT, True), (BOTH, False)):
        new, maps = sj.units.bias_maps(graph, params, kept, stats)
        assert sorted(maps) == (["middle[2]"] if exact else ["middle[2]", "out[2]"])
        gap = np.abs(sj.units.with_maps(graph, maps)(new, x) - two_layers(params, x)).max()
        assert gap < 1e-4 if exact else gap > 0.1
    graph, stats, params, x = of_two_layers(at="position")
    new, maps = sj.units.bias_maps(graph, params, BOTH, stats)
    for inputs in (x, -x[:1]):
        full = two_layers(params, inputs)
        np.testing.assert_allclose(sj.units.with_maps(graph, maps)(new, inputs), full, rtol=1e-4, atol=1e-4)
        small = sj.shrink(graph, new, BOTH)
        np.testing.assert_allclose(sj.units.with_maps(graph, maps, BOTH)(small, inputs), full, rtol=1e-4, atol=1e-4)
    assert not np.asarray(maps["middle[2]"])[..., [1, 3]].any()  # units that go are 0 with maps, too


def test_means_of_every_position():
    _, stats, params, x = of_two_layers(at="position")
    z = np.asarray(hidden(params, x), float)
    np.testing.assert_allclose(stats.inputs["middle[2]"], z.mean(0, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(stats.mean["unit"], z.mean((0, 1, 2)), rtol=1e-5)
    plain = of_two_layers()[1]
    assert plain.inputs["middle[2]"].shape == (1, 1, 1, 4)
    for score in ("mean", "rs", "abs_rs", "norm"):
        np.testing.assert_allclose(getattr(stats, score)["middle"], getattr(plain, score)["middle"], rtol=1e-4)


TRANSFORMATIONS = {
    "grad": lambda fn: jax.grad(lambda p, x: (fn(p, x) ** 2).sum()),
    "jit": jax.jit,
    "vmap": lambda fn: jax.vmap(fn, (None, 0)),
    "export": lambda fn: lambda p, x: jax.export.export(jax.jit(fn))(p, x).call(p, x),
    "remat and scan": lambda fn: lambda p, x: jax.lax.scan(lambda c, x: (c, jax.checkpoint(fn)(p, x)), 0, x[None])[1],
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("kept", [None, KEPT])
def test_it_is_an_ordinary_function(name, kept):
    fn, side, _ = CASES["kernel 3, stride 1"]
    params, x = drawn(side), images()
    graph, stats = measured(fn, params, x)
    new, maps = sj.units.bias_maps(graph, params, KEPT, stats)
    inputs = x[:, None] if name == "vmap" else x
    expected = TRANSFORMATIONS[name](fn)(params, inputs)
    found = TRANSFORMATIONS[name](sj.units.with_maps(graph, maps, kept))(
        new if kept is None else sj.shrink(graph, new, KEPT), inputs
    )
    if name == "grad":  # of what stays
        expected = expected if kept is None else sj.shrink(graph, expected, KEPT)
        expected, found = ({"bias": tree["bias"], "stays": tree["unit"][..., -1]} for tree in (expected, found))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_maps_may_be_traced_and_learned():
    fn, side, _ = CASES["kernel 3, stride 1"]
    params, x = drawn(side), images()
    graph, stats = measured(fn, params, x)

    @jax.jit
    def pruned(kept):
        new, maps = sj.units.bias_maps(graph, params, {"unit": kept}, stats)
        return sj.units.with_maps(graph, maps)(new, x), new, maps

    out, new, maps = pruned(KEPT["unit"])
    np.testing.assert_allclose(out, fn(params, x), **CLOSE)
    gradient = jax.grad(lambda maps: sj.units.with_maps(graph, maps)(new, x).sum())(maps)["out[2]"]
    expected = (1 - np.asarray(out, float) ** 2).sum(0, keepdims=True)  # of a hyperbolic tangent
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def test_low_precision_stays():
    fn, side, _ = CASES["kernel 3, stride 1"]
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (drawn(side), images()))
    graph = sj.units.trace(fn, params, x)
    stats = sj.units.statistics(graph, lambda p, x: fn(p, x).mean(), params, [x])
    new, maps = sj.units.bias_maps(graph, params, KEPT, stats)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}
    assert maps["out[2]"].dtype == jnp.float32
    out = sj.units.with_maps(graph, maps)(new, x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(*(np.asarray(y, np.float32) for y in (out, fn(params, x))), atol=0.1)


def test_what_does_not_fit_is_an_error():
    fn, side, _ = CASES["kernel 3, stride 1"]
    params, x = drawn(side), images()
    graph, stats = measured(fn, params, x)
    new, maps = sj.units.bias_maps(graph, params, KEPT, stats)

    def run(maps, x=x):
        return sj.units.with_maps(graph, maps)(new, x)

    by_place = measured(fn, params, images(2, 5), at="position")[1]
    cases = {
        r"maps has entries \['other'\] that are no edges of the function, which has \['unit\[2\]', 'out\[2\]'\]": (
            lambda: run({"other": jnp.ones(3)})
        ),
        r"maps\['out\[2\]'\] has shape \(3,\), .* the result there has \(2, 6, 6, 3\)": (
            lambda: run({"out[2]": jnp.ones(3)})
        ),
        r"maps\['out\[2\]'\] has shape \(1, 6, 6, 3\), .* has \(2, 8, 8, 3\)": lambda: run(maps, images(2, 8)),
        r"stats.inputs\['out\[2\]'\] has shape \(1, 5, 5, 4\), but .* it reads \(2, 6, 6, 4\)": (
            lambda: sj.units.bias_maps(graph, params, KEPT, by_place)
        ),
        r"stats knows nothing of what \['out\[2\]'\] read": (
            lambda: sj.units.bias_maps(graph, params, KEPT, stats._replace(inputs={}))
        ),
        r"'other' that is not a group": lambda: sj.units.bias_maps(graph, params, {"other": KEPT["unit"]}, stats),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_queries_and_keys_have_no_map():
    def attention(p, x):
        q, k = x @ p["q"], x @ p["k"]
        return jax.nn.softmax(q @ k.swapaxes(1, 2)) @ x

    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.standard_normal((3, 4)), jnp.float32) for name in "qk"}
    x = jnp.asarray(rng.standard_normal((2, 5, 3)), jnp.float32)
    graph, stats = measured(attention, params, x)
    kept = {name: jnp.arange(group.size) > 0 for name, group in graph.groups.items()}
    with pytest.raises(ValueError, match=r"cannot be kept as they are: .*dot_general sums over them"):
        sj.units.bias_maps(graph, params, kept, stats)
