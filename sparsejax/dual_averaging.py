"""gRDA, regularized dual averaging as an optimizer: public through `sparsejax.transforms`."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import _checks, _numbers, _states, proximal, tree
from sparsejax._types import Params, wide_dtype

Time = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(count, rate, total) -> time`: scalars, how long training has run at update `count = 1, 2, ...`."""


class GrdaState(NamedTuple):
    """The state of `grda`: one copy of the parameters, and five numbers.

    >>> grda(0.1).init({"kernel": jnp.array([0.5, -0.02])}).accumulator["kernel"].tolist()
    [0.5, -0.02]
    """

    count: jax.Array
    """Updates made, int32."""
    accumulator: Params
    """Initial weights minus the sum of rate times gradient, float32 or wider: the weights are computed from it."""
    threshold: jax.Array
    """What the last update took from every magnitude, in the unit of the weights."""
    total: jax.Array
    """The sum of the learning rates."""
    lost: tuple[jax.Array, jax.Array]
    """What rounding has cost `threshold` and `total` so far, added back at the next update."""


def current_rate(count: jax.Array, rate: jax.Array, total: jax.Array) -> jax.Array:
    """Returns the time `k gamma_k`: every update is taken to have had the rate of this one, as in the authors' code.

    With it the threshold of `grda` grows by `c gamma_k^(mu + 1/2) (k^mu - (k - 1)^mu)`.

    Args:
      count: `k`, the updates made, this one included; a float scalar.
      rate: `gamma_k`, the learning rate of this update.
      total: not used.

    Returns:
      The time, a scalar.

    Source: Chao, Wang, Xing, Cheng, Directional Pruning of Deep Neural Networks, 2020, the authors' code.

    >>> current_rate(jnp.float32(4), jnp.float32(0.01), jnp.float32(0.31)).item()
    0.04
    """
    del total
    return count * rate


def sum_of_rates(count: jax.Array, rate: jax.Array, total: jax.Array) -> jax.Array:
    """Returns the time `T_k = gamma_1 + ... + gamma_k`, which no change of the learning rate makes jump.

    With it the threshold of `grda` grows by `c gamma_k^(1/2) (T_k^mu - T_{k-1}^mu)`: by less than with `current_rate`
    after the learning rate has fallen, and by the same while it is constant.

    Args:
      count: not used.
      rate: not used.
      total: `T_k`, the sum of the learning rates, this update's included.

    Returns:
      The time, a scalar.

    >>> sum_of_rates(jnp.float32(4), jnp.float32(0.01), jnp.float32(0.31)).item()
    0.31
    """
    del count, rate
    return total


def grda(
    learning_rate: optax.ScalarOrSchedule, c: chex.Numeric = 0.005, mu: chex.Numeric = 0.51, time: Time | None = None
) -> optax.GradientTransformation:
    """Returns generalized regularized dual averaging: SGD whose weights are soft-thresholded by a growing threshold.

    For the updates `k = 1, 2, ...`, from `v = w_0` and `l = 0`, with the gradient `g_k` at the thresholded weights:

        v <- v - gamma_k g_k
        l <- l + c gamma_k^(1/2) (t_k^mu - (t_k - gamma_k)^mu),  t_k = k gamma_k
        w <- sign(v) max(|v| - l, 0)

    While the rate is constant, `l = c gamma^(1/2) (k gamma)^mu`. `c = 0` is SGD. Every leaf is treated, biases and
    scales too, with one `k` and one `l`; `optax.partition` restricts it (`optax.masked` lets the gradients of the
    other leaves through as they are). Momentum (`optax.trace`) and decay (`optax.add_decayed_weights`) go before it.

    It must stand last in a chain. Its update is `w - p` for the parameters `p`, with which `optax.apply_updates` makes
    exact zeros in every dtype. What follows it (decay, a scale, a clip, momentum, noise) moves them off zero, and so
    does an average of the weights; `sparsejax.report.check_sparsity` catches that. The parameters are computed from
    `v` anew each time, so their own rounding does not add up, and a change made to them by anyone else is undone.

    Args:
      learning_rate: `gamma` >= 0, as for SGD without momentum; or a schedule, which is called with 0 at the first
        update.
      c: strength >= 0; the authors use 0.0005 to 0.001 for CIFAR, 0.005 for ImageNet. May be traced.
      mu: growth, in (0, 1). The theory wants (0.5, 1): a threshold that outgrows the noise of SGD, with a bias that
        fades. The authors recommend 0.501, 0.51 and 0.55; they also ran 0.4. May be traced.
      time: `t_k` where the rate changes, `(count, rate, total) -> scalar`: `current_rate`, which is what `None` stands
        for, or `sum_of_rates`. Under `optax.inject_hyperparams`, name it in `static_args`.

    Returns:
      A transformation whose `update` needs `params`; updates have their dtypes. Its state is a `GrdaState`. For
      parameters in bfloat16, `optax.inject_hyperparams` needs `hyperparam_dtype=jnp.float32`, or it rounds `mu`.

    Raises:
      ValueError: `learning_rate`, `c` or `mu` is out of range; from `init`, a leaf is not of a float dtype or holds a
        NaN; from `update`, `params` is None, or `params`, `updates` and `state` do not belong together.

    Source: Chao, Wang, Xing, Cheng, Directional Pruning of Deep Neural Networks, NeurIPS 2020, Algorithm 1. Like the
    authors' code, and unlike their slides, the first update has the threshold of `k = 1`, not 0. Unlike the code, the
    threshold is summed without loss: after a million updates in float32 it is right to 1e-6, where theirs is to 1e-3.

    >>> tx, params = grda(0.1, c=0.1, mu=0.6), {"kernel": jnp.array([0.5, -0.02, 0.001, -0.3])}
    >>> grads = {"kernel": jnp.array([0.2, -0.1, 0.0, 0.3])}
    >>> updates, state = tx.update(grads, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [0.47206, -0.00206, 0.0, -0.32206]
    """
    if not callable(learning_rate):
        _check_number("learning_rate", learning_rate, _is_not_negative, "must be a number >= 0, or a schedule")
    _check_number("c", c, _is_not_negative, "must be a number >= 0: 0 is SGD, the authors use 0.0005 to 0.005")
    _check_number("mu", mu, _is_between_0_and_1, "must be in (0, 1), so that the threshold grows, but slower than time")
    elapsed = current_rate if time is None else time
    _checks.check_function("time", elapsed, "pass current_rate or sum_of_rates of sparsejax.transforms")

    def init(params: Params) -> GrdaState:
        for name, leaf in tree.named(params).items():
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise ValueError(
                    f"leaf {name!r} has dtype {jnp.result_type(leaf)}; only float leaves can be trained: "
                    f"leave it out with optax.partition, or cast it"
                )
            tree.check_no_nan(name, leaf)
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
        # Every number its own array, and a real copy of the weights: a donated buffer must not be there twice.
        threshold, total, *lost = [jnp.zeros((), wide_dtype(*leaves)) for _ in range(4)]
        return GrdaState(jnp.zeros((), jnp.int32), jax.tree.map(_wide_copy, params), threshold, total, tuple(lost))

    def update(updates: Params, state: GrdaState, params: Params | None = None) -> tuple[Params, GrdaState]:
        if params is None:
            raise ValueError("params=None, but grda needs them: call tx.update(grads, state, params)")
        _states.check(GrdaState, state)
        tree.check_like(updates, params, "updates")
        tree.check_like(state.accumulator, params, "state.accumulator")
        dtype = state.threshold.dtype
        rate = jnp.asarray(learning_rate(state.count) if callable(learning_rate) else learning_rate, dtype)
        count = optax.safe_increment(state.count)
        total, lost_total = _add(state.total, state.lost[1], rate)
        now = jnp.asarray(elapsed(count.astype(dtype), rate, total), dtype)
        growth = jnp.asarray(c, dtype) * jnp.sqrt(rate) * _power_increment(now, rate, jnp.asarray(mu, dtype))
        threshold, lost = _add(state.threshold, state.lost[0], growth)
        accumulator = jax.tree.map(partial(_descend, rate), state.accumulator, updates)
        updates = jax.tree.map(partial(proximal.difference, threshold), accumulator, params)
        return updates, GrdaState(count, accumulator, threshold, total, (lost, lost_total))

    return optax.GradientTransformation(init, update)


def _descend(rate: jax.Array, v: jax.Array, g: chex.Array) -> jax.Array:
    return v - rate.astype(v.dtype) * jnp.asarray(g, v.dtype)


def _power_increment(time: jax.Array, step: jax.Array, mu: jax.Array) -> jax.Array:
    """Returns `time^mu - (time - step)^mu` without the cancellation; `time^mu` where nothing came before this step."""
    first = time <= step
    past = jnp.where(first, jnp.ones_like(time), time)
    share = jnp.where(first, jnp.zeros_like(step), step) / past
    return time**mu * jnp.where(first, jnp.ones_like(time), -jnp.expm1(mu * jnp.log1p(-share)))


def _add(total: jax.Array, lost: jax.Array, term: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Adds a term to a sum (Kahan); returns the sum and what rounding lost of it."""
    term = term + lost
    new = total + term
    return new, term - (new - total)


def _wide_copy(leaf: chex.Array) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return jnp.array(leaf, dtype=wide_dtype(leaf), copy=True)


def _check_number(argument: str, value: chex.Numeric, allowed: Callable[[float], bool], rule: str) -> None:
    """Raises unless a value is a scalar that is allowed; says nothing about the value of a traced one."""
    if np.ndim(value) == 0 and isinstance(value, jax.core.Tracer):
        return
    if not allowed(_numbers.as_scalar(value)):
        raise ValueError(f"{argument}={value!r} {rule}; optax.inject_hyperparams(grda) varies it")


def _is_not_negative(number: float) -> bool:
    return 0 <= number < np.inf


def _is_between_0_and_1(number: float) -> bool:
    return 0 < number < 1
