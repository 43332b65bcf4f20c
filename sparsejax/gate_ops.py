"""Operators that gate: weights or units pass where their auxiliary parameter is positive; public through `ops`.

The step `1[m > 0]` has no useful derivative, so its auxiliary parameters get an update direction instead.
"""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import _checks, surrogates
from sparsejax._types import prepare, reduce_to, wide_dtype


def gate(
    w: chex.Array,
    m: chex.Array,
    surrogate: Callable[[jax.Array], jax.Array] = surrogates.softplus,
    power: float = 0.0,
) -> jax.Array:
    """Returns `w 1[m > 0]`, with AutoPrune's update direction as the gradient of `m`.

    Backward, for the gradient `g` of the result: `g 1[m > 0]` to the weights and
    `g sign(w) |w|^power surrogate(m)` to the auxiliary parameters.

    Args:
      w: weights or activations, any shape, a float dtype.
      m: auxiliary parameters, a float dtype; broadcasts to `w` (one per weight, or one per unit along an axis).
      surrogate: `m -> h'(m) >= 0`, one of `sparsejax.surrogates`.
      power: 0 is the paper's rule; 1 the exact chain rule, the regular update of binary networks; -1 boosts small
        weights, with `|w|` floored at 1e-3.

    Returns:
      An array of the shape and dtype of `w`.

    Raises:
      ValueError: `w` or `m` is not of a float dtype, `m` does not broadcast to `w`, or `surrogate` is no function.

    Source: Xiao et al., AutoPrune, 2019, Eq. 7 (as the formula sheet of this project reads it), 9 and 11.

    >>> gate(jnp.array([0.5, -0.2]), jnp.array([0.1, -0.1])).tolist()
    [0.5, 0.0]
    >>> f = lambda m: gate(jnp.array([0.5, -0.2]), m, surrogates.linear).sum()
    >>> jax.grad(f)(jnp.array([0.1, -0.1])).tolist()
    [1.0, -1.0]
    """
    _checks.check_function("surrogate", surrogate, "pass one of sparsejax.surrogates, such as softplus")
    w, m = prepare(w, m, "m")
    _check_trained(m)
    return _gate(w, m, surrogate, power)


def gate_units(x: chex.Array, m: chex.Array, kept: chex.Array, slope: chex.Array) -> jax.Array:
    """Returns `x` where `kept` and 0 elsewhere; backward, `m` gets what the loss says of `x` as a whole.

    Backward, for the gradient `g` of the result: `g 1[kept]` to `x`, and `slope * sum(x g)`, summed over the axes that
    `m` broadcasts, to `m`. The sum is the derivative by the unit's gate, exact to the first order.

    Args:
      x: activations, or the weights that carry them; any shape, a float dtype.
      m: auxiliary parameters, a float dtype; broadcasts to `x`, one a unit.
      kept: bool, of the shape of `m`; usually `m > 0`, but that a layer keeps one unit.
      slope: `>= 0`, of the shape of `m`: the surrogate `h'(m)`, divided by the size of the unit or not.

    Returns:
      An array of the shape and dtype of `x`.

    Raises:
      ValueError: `x` or `m` is not of a float dtype, `kept` is not bool, or `m` does not broadcast to `x`.

    Source: Xiao et al., AutoPrune, 2019, Eq. 9 for units (neuron pruning).

    >>> x, m = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([0.1, -0.1])
    >>> gate_units(x, m, m > 0, jnp.ones(2)).tolist()
    [[1.0, 0.0], [3.0, 0.0]]
    >>> jax.grad(lambda m: gate_units(x, m, m > 0, jnp.ones(2)).sum())(m).tolist()
    [4.0, 6.0]
    """
    shape = jnp.shape(m)
    x, m = prepare(x, m, "m", name="x")
    _check_trained(m)
    kept, slope = (jnp.broadcast_to(jnp.asarray(part), shape).reshape(m.shape) for part in (kept, slope))
    if kept.dtype != jnp.bool_:
        raise ValueError(f"kept has dtype {kept.dtype}; it is bool, True keeps: pass kept > 0")
    return _gate_units(x, m, kept, slope)


def _check_trained(m: jax.Array) -> None:
    if not jnp.issubdtype(m.dtype, jnp.floating):
        raise ValueError(f"m has dtype {m.dtype}; auxiliary parameters are trained: make them float32")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _gate(w, m, surrogate, power):
    del surrogate, power
    return jnp.where(m > 0, w, jnp.zeros_like(w))


def _gate_forward(w, m, surrogate, power):
    return _gate(w, m, surrogate, power), (w, m)


def _gate_backward(surrogate, power, residuals, g):
    w, m = residuals
    dtype = wide_dtype(w, m)
    wide, cotangent = w.astype(dtype), g.astype(dtype)
    magnitude = jnp.maximum(jnp.abs(wide), 1e-3) if power < 0 else jnp.abs(wide)
    direction = jnp.sign(wide) * (magnitude**power if power else jnp.ones_like(wide))
    dm = reduce_to(cotangent * direction, m.astype(dtype)) * surrogate(m).astype(dtype)
    return jnp.where(m > 0, g, jnp.zeros_like(g)), dm.astype(m.dtype)


_gate.defvjp(_gate_forward, _gate_backward)


@jax.custom_vjp
def _gate_units(x, m, kept, slope):
    del m, slope
    return jnp.where(kept, x, jnp.zeros_like(x))


def _gate_units_forward(x, m, kept, slope):
    return _gate_units(x, m, kept, slope), (x, m, kept, slope)


def _gate_units_backward(residuals, g):
    x, m, kept, slope = residuals
    dtype = wide_dtype(x, m)
    dm = reduce_to(x.astype(dtype) * g.astype(dtype), m.astype(dtype)) * slope.astype(dtype)
    no_gradient = np.zeros(kept.shape, jax.dtypes.float0)
    return jnp.where(kept, g, jnp.zeros_like(g)), dm.astype(m.dtype), no_gradient, jnp.zeros_like(slope)


_gate_units.defvjp(_gate_units_forward, _gate_units_backward)
