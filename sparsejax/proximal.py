"""Soft thresholding as an update: what is added to a parameter so that it becomes the minimiser of a penalised step."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from sparsejax import _states, tree
from sparsejax._numbers import check_not_negative
from sparsejax._types import Params, wide_dtype


class ProximalL1State(NamedTuple):
    """The state of `proximal_l1`.

    >>> proximal_l1(0.1, 0.01).init(None).count.item()
    0
    """

    count: jax.Array
    """Updates made, int32."""


def proximal_l1(learning_rate: optax.ScalarOrSchedule, strength: chex.Numeric) -> optax.GradientTransformationExtraArgs:
    """Returns the proximal step of an L1 penalty: `w <- argmin_x 1/2 |x - (w + u)|^2 + eta strength |x|`.

    That is `sign(w + u) max(|w + u| - eta strength, 0)` for the update `u` of what stands before it in the chain. It
    makes exact zeros, where a subgradient `strength sign(w)` would step over them for ever. A weight without another
    gradient is zero after `|w| / (eta strength)` updates; under AutoPrune's rule (`power=0`) it is then pruned for
    good, because `sign(0) = 0`. An L2 penalty, `optax.add_decayed_weights` before the learning rate, shrinks it by
    `1 - eta strength` an update and never to zero.

    It must stand last in a chain: whatever follows moves weights off zero.

    Args:
      learning_rate: `eta` >= 0, that of the optimizer before it; or its schedule, called with the number of updates
        made, or with the extra argument `step` where there is one, as inside `autoprune`.
      strength: the factor of the penalty, >= 0. May be traced.

    Returns:
      A transformation whose `update` needs `params`; its state is a `ProximalL1State`.

    Raises:
      ValueError: `learning_rate` or `strength` is negative or not a number; from `update`, `params` is None, or
        `params`, `updates` and `state` do not belong together.

    Source: Xiao, Wang, Rajasekaran, AutoPrune, 2019, section 3.4 (the L1 regulariser of the weights).

    >>> tx, w = optax.chain(optax.sgd(0.5), proximal_l1(0.5, 0.25)), jnp.array([1.0, -0.125])
    >>> updates, _ = tx.update(jnp.zeros(2), tx.init(w), w)
    >>> optax.apply_updates(w, updates).tolist()
    [0.875, 0.0]
    """
    if not callable(learning_rate):
        check_not_negative("learning_rate", learning_rate)
    check_not_negative("strength", strength)

    def update(
        updates: Params, state: ProximalL1State, params: Params | None = None, *, step=None, **extra_args
    ) -> tuple[Params, ProximalL1State]:
        del extra_args
        if params is None:
            raise ValueError("params=None, but proximal_l1 needs them: call tx.update(grads, state, params)")
        _states.check(ProximalL1State, state)
        tree.check_like(updates, params, "updates")
        rate = learning_rate(state.count if step is None else step) if callable(learning_rate) else learning_rate
        threshold = jnp.asarray(rate, jnp.float32) * jnp.asarray(strength, jnp.float32)
        stepped = jax.tree.map(_stepped, updates, params)
        updates = jax.tree.map(partial(difference, threshold), stepped, params)
        return updates, ProximalL1State(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(lambda _: ProximalL1State(jnp.zeros((), jnp.int32)), update)


def difference(threshold: jax.Array, v: jax.Array, p: chex.Array) -> jax.Array:
    """Returns what takes `p` to the soft-thresholded `v`; where that is 0 it is `-p`, and `p + (-p)` is 0."""
    # Not ops.soft_threshold, which makes 0 of a NaN: a run that diverged must not look like a sparse one. And not
    # jnp.clip: on a CPU, its care for NaN costs a twentieth of the step, and these two compile to one max and one min.
    t, p = threshold.astype(v.dtype), jnp.asarray(p)
    clipped = jnp.where(v < -t, -t, v)
    clipped = jnp.where(clipped > t, t, clipped)
    w = v - clipped
    return w.astype(p.dtype) - p


def _stepped(u: chex.Array, p: chex.Array) -> jax.Array:
    u, p = jnp.asarray(u), jnp.asarray(p)
    dtype = wide_dtype(u, p)
    return p.astype(dtype) + u.astype(dtype)
