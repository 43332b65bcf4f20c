"""Max pooling by two: the values and gradients of Flax's, ties and odd sizes included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pooling import max_pool


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 7, 5, 2), (3, 2, 2, 1)])
def test_values_and_gradients_are_flax_s(shape, dtype):
    rng = np.random.default_rng(0)
    # Few different values, so that most windows have ties; the first maximum by rows takes the gradient.
    images = jnp.asarray(rng.integers(0, 3, shape), dtype)
    gradient = jnp.asarray(rng.standard_normal((shape[0], shape[1] // 2, shape[2] // 2, shape[3])), dtype)
    expected, expected_pull = jax.vjp(lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)), images)
    found, pull = jax.vjp(max_pool, images)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pull(gradient)[0], expected_pull(gradient)[0])


def test_second_derivatives_exist():
    """Hessian-vector products differentiate the gradient once more, backwards."""
    images = jnp.asarray(np.random.default_rng(1).standard_normal((1, 4, 4, 1)), jnp.float32)
    hessian = jax.jacrev(jax.grad(lambda x: jnp.sum(max_pool(x) ** 3)))(images).reshape(16, 16)
    flat = np.asarray(images).reshape(4, 4)
    expected = np.zeros((16, 16))
    for row in (0, 2):
        for column in (0, 2):
            window = flat[row : row + 2, column : column + 2]
            i, j = np.unravel_index(window.argmax(), (2, 2))
            place = 4 * (row + i) + column + j
            expected[place, place] = 6 * window.max()
    np.testing.assert_allclose(hessian, expected, rtol=1e-5)
