"""Gates of single weights: the published vectors, and every surrogate, power, tree and dtype against loops."""

import math
import operator

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import gates, surrogates, tree
from sparsejax.gates import Gated

SURROGATES = {
    "linear": (surrogates.linear, lambda m: 1.0),
    "leaky_relu": (surrogates.leaky_relu, lambda m: 1.0 if m > 0 else 0.1),
    "relu": (surrogates.relu, lambda m: 1.0 if m > 0 else 0.0),
    "softplus": (surrogates.softplus, lambda m: 1 / (1 + math.exp(-m))),
    "softplus 4": (lambda m: surrogates.softplus(m, beta=4.0), lambda m: 1 / (1 + math.exp(-4 * m))),
}
POWERS = [-1.0, 0.0, 0.5, 1.0]


def direction(g, w, m, surrogate, power):
    """The update direction of one auxiliary parameter, from the formula."""
    size = max(abs(w), 1e-3) if power < 0 else abs(w)
    return g * ((w > 0) - (w < 0)) * size**power * surrogate(m)


def auxiliaries(shape, seed):
    """Auxiliary parameters of both signs."""
    return laws.weights(shape, seed, scale=0.1)


# Vectors A1, A3 and A5.
W, M, G = [0.5, -0.2, 0.01, -1.0], [0.1, -0.05, 0.02, 0.3], [0.4, -0.3, 2.0, 0.1]
A1_WEIGHTS = [0.4, 0.0, 2.0, 0.1]
A3 = {
    0.0: [0.209991674992, 0.146250781055, 1.00999966668, -0.057444251681],
    1.0: [0.104995837496, 0.029250156211, 0.010099996667, -0.057444251681],
    -1.0: [4.199833499832e-01, 7.312539052737e-01, 1.009999666680e02, -5.744425168117e-02],
}


def gradient(gated, g, **options):
    return jax.grad(lambda gated: jnp.vdot(gates.apply(gated, **options)["k"], g))(gated)


@pytest.mark.parametrize("power", A3)
def test_forward_and_gradients_are_the_published_vectors(power):
    gated = Gated({"k": jnp.array(W)}, {"k": jnp.array(M)})
    assert gates.apply(gated)["k"].tolist() == pytest.approx([0.5, 0.0, 0.01, -1.0])
    grads = gradient(gated, jnp.array(G), power=power)
    np.testing.assert_allclose(grads.weights["k"], A1_WEIGHTS, rtol=1e-6)
    np.testing.assert_allclose(grads.aux["k"], A3[power], rtol=1e-5)


def test_the_direction_of_an_auxiliary_parameter_is_that_of_the_magnitude():
    """Vector A5, Eq. 11."""
    grads = gradient(Gated({"k": jnp.array(W)}, {"k": jnp.array(M)}), jnp.array(G))
    np.testing.assert_array_equal(jnp.sign(grads.aux["k"]), np.sign(G) * np.sign(W))


def test_the_share_that_starts_pruned_is_that_of_a_standard_deviation():
    """Vector A6: 0.0228 if 0.05 is the standard deviation, 0.327 if it is the variance."""
    size = 200_000
    gated = gates.init(jax.random.key(0), {"k": jnp.ones((size // 100, 100))})
    share = float(1 - sj.sparsity(gates.masks(gated), gated.weights))
    expected = 0.02275013194817921
    np.testing.assert_allclose(1 - share, expected, atol=5 * math.sqrt(expected / size))
    np.testing.assert_allclose(jnp.std(gated.aux["k"]), 0.05, rtol=0.01)


@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_every_tree_and_dtype(view, dtype):
    make, names = laws.TREES[view]
    params = make(dtype)
    gated = jax.jit(gates.init)(jax.random.key(1), params)
    assert sorted(gated.aux) == sorted(names)
    assert {m.dtype for m in gated.aux.values()} == {jnp.dtype("float32")}
    applied, mask, final = (tree.named(f(gated)) for f in (gates.apply, gates.masks, gates.finalize))
    for name, w in tree.named(params).items():
        if name in names:
            keep = np.asarray(gated.aux[name]) > 0
            assert 0.9 < keep.mean() < 1
            np.testing.assert_array_equal(mask[name], keep)
            np.testing.assert_array_equal(applied[name], np.where(keep, w, 0))
        else:
            assert mask[name].shape == ()
            assert bool(mask[name])
            np.testing.assert_array_equal(applied[name], w)
        np.testing.assert_array_equal(final[name], applied[name])
        assert applied[name].dtype == final[name].dtype == dtype
    sj.masks.check(gates.masks(gated), params)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("power", POWERS)
def test_every_surrogate_and_power_is_the_formula(surrogate, power):
    w, m, g = laws.weights((4, 5), 1).at[0, 0].set(0.0), auxiliaries((4, 5), 2), laws.weights((4, 5), 3)
    function, scalar = SURROGATES[surrogate]
    grads = gradient(Gated({"k": w}, {"k": m}), g, surrogate=function, power=power)
    for i in np.ndindex(4, 5):
        expected = direction(float(g[i]), float(w[i]), float(m[i]), scalar, power)
        np.testing.assert_allclose(grads.aux["k"][i], expected, rtol=1e-5, atol=1e-7)
        assert float(grads.weights["k"][i]) == (float(g[i]) if m[i] > 0 else 0.0)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_power_one_is_the_chain_rule_of_float64_autodiff(surrogate):
    """Through a network: the derivative by a weight's gate, times the surrogate."""
    with jax.enable_x64(True):
        x, w, v = (
            laws.weights(shape, seed, jnp.float64, 1.0) for shape, seed in (((7, 4), 4), ((4, 5), 5), ((5, 2), 6))
        )
        m = auxiliaries((4, 5), 7).astype(jnp.float64)
        function, scalar = SURROGATES[surrogate]

        def loss(k):
            return jnp.sum(jnp.tanh(jnp.tanh(x @ k) @ v) ** 2)

        slopes = jax.grad(lambda h: loss(w * h))((m > 0).astype(jnp.float64))
        expected = [[float(slopes[i, j]) * scalar(float(m[i, j])) for j in range(5)] for i in range(4)]
        gated = gates.init(jax.random.key(0), {"k": w})
        assert gated.aux["k"].dtype == jnp.float64
        grads = jax.grad(lambda aux: loss(gates.apply(Gated({"k": w}, aux), function, power=1.0)["k"]))({"k": m})
        np.testing.assert_allclose(grads["k"], expected, rtol=1e-10, atol=1e-14)


def test_one_auxiliary_parameter_can_gate_a_column():
    """Vector A9, signs of single weights."""
    w, g = jnp.array([[0.3, -0.1], [-0.2, 0.4], [0.1, 0.2]]), jnp.array([[1.0, -1.0], [0.5, 0.2], [-2.0, 0.3]])
    grads = gradient(Gated({"k": w}, {"k": jnp.ones(2)}), g, surrogate=surrogates.linear)
    np.testing.assert_allclose(grads.aux["k"], [-1.5, 1.5], rtol=1e-6)


def test_a_pruned_nan_does_not_leak_and_zeros_are_positive():
    w = jnp.array([jnp.nan, -1.0, jnp.inf, 2.0])
    gated = Gated({"k": w}, {"k": jnp.array([-0.1, -0.1, 0.0, jnp.nan])})
    for out in (gates.apply(gated), jax.jit(gates.finalize)(gated)):
        assert out["k"].tolist() == [0.0] * 4
        assert not np.signbit(out["k"]).any()
    assert gradient(gated, jnp.ones(4)).weights["k"].tolist() == [0.0] * 4


def test_one_draw_for_the_whole_tree_whatever_it_is_made_of():
    params = laws.TREES["two layers"][0](jnp.bfloat16)
    text = str(jax.make_jaxpr(gates.init)(jax.random.key(0), params))
    assert text.count("random_bits") == 1
    gated, again, other = (gates.init(jax.random.key(seed), params) for seed in (0, 0, 1))
    assert all(bool((gated.aux[name] == again.aux[name]).all()) for name in gated.aux)
    assert not any(bool((gated.aux[name] == other.aux[name]).any()) for name in gated.aux)
    drawn = np.concatenate([np.ravel(m) for m in gated.aux.values()])
    assert len(np.unique(drawn)) > 0.99 * len(drawn)


def test_seeds_in_a_batch_are_the_seeds_one_by_one():
    params = {"k": laws.weights((3, 6, 4), 8)}
    keys = jax.random.split(jax.random.key(2), 3)
    together = jax.jit(jax.vmap(gates.init))(keys, params)
    applied, grads = (
        jax.vmap(gates.apply)(together),
        jax.vmap(lambda gated: gradient(gated, gated.weights["k"]))(together),
    )
    for seed in range(3):
        fresh = gates.init(keys[seed], {"k": params["k"][seed]})
        np.testing.assert_allclose(together.aux["k"][seed], fresh.aux["k"], rtol=1e-5, atol=1e-7)
        alone = jax.tree.map(operator.itemgetter(seed), together)
        np.testing.assert_array_equal(applied["k"][seed], gates.apply(alone)["k"])
        expected = gradient(alone, alone.weights["k"])
        np.testing.assert_allclose(grads.aux["k"][seed], expected.aux["k"], rtol=1e-6)


def test_gates_from_magnitudes_close_in_the_order_of_global_magnitude_pruning():
    params = laws.TREES["dict"][0](jnp.float32)
    gated = jax.jit(gates.from_magnitudes)(params)
    kernels = {name: np.asarray(leaf) for name, leaf in sj.tree.named(params).items() if name in gated.aux}
    assert set(gated.aux) == set(sj.tree.select(params))
    flat = np.concatenate([np.ravel(m) for m in gated.aux.values()])
    np.testing.assert_allclose(flat.mean(), 0.1, rtol=1e-5)
    weights = np.concatenate([np.abs(np.ravel(kernels[name])) for name in gated.aux])
    np.testing.assert_array_equal(np.argsort(flat, kind="stable"), np.argsort(weights, kind="stable"))
    np.testing.assert_allclose(flat / weights, flat[0] / weights[0], rtol=1e-5)  # one scale for all leaves
    half = gates.from_magnitudes({"k": jnp.array([[1.0, -3.0]], jnp.bfloat16)}, mean=0.5)
    assert half.aux["k"].dtype == jnp.float32
    np.testing.assert_allclose(half.aux["k"], [[0.25, 0.75]])


def test_the_mask_counts_what_finalize_leaves():
    gated = gates.init(jax.random.key(3), laws.TREES["dict"][0](jnp.float32), mean=0.05)
    share = sj.masks.sparsity(gates.masks(gated), gated.weights)
    report = sj.report.count(gates.finalize(gated))
    np.testing.assert_allclose(report.sparsity, float(share), rtol=1e-6)
    assert 0.1 < report.prunable_sparsity < 0.2


PARAMS = {"kernel": laws.weights((3, 4), 9), "bias": jnp.ones(4), "steps": jnp.arange(3)}
KEY = jax.random.key(0)


def gated_by(aux):
    return Gated(PARAMS, aux)


WRONG = {
    "selects nothing": (lambda: gates.init(KEY, PARAMS, where="conv"), "where='conv' matches no leaf"),
    "integer leaf": (lambda: gates.init(KEY, PARAMS, where="steps"), "leaf 'steps' has dtype int32"),
    "nan weights": (lambda: gates.init(KEY, {"k": jnp.full((2, 2), jnp.nan)}), "leaf 'k' holds 4 NaN"),
    "magnitudes of zeros": (lambda: gates.from_magnitudes({"k": jnp.zeros((2, 2))}), r"only zeros in \['k'\]"),
    "magnitudes of nan": (lambda: gates.from_magnitudes({"k": jnp.full((2, 2), jnp.nan)}), "leaf 'k' holds 4 NaN"),
    "mean magnitude is 0": (lambda: gates.from_magnitudes(PARAMS, mean=0.0), "mean=0.0 must be > 0"),
    "mean is 0": (lambda: gates.init(KEY, PARAMS, mean=0.0), "mean=0.0 must be > 0"),
    "mean is nan": (lambda: gates.init(KEY, PARAMS, mean=math.nan), "mean=nan must be > 0"),
    "std is negative": (lambda: gates.init(KEY, PARAMS, std=-1.0), "std=-1.0 must be >= 0"),
    "unknown name": (
        lambda: gates.apply(gated_by({"conv": jnp.ones(3)})),
        "aux has an entry 'conv' that is not a leaf",
    ),
    "unknown name, mask": (lambda: gates.masks(gated_by({"conv": jnp.ones(3)})), "aux has an entry 'conv'"),
    "another shape": (lambda: gates.apply(gated_by({"kernel": jnp.ones(3)})), r"m has shape \(3,\).*\(3, 4\)"),
    "another shape, mask": (lambda: gates.masks(gated_by({"kernel": jnp.ones(3)})), r"'kernel' has shape \(3,\)"),
    "integer aux": (lambda: gates.apply(gated_by({"bias": jnp.ones(4, jnp.int32)})), "m has dtype int32"),
    "nan aux": (lambda: gates.finalize(gated_by({"bias": jnp.full(4, jnp.nan)})), r"aux\['bias'\].* holds 4 NaN"),
    "nan weight": (
        lambda: gates.finalize(Gated({"k": jnp.array([jnp.nan])}, {"k": jnp.ones(1)})),
        "leaf 'k' holds 1 NaN",
    ),
    "nothing to draw": (lambda: tree.draw(KEY, {}), "nothing to draw"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
