"""Clocks: plain functions of the step, counted from 0, that say how far along a target is or whether it is time.

Ramps (`linear`, `cubic`) have the signature of an optax schedule and rise from 0 to 1 unless told otherwise: a share of
the way to a target, or a sparsity itself. They start and end exactly where they say. Times (`every`, `at`) return a
bool. All of them work on Python integers and on traced steps.
"""

import math
import numbers
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from sparsejax import _checks
from sparsejax._numbers import as_scalar
from sparsejax._types import Clock


def linear(start: int, end: int, initial: float = 0.0, final: float = 1.0) -> Clock:
    """Returns a ramp that rises in proportion to the step.

    `initial + (final - initial) t`, where `t = (step - start) / (end - start)`.

    Args:
      start: the last step at which the value is `initial`, >= 0.
      end: the first step at which it is `final`, > start.
      initial: value up to `start`.
      final: value from `end` on.

    Returns:
      `step -> value`, a float32 scalar.

    Raises:
      ValueError: not `0 <= start < end`.

    >>> [linear(10, 20)(step).item() for step in (0, 10, 15, 20, 99)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    return _ramp(start, end, initial, final, lambda left: left)


def cubic(start: int, end: int, initial: float = 0.0, final: float = 1.0) -> Clock:
    """Returns a ramp that is steep at first and flat at the end.

    `final + (initial - final) (1 - t)^3`, where `t = (step - start) / (end - start)`.

    Args:
      start: the last step at which the value is `initial`, >= 0.
      end: the first step at which it is `final`, > start.
      initial: value up to `start`.
      final: value from `end` on.

    Returns:
      `step -> value`, a float32 scalar.

    Raises:
      ValueError: not `0 <= start < end`.

    Source: Zhu, Gupta, To Prune, or Not to Prune, 2017, Eq. 1.

    >>> [cubic(0, 4, final=0.5)(step).item() for step in (0, 2, 4)]
    [0.0, 0.4375, 0.5]
    """
    return _ramp(start, end, initial, final, lambda left: left**3)


def every(period: int, start: int = 0, end: int | None = None) -> Clock:
    """Returns the clock that strikes at `start`, every `period` steps after it, and at `end` whether or not it divides.

    Args:
      period: steps between strikes, >= 1.
      start: the first strike, >= 0.
      end: the last strike, >= start; `None` goes on for ever.

    Returns:
      `step -> bool` scalar.

    Raises:
      ValueError: `period` is no integer >= 1, `start < 0` or `end < start`.

    >>> [step for step in range(30) if every(10, start=3, end=25)(step)]
    [3, 13, 23, 25]
    """
    _checks.check_integer("period", period, 1, "1 strikes at every step")
    if not 0 <= as_scalar(start) <= (math.inf if end is None else as_scalar(end)):
        raise ValueError(f"start={start}, end={end} must satisfy 0 <= start <= end, or no step would ever be struck")

    def clock(step: chex.Numeric) -> jax.Array:
        step = jnp.asarray(step)
        strikes = (step >= start) & ((step - start) % period == 0)
        return strikes if end is None else (strikes & (step <= end)) | (step == end)

    return clock


def at(*steps: int) -> Clock:
    """Returns the clock that strikes at the given steps.

    Args:
      *steps: at least one step, each >= 0.

    Returns:
      `step -> bool` scalar.

    Raises:
      ValueError: no step is given, or one is negative or no integer.

    >>> [step for step in range(10) if at(0, 7)(step)]
    [0, 7]
    """
    if not steps or not all(isinstance(step, numbers.Integral) and step >= 0 for step in steps):
        raise ValueError(f"steps={steps} must be one or more whole steps >= 0, or it would never strike: at(0, 1000)")
    return lambda step: (jnp.asarray(step) == jnp.asarray(steps)).any()


def _ramp(start: int, end: int, initial: float, final: float, remaining: Callable[[jax.Array], jax.Array]) -> Clock:
    """The ramp whose distance to `final` is `remaining(1 - t)` of the whole."""
    if not 0 <= as_scalar(start) < as_scalar(end):
        raise ValueError(
            f"start={start}, end={end} must satisfy 0 <= start < end; to jump at once use optax.join_schedules"
        )

    def schedule(step: chex.Numeric) -> jax.Array:
        step = jnp.asarray(step)
        passed = (step - start).astype(jnp.float32) / (end - start)
        value = final + (initial - final) * remaining(1 - passed)
        # The ends are stated, not computed: final + (initial - final) need not round to initial.
        return jnp.where(step <= start, initial, jnp.where(step >= end, final, value))

    return schedule
