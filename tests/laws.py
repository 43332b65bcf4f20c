"""Tables: the members of each family, and the views of parameters that every law is tried on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from sparsejax import ops


class Layer(NamedTuple):
    """A container that is neither a dict nor a list."""

    kernel: jax.Array
    bias: jax.Array


def weights(shape, seed=0, dtype=jnp.float32, scale=0.1, shift=0.0):
    """Gaussian weights, reproducible."""
    values = np.random.default_rng(seed).standard_normal(shape) * scale + shift
    return jnp.asarray(values, dtype)


# Every container a tree of parameters comes in. The prunable leaves of each are called by name.
TREES = {
    "dict": (
        lambda dtype: {"Dense_0": {"kernel": weights((30, 40), 1, dtype), "bias": weights(40, 2, dtype)}},
        ["Dense_0/kernel"],
    ),
    "list": (lambda dtype: [weights((30, 40), 3, dtype), weights(40, 4, dtype)], ["0"]),
    "tuple": (lambda dtype: (weights((40, 30), 5, dtype), {"scale": weights(30, 6, dtype)}), ["0"]),
    "namedtuple": (lambda dtype: Layer(weights((3, 3, 15, 10), 7, dtype), weights(10, 8, dtype)), ["kernel"]),
    "array": (lambda dtype: weights((25, 40), 9, dtype), [""]),
    "two layers": (
        lambda dtype: {
            "a": weights((30, 40), 10, dtype, shift=0.03),
            "b": {"kernel": weights((5, 5, 8, 10), 11, dtype)},
        },
        ["a", "b/kernel"],
    ),
}

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


class Operator(NamedTuple):
    """A thresholding operator, its forward oracle, and where its gradient reaches the weights."""

    function: object
    forward: object
    reaches: object  # kept (bool array) -> bool array of weights that get the gradient unchanged


OPERATORS = {
    "hard_shrink": Operator(ops.hard_shrink, oracles.hard, np.ones_like),
    "hard_threshold": Operator(ops.hard_threshold, oracles.hard, np.asarray),
    "soft_threshold": Operator(ops.soft_threshold, oracles.soft, np.asarray),
}
