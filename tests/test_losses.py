"""The sparsity losses against the published vectors and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from sparsejax import losses, report

# Vectors AS7-AS9.
B = {"a": jnp.float32(0.5), "b": jnp.float32(1.0), "c": jnp.float32(1.5)}
SIZES = {"a": 1000, "b": 4000, "c": 5000}
FLOPS = {"a": 9e5, "b": 4e5, "c": 5e3}
SPARSITIES = dict(zip("abc", (0.382924922548, 0.682689492137, 0.866385597462), strict=True))


def squared(bounds):
    return 10 * losses.squared_budget(losses.density(bounds, SIZES), 0.15)


def hinge(bounds):
    return 10 * losses.hinge_budget(losses.density(bounds, SIZES), 0.15)


def two_squared_budgets(bounds):
    return squared(bounds) + 5 * losses.squared_budget(losses.density(bounds, FLOPS), 0.30)


def two_hinge_budgets(bounds):
    return hinge(bounds) + 5 * losses.hinge_budget(losses.density(bounds, FLOPS), 0.30)


def per_layer(bounds):
    return 10 * sum(losses.squared_budget(losses.density({k: b}), 0.15) for k, b in bounds.items()) / 3


VECTORS = {
    "avg": (losses.density, 0.355999995951, None),
    "wavg": (lambda b: losses.density(b, SIZES), 0.255438912159, None),
    "flops": (lambda b: losses.density(b, FLOPS), 0.523340877291, None),
    "squared": (squared, 0.111173641973, [-0.148485540252, -0.408210079483, -0.27312388785]),
    "hinge": (hinge, 1.054389121592, [-0.704130653529, -1.935765796153, -1.295175956659]),
    "two squared": (two_squared_budgets, 0.360579379319, None),
    "two hinges": (two_hinge_budgets, 1.054389121592 + 5 * (0.523340877291 - 0.30), None),
    "fixed": (per_layer, 0.821401406074, [-2.192545863555, -0.539789930763, 0.028296309158]),
}


@pytest.mark.parametrize("name", VECTORS)
def test_losses_are_the_published_vectors(name):
    function, value, slopes = VECTORS[name]
    got, gradient = jax.jit(jax.value_and_grad(function))(B)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    if slopes is not None:
        np.testing.assert_allclose([gradient[k] for k in "abc"], slopes, rtol=1e-4)


@pytest.mark.parametrize("bound", [0.0, 0.5, 1.0, 1.439531470938, 3.0, 5.0])
def test_density_and_its_gradient_are_the_closed_form(bound):
    """Vectors AS2 and AS6, in float64 by the oracle; the tail keeps its digits."""
    value, slope = jax.value_and_grad(lambda b: losses.density({"k": b}))(jnp.float32(bound))
    np.testing.assert_allclose(value, oracles.densities([bound])[0], rtol=2e-5)
    np.testing.assert_allclose(slope, -np.sqrt(2 / np.pi) * np.exp(-(bound**2) / 2), rtol=2e-5)


def test_only_the_ratios_of_weights_matter_and_other_leaves_are_ignored():
    scaled = {**{k: 7.5 * n for k, n in SIZES.items()}, "bias": 10**9}
    np.testing.assert_allclose(losses.density(B, scaled), losses.density(B, SIZES), rtol=1e-6)
    traced = jax.jit(lambda weights: losses.density(B, weights))({k: jnp.float32(n) for k, n in SIZES.items()})
    np.testing.assert_allclose(traced, losses.density(B, SIZES), rtol=1e-6)


def test_kept_shares_give_the_value_and_the_model_gives_the_gradient():
    kept = {"a": jnp.float32(0.1), "b": jnp.float32(0.2), "c": jnp.float32(0.4)}
    value, slopes = jax.value_and_grad(lambda b: losses.density(b, SIZES, kept))(B)
    np.testing.assert_allclose(value, 0.1 * 0.1 + 0.4 * 0.2 + 0.5 * 0.4, rtol=1e-6)
    model = jax.grad(lambda b: losses.density(b, SIZES))(B)
    np.testing.assert_allclose([slopes[k] for k in "abc"], [model[k] for k in "abc"], rtol=1e-6)


def test_multiply_adds_of_a_traced_network_are_weights_as_they_are():
    """A convolution of few weights and many output positions outweighs a dense layer in operations, not in size."""
    params = {"conv": jnp.zeros((3, 3, 1, 2)), "dense": jnp.zeros((128, 10))}

    def network(params, images):
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(images, params["conv"], (1, 1), "SAME", dimension_numbers=dimensions)
        return x.reshape(1, 128) @ params["dense"]

    products = report.multiply_adds(network, params, jnp.zeros((1, 8, 8, 1))).by_leaf
    assert products == {"conv": 8 * 8 * 18, "dense": 1280}
    bounds = {"conv": jnp.float32(0.0), "dense": jnp.float32(5.0)}
    np.testing.assert_allclose(losses.density(bounds, products), 1152 / (1152 + 1280), rtol=1e-5)


def test_counts_beyond_float32_are_exact():
    weights = {"a": 2**53 - 1, "b": 1, "c": 0}
    np.testing.assert_allclose(losses.density(B, weights), oracles.densities([0.5])[0], rtol=1e-6)


def test_hinge_is_flat_within_the_budget():
    assert float(jax.grad(losses.hinge_budget)(0.1, 0.15)) == 0.0
    assert float(jax.grad(losses.hinge_budget)(0.15, 0.15)) == 0.0
    assert float(jax.grad(losses.hinge_budget)(0.2, 0.15)) == 1.0


def test_budgets_may_be_traced_and_batched():
    budgets = jnp.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(jax.vmap(losses.squared_budget, (None, 0))(0.2, budgets), [0.01, 0, 0.01], atol=1e-6)
    np.testing.assert_allclose(jax.vmap(losses.hinge_budget, (None, 0))(0.2, budgets), [0.1, 0, 0], atol=1e-6)


def test_layer_gap_is_the_published_vector():
    """Vector AS9, with the budget that accompanies it."""
    gap = losses.layer_gap({k: jnp.float32(s) for k, s in SPARSITIES.items()}, 0.3, 0.9)
    overall = sum(SIZES[k] * s for k, s in SPARSITIES.items()) / 10000
    np.testing.assert_allclose(float(gap) + (overall - 0.6) ** 2, 0.132181185767, rtol=1e-5)


def test_layer_gap_pulls_to_the_nearer_edge_and_rests_outside():
    slopes = jax.grad(lambda s: losses.layer_gap(dict(enumerate(s)), 0.3, 0.9))(jnp.array([0.1, 0.4, 0.8, 0.95]))
    np.testing.assert_allclose(slopes, [0, 0.25, -0.25, 0])


WRONG = {
    "no bounds": (lambda: losses.density({}), "bounds is empty"),
    "a bound without a weight": (lambda: losses.density(B, {"a": 1}), r"no entry for the bounds of \['b', 'c'\]"),
    "a bound without a kept share": (lambda: losses.density(B, None, {"a": 0.5}), r"kept has no entry.*\['b', 'c'\]"),
    "a negative weight": (lambda: losses.density(B, {"a": 1, "b": -1, "c": 1}), "must be >= 0"),
    "no weight at all": (lambda: losses.density(B, dict.fromkeys("abc", 0)), "not all 0"),
    "a budget in percent": (lambda: losses.squared_budget(0.5, 15), r"budget=15 is outside \[0, 1\]"),
    "a negative budget": (lambda: losses.hinge_budget(0.5, -0.1), "budget=-0.1 is outside"),
    "an upside-down gap": (lambda: losses.layer_gap(SPARSITIES, 0.9, 0.3), "low=0.9 is above high=0.3"),
    "no layers": (lambda: losses.layer_gap({}, 0.3, 0.9), "sparsities is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
