"""Scores against loops, and what they do to competitions."""

import chex
import jax
import jax.numpy as jnp
import laws
import numpy as np
import oracles
import pytest

from sparsejax import scores, select


def signals(params):
    """Every signal that a score may look at, and ones that none of them knows."""
    grads = jax.tree.map(lambda p: laws.weights(p.shape, 41, p.dtype), params)
    return {"grads": grads, "key": jax.random.key(3), "input_norms": {}, "step": 7, "value": 0.5}


SCORES = {
    "magnitude": (scores.magnitude, lambda w, g: abs(w)),
    "gradient": (scores.gradient, lambda w, g: abs(g)),
    "saliency": (scores.saliency, lambda w, g: abs(w * g)),
    "lamp": (scores.lamp, lambda w, g: oracles.lamp(w)),
    "random": (scores.random, None),
    "wanda": (scores.wanda, lambda w, g: abs(w)),
}


@pytest.mark.parametrize("dtype", laws.DTYPES)
@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("name", SCORES)
def test_a_score_has_the_structure_and_shapes_of_the_parameters(name, view, dtype):
    params = laws.TREES[view][0](dtype)
    given = signals(params)
    function, expected = SCORES[name]
    got = jax.jit(lambda p, g, k: function(p, **{**given, "grads": g, "key": k}))(params, given["grads"], given["key"])
    chex.assert_trees_all_equal_shapes(got, params)
    if expected:
        leaves = map(jax.tree.leaves, (got, params, given["grads"]))
        for score, w, g in zip(*leaves, strict=True):
            w, g = np.asarray(w, np.float64), np.asarray(g, np.float64)
            np.testing.assert_allclose(np.asarray(score, np.float64), expected(w, g), rtol=3e-6)


def test_random_scores_are_uniform_and_differ_by_leaf_and_key():
    params = {"a": jnp.zeros((50, 40), jnp.bfloat16), "b": jnp.zeros((50, 40))}
    first, second = (scores.random(params, key=jax.random.key(seed)) for seed in (0, 1))
    values = np.stack([first["a"], first["b"], second["a"]]).reshape(3, -1)
    assert values.dtype == np.float32
    np.testing.assert_allclose(np.sort(values), np.tile(np.linspace(0, 1, 2000), (3, 1)), atol=0.05)
    assert np.abs(np.corrcoef(values) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize("norms", [(5,), (4, 5), (1, 1, 5), (3, 4, 5)])
def test_wanda_weighs_the_inputs_of_a_convolution(norms):
    kernel, given = laws.weights((3, 4, 5, 6), 42), jnp.abs(laws.weights(norms, 43))
    got = scores.wanda({"k": kernel, "b": jnp.ones(6)}, input_norms={"k": given})
    expected = np.zeros(kernel.shape)
    for i, j, k, o in np.ndindex(kernel.shape):
        expected[i, j, k, o] = abs(kernel[i, j, k, o]) * np.broadcast_to(given, (3, 4, 5))[i, j, k]
    np.testing.assert_allclose(got["k"], expected, rtol=1e-6)
    np.testing.assert_array_equal(got["b"], np.ones(6))


def test_wanda_prunes_the_worst_inputs_of_every_output():
    kernel, norms = laws.weights((8, 5), 44), jnp.abs(laws.weights(8, 45))
    mask = select.leafwise(scores.wanda(kernel, input_norms={"": norms}), 0.5, scope=select.per(-1))
    for output in range(5):
        products = [abs(float(kernel[i, output])) * float(norms[i]) for i in range(8)]
        assert set(np.flatnonzero(mask[:, output])) == set(np.argsort(products)[4:])


def test_lamp_prunes_globally_without_killing_a_leaf():
    params = {"small": laws.weights((20, 20), 46, scale=1e-4), "large": laws.weights((20, 20), 47, scale=1e4)}
    assert select.globally(scores.magnitude(params), 0.6)["small"].sum() == 0
    kept = select.globally(scores.lamp(params), 0.99)
    assert all(int(mask.sum()) > 0 for mask in kept.values())


def test_normalized_scores_have_norm_one_and_zeros_stay():
    params = {"a": laws.weights((20, 20), 48, jnp.bfloat16, scale=7), "b": jnp.zeros(3)}
    got = scores.normalized(scores.magnitude(params))
    np.testing.assert_allclose(np.linalg.norm(got["a"]), 1, rtol=1e-5)
    assert got["b"].tolist() == [0, 0, 0]


WRONG = {
    "other gradients": (lambda: scores.gradient({"a": 1.0}, grads={"b": 1.0}), "grads must have the structure"),
    "other gradients, salient": (lambda: scores.saliency({"a": 1.0}, grads=[1.0]), "grads must have the structure"),
    "norms of no leaf": (lambda: scores.wanda({"a": jnp.ones((2, 3))}, input_norms={"b": 1.0}), "entry 'b'"),
    "norms of outputs": (
        lambda: scores.wanda({"a": jnp.ones((2, 3))}, input_norms={"a": jnp.ones(3)}),
        r"input_norms\['a'\] has shape \(3,\), which does not broadcast to \(2,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
