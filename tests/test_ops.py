"""Every operator of `sparsejax.ops` against loops, and every law of the table."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsejax import ops, surrogates

W = laws.weights((6, 5), seed=3)
G = laws.weights((6, 5), seed=4, scale=1.0)


@pytest.mark.parametrize("name", laws.OPERATORS)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_forward_is_the_loop_and_keeps_the_dtype(name, dtype):
    operator, w = laws.OPERATORS[name], W.astype(dtype)
    threshold = np.float32(0.0625)
    out = jax.jit(operator.function)(w, threshold)
    assert out.dtype == dtype
    expected = operator.forward(np.asarray(w, np.float64), float(threshold))
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=float(jnp.finfo(dtype).eps))
    assert (np.asarray(out) == 0).tolist() == (expected == 0).tolist()


@pytest.mark.parametrize("name", laws.OPERATORS)
def test_gradient_reaches_the_weights_it_should(name):
    operator = laws.OPERATORS[name]
    out, pullback = jax.vjp(lambda w: operator.function(w, 0.06), W)
    reached = operator.reaches(np.asarray(out) != 0).astype(bool)
    np.testing.assert_array_equal(pullback(G)[0], np.where(reached, G, 0))


@pytest.mark.parametrize("name", laws.OPERATORS)
def test_nan_never_survives_and_zeros_are_positive(name):
    out = laws.OPERATORS[name].function(jnp.array([jnp.nan, -0.01, 0.01, 1.0]), 0.5)
    assert out[:3].tolist() == [0.0, 0.0, 0.0]
    assert not np.signbit(np.asarray(out)).any()


@pytest.mark.parametrize("name", ["hard_shrink", "hard_threshold"])
def test_hard_operators_are_idempotent_and_keep_bits(name):
    f = laws.OPERATORS[name].function
    out = f(W, 0.06)
    np.testing.assert_array_equal(f(out, 0.06), out)
    np.testing.assert_array_equal(out[out != 0], W[out != 0])


@pytest.mark.parametrize("name", laws.OPERATORS)
def test_a_higher_threshold_prunes_a_superset(name):
    f = laws.OPERATORS[name].function
    previous = jnp.zeros(W.shape, bool)
    for threshold in (0.0, 0.03, 0.06, 0.12, 1.0):
        pruned = f(W, threshold) == 0
        assert bool((pruned | ~previous).all())
        previous = pruned
    assert bool(previous.all())


@pytest.mark.parametrize("name", laws.OPERATORS)
def test_threshold_per_leading_axis_equals_a_loop_over_it(name):
    f, thresholds = laws.OPERATORS[name].function, jnp.array([0.0, 0.02, 0.05, 0.1, 0.2, 1.0])
    stacked = f(W, thresholds[:, None])
    np.testing.assert_array_equal(stacked, jnp.stack([f(w, t) for w, t in zip(W, thresholds, strict=True)]))
    np.testing.assert_array_equal(stacked, jax.vmap(f)(W, thresholds))


@pytest.mark.parametrize("bound", [1.0, 0.25])
def test_hard_shrink_bound_gradient_is_equation_18(bound):
    """Vector AS3: the absolute form, on weights that are already centred."""
    w, g = jnp.array([0.3875, -0.0125, 0.1375, -0.5125]), jnp.array([1.0, 2.0, 3.0, 4.0])
    sigma = 0.379418414594
    slope = jax.grad(lambda b: jnp.vdot(ops.hard_shrink(w, b * sigma), g))(bound)
    np.testing.assert_allclose(slope, {1.0: -0.3875, 0.25: 0.1}[bound], rtol=1e-5)


def test_hard_shrink_bound_gradient_is_zero_at_zero():
    slope = jax.grad(lambda b: jnp.vdot(ops.hard_shrink(W, b), G))(0.0)
    assert float(slope) == 0.0


def test_hard_shrink_bound_gradient_of_broadcast_bounds_and_bfloat16():
    bounds = jnp.array([0.02, 0.05, 0.1, 0.2, 0.3])
    w, g = W.astype(jnp.bfloat16), G.astype(jnp.bfloat16)
    dw, db = jax.vjp(ops.hard_shrink, w, bounds)[1](g)
    assert (dw.dtype, db.dtype, db.shape) == (jnp.bfloat16, jnp.float32, (5,))
    wide, cotangent = np.asarray(w, np.float64), np.asarray(g, np.float64)
    for j, b in enumerate(np.asarray(bounds, np.float64)):
        expected = sum(-wide[i, j] / b * cotangent[i, j] for i in range(6) if abs(wide[i, j]) <= b)
        np.testing.assert_allclose(db[j], expected, rtol=1e-5, atol=1e-6)


def test_soft_threshold_gradient_is_autodiff_of_the_formula():
    slope = jax.grad(lambda t: jnp.vdot(ops.soft_threshold(W, t), G))(0.06)
    kept = np.abs(np.asarray(W)) > 0.06
    np.testing.assert_allclose(slope, -np.sum(np.sign(W) * kept * np.asarray(G)), rtol=1e-5)


def test_soft_threshold_takes_every_sign_of_the_threshold():
    """Vector G5: a negative threshold pushes a weight away from zero."""
    x, t = jnp.array([1.0, -0.5, 0.2, -0.1, 0.05]), jnp.array([0.2, 0.32, -0.12, 0.0, 0.2])
    np.testing.assert_allclose(ops.soft_threshold(x, t), [0.8, -0.18, 0.32, -0.1, 0.0], atol=1e-7)


def test_straight_through_masks_forward_and_passes_gradients():
    mask = jnp.arange(5) % 2 == 0
    out, pullback = jax.vjp(lambda w: ops.straight_through(w, mask), W)
    np.testing.assert_array_equal(out, np.where(mask[None], W, 0))
    np.testing.assert_array_equal(pullback(G)[0], G)


# Vectors A1 and A3: four weights, their auxiliary parameters and the gradient at the gated weights.
GATE_W, GATE_M = jnp.array([0.5, -0.2, 0.01, -1.0]), jnp.array([0.1, -0.05, 0.02, 0.3])
GATE_G = jnp.array([0.4, -0.3, 2.0, 0.1])
GATE_GRADIENTS = {
    0.0: [0.209991674992, 0.146250781055, 1.00999966668, -0.057444251681],
    1.0: [0.104995837496, 0.029250156211, 0.010099996667, -0.057444251681],
    # The floor of 1e-3 does not act on these weights: sign rule / |w|.
    -1.0: [0.419983349984, 0.731253905274, 100.999966668, -0.057444251681],
}


@pytest.mark.parametrize("power", GATE_GRADIENTS)
def test_gate_gradients_are_the_published_vectors(power):
    out, pullback = jax.vjp(lambda w, m: ops.gate(w, m, power=power), GATE_W, GATE_M)
    np.testing.assert_array_equal(out, np.where(GATE_M > 0, GATE_W, 0))
    dw, dm = pullback(GATE_G)
    np.testing.assert_allclose(dw, [0.4, 0.0, 2.0, 0.1])
    np.testing.assert_allclose(dm, GATE_GRADIENTS[power], rtol=1e-5)


def test_gate_floors_small_weights_at_power_minus_one():
    slope = jax.grad(lambda m: ops.gate(jnp.array([1e-6]), m, surrogates.linear, -1.0).sum())(jnp.array([1.0]))
    np.testing.assert_allclose(slope, [1e3], rtol=1e-6)


def test_gate_of_units_sums_over_the_axes_it_broadcasts():
    units = jnp.array([0.1, -0.1, 0.2, -0.3, 0.4])
    dm = jax.grad(lambda m: jnp.vdot(ops.gate(W, m, surrogates.leaky_relu), G))(units)
    expected = [
        sum(float(G[i, j]) * np.sign(float(W[i, j])) for i in range(6)) * (1 if units[j] > 0 else 0.1) for j in range(5)
    ]
    np.testing.assert_allclose(dm, expected, rtol=1e-5)


SURROGATES = {
    "linear": (surrogates.linear, [1, 1, 1, 1, 1]),
    "leaky_relu": (surrogates.leaky_relu, [0.1, 0.1, 0.1, 1, 1]),
    "relu": (surrogates.relu, [0, 0, 0, 1, 1]),
    "softplus": (surrogates.softplus, [0.119202922022, 0.377540668798, 0.5, 0.622459331202, 0.880797077978]),
    "softplus 4": (
        lambda m: surrogates.softplus(m, beta=4.0),
        [3.353501304665e-04, 1.192029220221e-01, 0.5, 8.807970779779e-01, 9.996646498695e-01],
    ),
}


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_surrogates_are_the_published_vectors(name, dtype):
    """Vector A2."""
    function, expected = SURROGATES[name]
    out = jax.jit(function)(jnp.array([-2.0, -0.5, 0.0, 0.5, 2.0], dtype))
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2 * float(jnp.finfo(dtype).eps), atol=1e-5)


@given(
    w=hnp.arrays(np.float32, (4, 6), elements=st.floats(-4, 4, width=32, allow_subnormal=False)),
    threshold=st.floats(0, 4, width=32, allow_subnormal=False),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_hard_shrink_on_any_weights(w, threshold):
    """Any but subnormal ones, which XLA takes for zero on a CPU."""
    np.testing.assert_array_equal(ops.hard_shrink(w, np.float32(threshold)), oracles.hard(w, np.float32(threshold)))


WRONG = {
    "integer weights": (lambda: ops.hard_shrink(jnp.arange(3), 1), "w has dtype int32"),
    "bound of another shape": (lambda: ops.hard_shrink(W, jnp.ones(4)), r"bound has shape \(4,\).*\(6, 5\)"),
    "bound of a higher rank": (lambda: ops.soft_threshold(W, jnp.ones((1, 1, 1))), r"threshold has shape \(1, 1, 1\)"),
    "mask that is not bool": (lambda: ops.straight_through(W, jnp.ones_like(W)), "mask has dtype float32"),
    "integer auxiliaries": (lambda: ops.gate(W, jnp.ones((6, 5), jnp.int32)), "m has dtype int32"),
    "negative slope": (lambda: surrogates.leaky_relu(W, slope=-1.0), "slope=-1.0"),
    "no sharpness": (lambda: surrogates.softplus(W, beta=0.0), "beta=0.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
