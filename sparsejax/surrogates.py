"""Derivatives that stand in for the derivative of the unit step `h(m) = 1[m > 0]`, which is zero almost everywhere.

Every member maps `m` to `h'(m) >= 0`: AutoPrune's direction (Eq. 11) needs the sign of the gradient to survive.
Xiao, Wang, Rajasekaran, *AutoPrune: Automatic Network Pruning by Regularizing Auxiliary Parameters*, 2019, section 4.5.
"""

import chex
import jax
import jax.numpy as jnp


def linear(m: chex.Array) -> jax.Array:
    """Returns `h'(m) = 1`, the straight-through derivative.

    Args:
      m: auxiliary parameters, any shape, float.

    Returns:
      Ones of the shape and dtype of `m`.

    Source: Xiao et al., AutoPrune, 2019, section 4.5 (slowest, least compression there).

    >>> linear(jnp.array([-2.0, 0.0, 2.0])).tolist()
    [1.0, 1.0, 1.0]
    """
    return jnp.ones_like(m)


def leaky_relu(m: chex.Array, slope: float = 0.1) -> jax.Array:
    """Returns `h'(m) = 1 where m > 0, slope elsewhere`.

    Args:
      m: auxiliary parameters, any shape, float.
      slope: the derivative of pruned entries, >= 0; 0 is `relu`. The paper does not state its value.

    Returns:
      An array of the shape and dtype of `m`.

    Raises:
      ValueError: `slope` is negative.

    Source: Xiao et al., AutoPrune, 2019, section 4.5 (fastest there).

    >>> leaky_relu(jnp.array([-2.0, 0.0, 2.0]), slope=0.25).tolist()
    [0.25, 0.25, 1.0]
    """
    if not slope >= 0:
        raise ValueError(f"slope={slope} must be >= 0: a negative derivative would turn the update's sign around")
    return jnp.where(m > 0, jnp.ones_like(m), jnp.full_like(m, slope))


def relu(m: chex.Array) -> jax.Array:
    """Returns `h'(m) = 1[m > 0]`; what is pruned never recovers.

    Args:
      m: auxiliary parameters, any shape, float.

    Returns:
      Zeros and ones of the shape and dtype of `m`.

    Source: Xiao et al., AutoPrune, 2019, section 3.3 (in the theory only).

    >>> relu(jnp.array([-2.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 1.0]
    """
    return (m > 0).astype(jnp.result_type(m))


def softplus(m: chex.Array, beta: float = 1.0) -> jax.Array:
    """Returns `h'(m) = sigmoid(beta m)`, the derivative of `log(1 + exp(beta m)) / beta`.

    Args:
      m: auxiliary parameters, any shape, float.
      beta: sharpness, > 0.

    Returns:
      An array in (0, 1) of the shape and dtype of `m`.

    Raises:
      ValueError: `beta` is not positive.

    Source: Xiao et al., AutoPrune, 2019, section 4.5 (most compression there).

    >>> softplus(jnp.array([-2.0, 0.0, 2.0])).tolist()
    [0.1192, 0.5, 0.8808]
    """
    if not beta > 0:
        raise ValueError(f"beta={beta} must be > 0: a softplus of no sharpness does not approach a step; 1.0 is usual")
    return jax.nn.sigmoid(beta * m)
