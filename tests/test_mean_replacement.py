"""Statistics of units, and their removal: published vectors, laws, and oracles that recompute activations by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from unit_networks import NETWORKS

import sparsejax as sj

KEEP = {"unit": jnp.array([False, True])}
EPSILON = 1e-5


@pytest.fixture(autouse=True)
def strict():
    """Leaves promotion as it is outside: the networks of other libraries rely on it."""


def floats(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree, is_leaf=lambda x: isinstance(x, list))


def conv(x, kernel, padding="VALID", stride=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


def norm(x, stats):
    return (x - stats["mean"]) * (stats["scale"] / jnp.sqrt(stats["var"] + EPSILON)) + stats["offset"]


class Case:
    """A function of parameters whose group of units is called "unit", and its statistics for a loss of its outputs."""

    def __init__(self, fn, params, x, at="consumer_input", loss=lambda y: y.sum() / y.shape[0]):
        self.fn, self.params, self.x = fn, floats(params), jnp.asarray(x, jnp.float32)
        self.graph = sj.units.trace(fn, self.params, self.x)
        self.loss_fn = lambda params, x: loss(fn(params, x))
        self.stats = sj.units.statistics(self.graph, self.loss_fn, self.params, [self.x], at=at)

    def removed(self, kept, replace="mean", **options):
        return sj.units.remove(self.graph, self.params, kept, replace, self.stats, **options)

    def run(self, params):
        return np.asarray(self.fn(params, self.x))


def dense(weights, bias=0.0, activation=jax.nn.relu):
    """Units that are the inputs, read by weights (units, outputs)."""
    weights = np.asarray(weights, float)
    size, outputs = weights.shape
    params = {"unit": np.eye(size), "out": weights, "bias": np.broadcast_to(bias, outputs)}
    return lambda p, x: activation(x @ p["unit"]) @ p["out"] + p["bias"], params


def convolutional(kernel, padding="VALID", stride=1):
    """Channels that are the inputs, read by a kernel (h, w, channels, outputs)."""
    kernel = np.asarray(kernel, float)
    params = {"unit": np.eye(kernel.shape[2])[None, None], "out": kernel, "bias": np.zeros(kernel.shape[3])}
    return lambda p, x: conv(conv(x, p["unit"]), p["out"], padding, stride) + p["bias"], params


def test_means_of_units():  # M1
    neurons, channels = np.array([[1.0, 0, 2], [3, 1, 0]]), np.arange(24.0).reshape(2, 2, 2, 3)
    case = Case(*dense(np.ones((3, 1))), neurons)
    np.testing.assert_array_equal(case.stats.mean["unit"], [2, 0.5, 1])
    case = Case(*convolutional(np.ones((1, 1, 3, 2))), channels)
    np.testing.assert_array_equal(case.stats.mean["unit"], [10.5, 11.5, 12.5])


def test_a_dense_layer_takes_the_mean_into_its_bias():  # M2
    x = np.array([[1.0, 0, 2], [3, 1, 0]])
    case = Case(*dense([[1, -2], [0.5, 0.5], [3, 1]], [0.1, -0.2]), x)
    kept = {"unit": jnp.array([False, True, True])}
    full, mean, zero = (case.run(p) for p in (case.params, case.removed(kept), case.removed(kept, "zero")))
    np.testing.assert_allclose(case.removed(kept)["bias"], [2.1, -4.2], rtol=1e-6)
    np.testing.assert_allclose([np.mean((full - mean) ** 2), np.mean((full - zero) ** 2)], [2.5, 12.5], rtol=1e-5)
    np.testing.assert_allclose((full - mean).mean(0), 0, atol=1e-6)


@pytest.mark.parametrize(("size", "stride", "value", "expected"), [(4, 1, 2.0, 12.5), (8, 2, 1.0, 7.5625)])
def test_same_padding_folds_the_mean_over_positions(size, stride, value, expected):  # M3, M4
    x = np.zeros((1, size, size, 2))
    x[..., 0] = value
    case = Case(*convolutional(np.ones((3, 3, 2, 1)), "SAME", stride), x)
    np.testing.assert_allclose(case.removed(KEEP)["bias"], [expected], rtol=1e-6)
    np.testing.assert_allclose(case.run(case.params).mean(), expected, rtol=1e-6)


def test_a_valid_convolution_takes_the_sum_over_its_window():  # M5
    x = np.full((1, 5, 5, 2), [0.0, 0.7])
    case = Case(*convolutional((np.arange(36.0).reshape(3, 3, 2, 2) - 17.5) / 10), x)
    delta = case.removed({"unit": jnp.array([True, False])})["bias"]
    np.testing.assert_allclose(delta, [0.315, 0.945], rtol=1e-5)


def test_a_dense_layer_behind_a_flattened_map_takes_the_sum_over_positions():  # M6
    params = {"unit": np.eye(3)[None, None], "out": np.arange(24.0).reshape(12, 2) / 10, "bias": np.zeros(2)}
    x = np.full((1, 2, 2, 3), [1.0, 0.7, 2.0])
    for at in ("consumer_input", "activation"):
        case = Case(lambda p, x: conv(x, p["unit"]).reshape(x.shape[0], -1) @ p["out"] + p["bias"], params, x, at)
        delta = case.removed({"unit": jnp.array([True, False, True])})["bias"]
        np.testing.assert_allclose(delta, [3.08, 3.36], rtol=1e-6)


def test_the_running_mean_of_a_batch_norm_takes_the_constant_where_there_is_no_bias():  # M7
    stats = {"scale": [1.5], "offset": [0.2], "mean": [0.4], "var": [2.25]}
    params = {"unit": np.eye(2), "out": [[0.3], [1]], "stats": stats}
    case = Case(lambda p, x: norm((x @ p["unit"]) @ p["out"], p["stats"]), params, [[1.0, 0.0]])
    new = case.removed(KEEP)
    np.testing.assert_allclose(new["stats"]["mean"], [0.1], rtol=1e-6)
    np.testing.assert_array_equal(new["stats"]["offset"], case.params["stats"]["offset"])
    np.testing.assert_allclose(case.run(new), 0.100000222221, rtol=1e-6)


def test_what_the_consumer_sees_is_folded_through_norms_and_activations():  # M8
    stats = {"scale": [1.5, 1], "offset": [0.2, 0], "mean": [0.4, 0], "var": [2.25, 1]}
    params = {"unit": np.eye(2), "stats": stats, "out": [[2, -1], [1, 1]], "bias": np.zeros(2)}
    case = Case(lambda p, x: jax.nn.relu(norm(x @ p["unit"], p["stats"])) @ p["out"] + p["bias"], params, [[0.8, 0.0]])
    np.testing.assert_allclose(case.removed(KEEP)["bias"], [1.199998222228, -0.599999111114], rtol=1e-5)
    np.testing.assert_allclose(case.run(case.removed(KEEP)), case.run(case.params), rtol=1e-5)


def test_six_scores():  # M9
    a = np.array([[[1.0, 0], [2, 1]], [[3, 0], [0, 3]]])
    g = np.array([[[0.1, -0.2], [0.3, 0.4]], [[-0.1, 0.2], [0.2, -0.1]]])
    params = floats({"unit": np.eye(2), "out": np.eye(2), "bias": np.zeros(2)})

    def fn(p, x):
        return (x @ p["unit"]) @ p["out"] + p["bias"]

    graph = sj.units.trace(fn, params, floats(a))
    stats = sj.units.statistics(graph, lambda p, x, g: (fn(p, x) * g).sum() / 2, params, [(floats(a), floats(g))])
    expected = {
        "mean": [1.5, 1.0], "rs": [-0.1, -0.025], "abs_rs": [0.25, 0.175],
        "mrs": [0.0875, 0.05], "abs_mrs": [0.1375, 0.15],
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(stats, name)["unit"], values, rtol=1e-6, atol=1e-7, err_msg=name)
    kernel = np.array([[0.3, -0.4], [0.1, 0.2], [-0.2, 0.5]])
    case = Case(*dense(np.eye(2)), np.ones((1, 2)))
    case.params["unit"] = floats(kernel[:2])
    wide = {**case.params, "unit": floats(kernel)}
    graph = sj.units.trace(case.fn, wide, jnp.ones((1, 3)))
    found = sj.units.statistics(graph, case.loss_fn, wide, [jnp.ones((1, 3))])
    np.testing.assert_allclose(found.norm["unit"], [0.046666666667, 0.15], rtol=1e-6)
    assert ((found.rand["unit"] >= 0) & (found.rand["unit"] < 1)).all()


def test_a_fraction_of_units_goes():  # M10
    for size in (32, 64, 512):
        for fraction in (0.01, 0.05, 0.1, 0.2, 0.5, 0.29):
            scores = np.random.default_rng(size).permutation(size).astype(np.float32)
            kept = np.asarray(sj.units.lowest({"unit": jnp.asarray(scores)}, fraction)["unit"])
            count = size * round(fraction * 100) // 100
            np.testing.assert_array_equal(np.sort(scores[~kept]), np.arange(count))
        kept = np.asarray(sj.units.lowest({"unit": jnp.asarray(scores)}, 3)["unit"])
        np.testing.assert_array_equal(np.sort(scores[~kept]), np.arange(3))
    tied = sj.units.lowest({"unit": jnp.array([0.0, 1.0, 0.0, jnp.nan, 0.0])}, 0.4)
    assert tied["unit"].tolist() == [True, True, True, False, False]


def test_the_bias_is_the_regression_s():  # M12
    x = np.array([[1.0, 2], [2, 0], [0, 1], [3, 1]])
    case = Case(*dense([[2], [0.5]], 0.25), x)
    np.testing.assert_allclose(case.removed({"unit": jnp.array([True, False])})["bias"], [0.75], rtol=1e-6)


def test_means_before_and_after_pooling_differ():  # M13
    z = np.array([[0.0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0], [3, 0, 0, 1]])
    params = {"unit": np.eye(2)[None, None], "out": np.ones((8, 1)), "bias": np.zeros(1)}

    def fn(p, x):
        z = jax.nn.relu(conv(x, p["unit"]))
        pooled = jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return pooled.reshape(x.shape[0], -1) @ p["out"] + p["bias"]

    x = np.stack([z, np.zeros((4, 4))], -1)[None]
    before, after = Case(fn, params, x, "activation"), Case(fn, params, x)
    assert before.stats.mean["unit"].tolist() == [0.4375, 0]
    assert after.stats.mean["unit"].tolist() == [1.75, 0]
    # 4 positions are read
    np.testing.assert_allclose(before.removed(KEEP)["bias"], [4 * 0.4375])
    np.testing.assert_allclose(after.removed(KEEP)["bias"], [4 * 1.75])


def test_a_batch_norm_in_training_mode_cancels_the_constant():  # M15
    x = np.array([[0.3, 1], [0.3, 2], [0.3, 4], [0.3, 5]])
    params = {"unit": np.eye(2), "out": [[1, 1], [1, 0]], "bias": np.zeros(2)}

    def training(p, x):
        y = (x @ p["unit"]) @ p["out"] + p["bias"]
        return (y - y.mean(0)) / jnp.sqrt(y.var(0) + EPSILON)

    def inference(p, x):
        return ((x @ p["unit"]) @ p["out"] + p["bias"] - 3) / math.sqrt(2.25 + EPSILON)

    for fn, expected in ((training, 0.0), (inference, 0.199999555557)):
        case = Case(fn, params, x)
        gap = np.abs(case.run(case.removed(KEEP)) - case.run(case.removed(KEEP, "zero")))[:, 0].max()
        np.testing.assert_allclose(gap, expected, atol=1e-6)
    no_bias = {name: leaf for name, leaf in case.params.items() if name != "bias"}
    graph = sj.units.trace(lambda p, x: training({**p, "bias": jnp.zeros(2)}, x), no_bias, case.x)
    assert "used in" in sj.units.unfoldable(graph)["unit"][0]


def residual(p, x):
    h = jax.nn.relu(x @ p["unit"] + p["first"])
    h = h + jnp.tanh(h @ p["up"] + p["middle"]) @ p["down"] + p["last"]
    return h @ p["out"] + p["bias"]


def attention(p, x):
    h = jnp.einsum("nd,dhk->nhk", x, p["unit"]) + p["first"]
    return jnp.einsum("nhk,hkd->nd", jnp.tanh(h), p["out"]) + p["bias"]


def transposed(p, x):
    return (p["out"] @ jax.nn.relu(x @ p["unit"] + p["first"]).T).T + p["bias"][None]


def gates(p, x):
    h = jax.nn.relu(x @ p["unit"] + p["first"])
    return jnp.tanh(p["bias"] + h @ p["out"] + x @ p["other"])


def branches(p, x):
    h = jax.nn.relu(x @ p["unit"] + p["first"])
    return jnp.concatenate([h, x], -1) @ p["out"] + p["bias"] + (3 - (p["minus"] - (h * h) @ p["square"]))


def block(p, x):
    @jax.checkpoint
    def layer(p, x):
        return jax.nn.relu(conv(jax.nn.relu(conv(x, p["unit"]) + p["first"]), p["middle"])) @ p["out"]

    return (layer(p, x) + p["bias"]).reshape(x.shape[0], -1)


def flattened(p, x):
    h = jax.nn.relu(conv(x, p["unit"]) + p["first"])
    pooled = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return pooled.reshape(x.shape[0], -1) @ p["out"] + p["bias"]


def normed(p, x):
    return jax.nn.relu(norm(conv(jax.nn.relu(conv(x, p["unit"]) + p["first"]), p["out"]), p["stats"]))


def untied(p, x):
    """The padding's part of the constant differs from place to place, and so does the bias."""
    h = jax.nn.relu(conv(x, p["unit"]) + p["first"])
    return conv(h, p["out"], "SAME") + jnp.broadcast_to(p["bias"], (x.shape[0], 4, 4, 2))


PIXELS, VECTORS = (3, 5, 5, 2), (6, 3)
DENSE, CONVOLUTION = {"unit": (3, 4), "first": (4,)}, {"unit": (2, 2, 2, 4), "first": (4,)}
BIAS = {"bias": (2,)}
LAWS = {
    # name: (fn, shape of inputs, shapes of parameters, {kernel that computes units: its axis of units})
    "residual": (
        residual,
        VECTORS,
        DENSE | BIAS | {"up": (4, 5), "middle": (5,), "down": (5, 4), "last": (4,), "out": (4, 2)},
        {"unit": 1, "down": 1},
    ),
    "heads": (attention, VECTORS, {"unit": (3, 4, 2), "first": (4, 2), "out": (4, 2, 2)} | BIAS, {"unit": 1}),
    "transposed": (transposed, VECTORS, DENSE | BIAS | {"out": (2, 4)}, {"unit": 1}),
    "one bias for two products": (gates, VECTORS, DENSE | BIAS | {"out": (4, 2), "other": (3, 2)}, {"unit": 1}),
    "read twice": (branches, VECTORS, DENSE | BIAS | {"out": (7, 2), "square": (4, 2), "minus": (2,)}, {"unit": 1}),
    "rematerialised": (block, PIXELS, CONVOLUTION | BIAS | {"middle": (2, 2, 4, 3), "out": (3, 2)}, {}),
    "flattened": (flattened, PIXELS, CONVOLUTION | BIAS | {"out": (16, 2)}, {"unit": 3}),
    "a bias of every place": (untied, PIXELS, CONVOLUTION | {"out": (3, 3, 4, 2), "bias": (4, 4, 2)}, {"unit": 3}),
    "batch norm": (
        normed,
        PIXELS,
        CONVOLUTION | {"out": (3, 3, 4, 2), "stats": dict.fromkeys(["scale", "offset", "mean", "var"], (2,))},
        {"unit": 3},
    ),
}


@functools.cache
def law(name):
    fn, shape, shapes, constant = LAWS[name]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: 0.3 + np.abs(rng.standard_normal(s)), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    for leaf in ("unit", "out", "up", "down", "middle"):
        if leaf in params and params[leaf].ndim > 1:
            params[leaf] = rng.standard_normal(params[leaf].shape)
    for leaf, axis in constant.items():  # the first and the third unit are what their biases make of them
        np.moveaxis(params[leaf], axis, 0)[[0, 2]] = 0
    return Case(fn, params, rng.standard_normal(shape))


@pytest.mark.parametrize("name", [name for name in LAWS if LAWS[name][3]])
def test_removing_constant_units_changes_nothing(name):
    case = law(name)
    kept = {"unit": jnp.array([False, True, False, True])}
    full, mean, zero = (case.run(p) for p in (case.params, case.removed(kept), case.removed(kept, "zero")))
    np.testing.assert_allclose(mean, full, rtol=1e-5, atol=1e-5)
    assert np.abs(zero - full).max() > 0.1
    # Other inputs: the units are constant there, too.
    np.testing.assert_allclose(
        case.fn(case.removed(kept), -case.x), case.fn(case.params, -case.x), rtol=1e-5, atol=1e-5
    )


def test_parameters_in_a_rematerialised_part_are_read_there():
    case = law("rematerialised")
    assert sj.units.unfoldable(case.graph)["unit"][0].startswith("middle[2]: ")  # it has no bias
    kept = {"middle": jnp.array([False, True, True])}
    mean = case.removed(kept)
    p = jax.tree.map(np.asarray, case.params)
    hidden = jax.nn.relu(conv(jax.nn.relu(conv(case.x, p["unit"]) + p["first"]), p["middle"]))
    expected = p["bias"] + np.asarray(hidden)[..., 0].mean() * p["out"][0]
    np.testing.assert_allclose(mean["bias"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["flattened", "transposed", "heads"])
def test_the_fold_is_the_least_squares_bias(name):
    case = law(name)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), case.params)
    stats = sj.units.statistics(case.graph, case.loss_fn, params, [case.x])
    kept = {"unit": jnp.array([False, True, True, False])}
    new = sj.units.remove(case.graph, params, kept, "mean", stats)
    zero = sj.units.remove(case.graph, params, kept)
    target = np.asarray(case.fn(params, case.x) - case.fn({**zero, "bias": jnp.zeros_like(zero["bias"])}, case.x))
    best, *_ = np.linalg.lstsq(np.ones((len(target), 1)), target, rcond=None)
    np.testing.assert_allclose(new["bias"], best[0], rtol=1e-4, atol=1e-5)


def central(loss, a, width=1e-4):
    """The derivative by every entry of an array, which is exact for a quadratic loss."""
    gradient = np.zeros_like(a)
    for place in np.ndindex(a.shape):
        step = np.zeros_like(a)
        step[place] = width
        gradient[place] = (loss(a + step) - loss(a - step)) / (2 * width)
    return gradient


def scores(a, g):
    """Means and scores of activations (examples, positions, units), in loops."""
    examples, positions, units = a.shape
    found = {name: np.zeros(units) for name in ("mean", "rs", "abs_rs", "mrs", "abs_mrs")}
    for u in range(units):
        abar = sum(a[i, p, u] for i in range(examples) for p in range(positions)) / (examples * positions)
        found["mean"][u] = abar
        for i in range(examples):
            rs = sum(-a[i, p, u] * g[i, p, u] for p in range(positions)) / positions
            mrs = sum((abar - a[i, p, u]) * g[i, p, u] for p in range(positions)) / positions
            for name, value in (("rs", rs), ("abs_rs", abs(rs)), ("mrs", mrs), ("abs_mrs", abs(mrs))):
                found[name][u] += value / examples
    return found


def assert_scores(stats, group, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(stats, name)[group], values, rtol=2e-4, atol=2e-5, err_msg=name)


def test_scores_of_a_perceptron_against_loops():
    rng = np.random.default_rng(0)
    w1, b1, w2, b2, w3, b3 = (rng.standard_normal(s) for s in ((4, 5), 5, (5, 6), 6, (6, 2), 2))
    x, y = rng.standard_normal((7, 4)), rng.standard_normal((7, 2))

    def fn(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]) @ p["w3"] + p["b3"]

    def second(a):
        return np.maximum(a @ w2 + b2, 0)

    params = floats({"w1": w1, "b1": b1, "w2": w2, "b2": b2, "w3": w3, "b3": b3})
    graph = sj.units.trace(fn, params, floats(x))
    loss = lambda p, x, y: ((fn(p, x) - y) ** 2).sum(-1).mean()  # noqa: E731
    batch = floats(x), floats(y)
    stats = sj.units.statistics(graph, loss, params, [batch])
    a1 = np.maximum(x @ w1 + b1, 0)
    a2 = second(a1)
    g1 = central(lambda a: ((second(a) @ w3 + b3 - y) ** 2).sum(), a1, 1e-6)
    g2 = central(lambda a: ((a @ w3 + b3 - y) ** 2).sum(), a2)
    assert_scores(stats, "w1", scores(a1[:, None], g1[:, None]))
    assert_scores(stats, "w2", scores(a2[:, None], g2[:, None]))
    np.testing.assert_allclose(stats.norm["w2"], (w2**2).mean(0), rtol=1e-5)


def test_scores_of_a_convolutional_network_against_loops():
    """Consumers are a dense layer behind a flattened map, whose units have a mean at every position, and a pool."""
    case, rng = law("flattened"), np.random.default_rng(7)
    p = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), case.params)
    p |= {name: np.abs(p[name]) for name in ("unit", "first")}  # no zeros, which would tie under the pool
    params, x = floats(p), np.abs(np.asarray(case.x, float))
    z = np.zeros((3, 4, 4, 4))
    for i, r, c in np.ndindex(3, 4, 4):
        z[i, r, c] = np.maximum(np.tensordot(x[i, r : r + 2, c : c + 2], p["unit"], 3) + p["first"], 0)

    def pool(z):
        return np.stack([z[:, r::2, c::2] for r in (0, 1) for c in (0, 1)]).max(0)

    def loss(pooled):
        return ((pooled.reshape(3, -1) @ p["out"] + p["bias"]) ** 2).sum()

    def mean_loss(params, x):
        return (case.fn(params, x) ** 2).sum() / 3

    pooled = pool(z)
    g, g_before = central(loss, pooled), central(lambda z: loss(pool(z)), z, 1e-6)
    before = sj.units.statistics(case.graph, mean_loss, params, [floats(x)], at="activation")
    assert_scores(before, "unit", scores(z.reshape(3, 16, 4), g_before.reshape(3, 16, 4)))
    after = sj.units.statistics(case.graph, mean_loss, params, [floats(x)])
    own = [scores(pooled[:, r, c][:, None], g[:, r, c][:, None]) for r in (0, 1) for c in (0, 1)]
    expected = {name: np.mean([one[name] for one in own], 0) for name in ("mean", "rs", "mrs")}
    abar = pooled.mean(0)
    expected["abs_rs"] = np.abs((-pooled * g).mean((1, 2))).mean(0)
    expected["abs_mrs"] = np.abs(((abar - pooled) * g).mean((1, 2))).mean(0)
    assert_scores(after, "unit", expected)


@pytest.mark.parametrize(("name", "places"), [("read twice", 1), ("flattened", 4), ("heads", 2)])
def test_scores_are_the_change_of_the_loss_to_first_order(name, places):
    """Inputs for which a unit is nearly constant: its mean comes close to it, so that the next order is small."""
    case, rng = law(name), np.random.default_rng(5)
    params = jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), case.params)
    x = jnp.asarray(1 + 0.001 * rng.standard_normal((8, *case.x.shape[1:])), jnp.float32)
    weights = jnp.asarray(rng.standard_normal(8), jnp.float32)  # with equal gradients, the first order is 0 in the mean

    def loss(params, x, weights):
        return (weights * jnp.cos(case.fn(params, x)).sum(-1)).mean()

    stats = sj.units.statistics(case.graph, loss, params, [(x, weights)])
    changes = []
    for unit in range(4):
        new = sj.units.remove(case.graph, params, {"unit": jnp.arange(4) != unit}, "mean", stats)
        changes.append(float(loss(new, x, weights) - loss(params, x, weights)))
    expected = np.asarray(stats.mrs["unit"]) * places  # scores are means over a unit's places
    np.testing.assert_allclose(changes, expected, atol=0.05 * np.abs(expected).max())


def test_zeros_change_a_linear_loss_by_rs():
    case = law("transposed")
    for unit in range(4):
        new = case.removed({"unit": jnp.arange(4) != unit}, "zero")
        change = case.loss_fn(new, case.x) - case.loss_fn(case.params, case.x)
        np.testing.assert_allclose(change, case.stats.rs["unit"][unit], rtol=1e-4, atol=1e-5)


def test_batches_count_by_their_sizes():
    case = law("residual")
    parts = [case.x[:4], case.x[4:5], case.x[5:]]  # a batch of one, twice
    found = sj.units.statistics(case.graph, case.loss_fn, case.params, iter(parts))
    for name in ("mean", "rand", "norm", "rs", "abs_rs", "mrs", "inputs"):
        expected = getattr(case.stats, name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), getattr(found, name), expected
        )
    # the mean in abs_mrs is the batch's, and a batch of one has no other
    alone = sj.units.statistics(case.graph, case.loss_fn, case.params, [case.x[4:5]])
    np.testing.assert_allclose(alone.abs_mrs["unit"], 0, atol=1e-5)
    first = sj.units.statistics(case.graph, case.loss_fn, case.params, [case.x[:4]])
    np.testing.assert_allclose(found.abs_mrs["unit"], first.abs_mrs["unit"] * 4 / 6, rtol=1e-4, atol=1e-5)


def test_it_works_under_jit_and_sharded():
    case = law("flattened")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, *case.x.shape[1:])), jnp.float32)

    @jax.jit
    def pruned(params, x):
        stats = sj.units.statistics(case.graph, case.loss_fn, params, [x])
        kept = sj.units.lowest(stats.abs_mrs, 0.5)
        return stats, sj.units.remove(case.graph, params, kept, "mean", stats)

    stats = sj.units.statistics(case.graph, case.loss_fn, case.params, [x])
    new = sj.units.remove(case.graph, case.params, sj.units.lowest(stats.abs_mrs, 0.5), "mean", stats)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    spread = sj.units.statistics(case.graph, case.loss_fn, case.params, [sharded])
    for found in (pruned(case.params, x), (spread, new)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, (stats, new))


def test_dtypes_stay():
    case = law("batch norm")
    low, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (case.params, case.x))
    graph = sj.units.trace(case.fn, low, x)
    stats = sj.units.statistics(graph, lambda p, x: case.fn(p, x).mean(), low, [x])
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    kept = {"unit": jnp.array([False, True, False, True])}
    new = sj.units.remove(graph, low, kept, "mean", stats)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}
    expected = case.removed(kept)["stats"]["mean"]
    np.testing.assert_allclose(new["stats"]["mean"].astype(jnp.float32), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nothing_is_promoted_implicitly(dtype):
    def fn(p, x):
        h = jax.nn.relu(conv(x, p["unit"]) + p["first"].reshape(1, 1, 1, -1))
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return h.reshape(x.shape[0], -1) @ p["out"] + p["bias"].reshape(1, -1)

    params, x = jax.tree.map(lambda x: x.astype(dtype), (law("flattened").params, law("flattened").x))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        graph = sj.units.trace(fn, params, x)
        for at in ("consumer_input", "activation"):
            stats = sj.units.statistics(graph, lambda p, x: fn(p, x).mean(), params, [x, x[:1]], at=at)
            new = sj.units.remove(graph, params, sj.units.lowest(stats.mrs, 0.5), "mean", stats)
            assert np.abs(np.asarray(new["bias"] - params["bias"], float)).min() > 0.01


@pytest.mark.parametrize("name", ["relu_lenet", "equinox_convolutions", "resnext", "shufflenet_v2"])
def test_means_do_better_than_zeros_in_architectures_and_the_small_network_is_the_removed_one(name):
    fn, params, args = NETWORKS[name]()
    graph = sj.units.trace(fn, params, *args)
    stats = sj.units.statistics(graph, lambda p, *args: (fn(p, *args) ** 2).mean(), params, [args])
    rng = np.random.default_rng(0)
    kept = {key: rng.permutation(group.size) >= max(group.size // 4, 1) for key, group in graph.groups.items()}
    assert not sj.units.unfoldable(graph)
    assert stats.mean.keys() == graph.groups.keys()
    run = jax.jit(fn)
    full, zero = run(params, *args), run(sj.units.remove(graph, params, kept), *args)
    new = sj.units.remove(graph, params, kept, "mean", stats)
    mean = run(new, *args)
    assert np.linalg.norm(mean - full) < 0.7 * np.linalg.norm(zero - full)
    small = jax.jit(graph.small(kept))(sj.shrink(graph, new, kept), *args)
    np.testing.assert_allclose(small, mean, rtol=1e-4, atol=1e-4)


def test_constants_that_have_no_place_are_reported():
    fn, params, args = NETWORKS["gpt_with_tied_embeddings"]()
    graph = sj.units.trace(fn, params, *args)
    reported = sj.units.unfoldable(graph)
    queries = [reasons for reasons in reported.values() if any("dot_general sums over them" in one for one in reasons)]
    assert queries

    def shared(p, x):
        h = jnp.tanh(x @ p["unit"])
        return (h @ p["out"] + p["bias"]) * p["bias"]

    case = Case(shared, {"unit": np.ones((2, 2)), "out": np.ones((2, 3)), "bias": np.ones(3)}, np.ones((2, 2)))
    reason = "its result is returned before a parameter is added"
    assert sj.units.unfoldable(case.graph) == {"unit": (f"out[0]: {reason}",)}
    with pytest.raises(ValueError, match=rf"\['unit'\] have no parameter to go to: .*{reason}.*unfolded='drop'"):
        case.removed(KEEP)
    np.testing.assert_array_equal(case.run(case.removed(KEEP, unfolded="drop")), case.run(case.removed(KEEP, "zero")))


def test_what_does_not_fit_is_an_error():
    case = law("transposed")
    graph, params, x, loss = case.graph, case.params, case.x, case.loss_fn
    kept = {"unit": jnp.array([False, True, True, True])}

    def measure(loss=loss, batches=(x,), params=params, **options):
        return sj.units.statistics(graph, loss, params, batches, **options)

    cases = {
        r"batches has no batch": lambda: measure(batches=[]),
        r"at='output', unseen='raise'; at, the place": lambda: measure(at="output"),
        r"shapes \[\(6, 3\), \(2,\)\]; the first axis": lambda: measure(batches=[(x, jnp.ones(2))]),
        r"loss_fn returns arrays of shapes \[\(6, 2\)\]": lambda: measure(loss=case.fn),
        r"params": lambda: measure(params={"unit": params["unit"]}),
        r"replace='mean' needs stats=": lambda: sj.units.remove(graph, params, kept, "mean"),
        r"replace='median'": lambda: case.removed(kept, "median"),
        r"unfolded='keep'": lambda: case.removed(kept, unfolded="keep"),
        r"stats knows nothing of what \['out\[1\]'\] read": lambda: sj.units.remove(
            graph, params, kept, "mean", case.stats._replace(inputs={})
        ),
        r"kept\['unit'\] is": lambda: case.removed({"unit": jnp.ones(4)}),
        r"'other' that is not a group": lambda: case.removed({"other": jnp.ones(4, bool)}),
        r"amount=1.5": lambda: sj.units.lowest(case.stats.rs, 1.5),
        r"amount=1.0": lambda: sj.units.lowest(case.stats.rs, 1.0),
        r"amount=-1": lambda: sj.units.lowest(case.stats.rs, -1),
        r"amount=2 leaves nothing of the 2 units": lambda: sj.units.lowest({"unit": jnp.ones(2)}, 2),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
