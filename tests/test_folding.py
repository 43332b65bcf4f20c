"""Where the constants of units go: small programs, and what NumPy says that their parameters become."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

KEEP = {"unit": jnp.array([False, True, False, True])}
FACTORS = np.array([2.0, -1.0, 0.5], np.float32)


@pytest.fixture(autouse=True)
def strict():
    """Leaves promotion as it is outside: programs are written as users write them."""


def hidden(p, x):
    """Units of which the first and the third are what their biases make of them."""
    return jax.nn.relu(x @ p["unit"] + p["first"])


def product(p, x):
    return hidden(p, x) @ p["out"]


def normalised(p, x):
    scale = p["gamma"] * jax.lax.rsqrt(jnp.square(p["other"]).sum(0) + 1e-3)
    return product(p, x) * scale + p["bias"]


@jax.checkpoint
def rematerialised(p, x):
    return jax.checkpoint(lambda y: y * jax.nn.softplus(p["gamma"]))(product(p, x)) + p["bias"]


def looped(p, x):
    """The factor is the norm of a matrix, by powers of it."""
    a = p["square"]
    v = jax.lax.scan(lambda v, _: (a @ v / jnp.linalg.norm(a @ v), None), jnp.ones(3), None, length=50)[0]
    return product(p, x) / (v @ a @ v) + p["bias"]


def power(a):
    v = np.ones(3)
    for _ in range(50):
        v = a @ v / np.linalg.norm(a @ v)
    return v @ a @ v


def chained(p, x):
    return (3 - product(p, x) * p["gamma"]) / p["scalar"] - p["bias"][None]


def of_a_map(p, x):
    """A layer scale between moves: positions and outputs change places."""
    y = product(p, x).reshape(2, 3, 3).transpose(2, 0, 1)
    return (y * p["gamma"].reshape(3, 1, 1)).reshape(3, 6).T + p["bias"]


def softplus(x):
    return np.log1p(np.exp(x))


FOLDS = {
    # name: (function, what is added to the bias if the product loses delta)
    "a layer scale": (lambda p, x: product(p, x) * p["gamma"] + p["bias"], lambda p, d: d * p["gamma"]),
    "its negative": (lambda p, x: p["bias"] + -product(p, x), lambda p, d: -d),
    "divided by a parameter": (lambda p, x: product(p, x) / p["gamma"] + p["bias"], lambda p, d: d / p["gamma"]),
    "times a scalar": (lambda p, x: p["scalar"] * product(p, x) + p["bias"], lambda p, d: d * p["scalar"]),
    "times a constant": (lambda p, x: product(p, x) * FACTORS - p["bias"], lambda p, d: -d * FACTORS),
    "times what parameters make": (
        normalised, lambda p, d: d * p["gamma"] / np.sqrt((p["other"] ** 2).sum(0) + 1e-3)
    ),
    "in calls": (rematerialised, lambda p, d: d * softplus(p["gamma"])),
    "divided by what a loop makes": (looped, lambda p, d: d / power(p["square"])),
    "signs in a row": (chained, lambda p, d: d * p["gamma"] / p["scalar"]),
    "between moves": (of_a_map, lambda p, d: d * p["gamma"]),
    "a bias in the other summand": (lambda p, x: product(p, x) + (x @ p["other"] + p["bias"]), lambda p, d: d),
    "subtracted within what is subtracted": (
        lambda p, x: product(p, x) - (x @ p["other"] - p["bias"]), lambda p, d: d
    ),
    "subtracted from the bias's sum": (lambda p, x: (p["bias"] - x @ p["other"]) - product(p, x), lambda p, d: -d),
    "the bias before the scale": (lambda p, x: (product(p, x) + p["bias"]) * p["gamma"], lambda p, d: d),
}  # fmt: skip
SHAPES = {"unit": (5, 4), "first": 4, "out": (4, 3), "gamma": 3, "bias": 3, "scalar": (), "other": (5, 3)}


def drawn():
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape) + 0.5 for name, shape in SHAPES.items()}
    params["first"] = 1 + np.abs(params["first"])
    params["unit"][:, [0, 2]] = 0
    params["square"] = params["other"].T @ params["other"]
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def traced(fn):
    params, x = drawn(), jnp.asarray(np.random.default_rng(1).standard_normal((6, 5)), jnp.float32)
    graph = sj.units.trace(fn, params, x)
    return graph, params, x


@pytest.mark.parametrize("name", FOLDS)
def test_a_bias_takes_what_is_left_of_the_constant(name):
    fn, expected = FOLDS[name]
    graph, params, x = traced(fn)
    stats = sj.units.statistics(graph, lambda p, x: fn(p, x).mean(), params, [x])
    new = sj.units.remove(graph, params, KEEP, "mean", stats)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
    delta = sum(p["first"][u] * p["out"][u] for u in (0, 2))
    np.testing.assert_allclose(new["bias"], p["bias"] + expected(p, delta), rtol=1e-5, atol=1e-5)
    for other in params.keys() - {"bias", "unit", "first", "out"}:
        np.testing.assert_array_equal(new[other], params[other])
    for inputs in (x, -x):
        np.testing.assert_allclose(fn(new, inputs), fn(params, inputs), rtol=1e-5, atol=1e-5)
    assert np.abs(fn(sj.units.remove(graph, params, KEEP), x) - fn(params, x)).max() > 0.03
    small = graph.small(KEEP)(sj.shrink(graph, new, KEEP), x)
    np.testing.assert_allclose(small, fn(params, x), rtol=1e-5, atol=1e-5)


REFUSED = {
    "times data": (lambda p, x: product(p, x) * x[:, :3] + p["bias"], "mul with data comes before a parameter"),
    "divided by data": (lambda p, x: product(p, x) / x[:, :3] + p["bias"], "div with data comes before a parameter"),
    "a divisor": (lambda p, x: p["gamma"] / product(p, x) + p["bias"], "div with data comes before a parameter"),
    "squared": (lambda p, x: product(p, x) ** 2 + p["bias"], "comes before a parameter|used in 2 places"),
    "an activation": (lambda p, x: jnp.tanh(product(p, x)) + p["bias"], "tanh comes before a parameter"),
    "a bias used twice": (
        lambda p, x: (product(p, x) + p["bias"]) * p["bias"], "its result is returned before a parameter is added"
    ),
    "a sum used twice": (
        lambda p, x: jnp.sin(s := x @ p["other"] + p["bias"]) + (product(p, x) + s), "its result is returned before"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_linear_is_refused(name):
    fn, reason = REFUSED[name]
    graph, params, x = traced(fn)
    (found,) = sj.units.unfoldable(graph)["unit"]
    assert found.startswith("out[0]: ")
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found)
    stats = sj.units.statistics(graph, lambda p, x: fn(p, x).mean(), params, [x])
    with pytest.raises(ValueError, match=rf"\['unit'\] have no parameter to go to: .*({reason})"):
        sj.units.remove(graph, params, KEEP, "mean", stats)


def test_products_keep_low_precision():
    fn, _ = FOLDS["a layer scale"]
    graph, params, x = traced(fn)
    low, half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
    graph = sj.units.trace(fn, low, half)
    stats = sj.units.statistics(graph, lambda p, x: fn(p, x).mean(), low, [half])
    new = sj.units.remove(graph, low, KEEP, "mean", stats)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(*(np.asarray(y, np.float32) for y in (fn(new, half), fn(low, half))), atol=0.3)
