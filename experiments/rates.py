"""Learning rates of every epoch: (recipe, steps in an epoch) -> optax schedule, constant within an epoch."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import chex
import jax
import jax.numpy as jnp
import optax


class Settings(Protocol):
    """What a schedule reads of a recipe."""

    learning_rate: float
    epochs: int
    cycles: int


Schedule = Callable[[Settings, int], optax.Schedule]
"""(recipe, steps in an epoch) -> (step, from 0 -> learning rate); with a name as `names.of` asks for."""


def cosine_cycles(recipe: Settings, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate of every step: cosine cycles from `learning_rate` to 0, constant within an epoch.

    0.5 learning_rate (1 + cos(pi (e mod T) / T)) for epoch e = step // steps_per_epoch and T = epochs / cycles: the
    schedule of *Adaptive Sparsity Loss*, whose code steps it once an epoch.

    Args:
      recipe: `learning_rate`, `epochs` and `cycles` are read.
      steps_per_epoch: number of optimizer steps in an epoch.

    Returns:
      An optax schedule: step -> float32 scalar.
    """
    period = recipe.epochs // recipe.cycles
    cycle = optax.cosine_decay_schedule(recipe.learning_rate, period)
    return _by_epoch(lambda epoch: cycle(epoch % period), steps_per_epoch)


def constant(recipe: Settings, steps_per_epoch: int) -> optax.Schedule:
    """Returns `learning_rate`, for every step.

    Args:
      recipe: `learning_rate` is read.
      steps_per_epoch: not read.

    Returns:
      An optax schedule: step -> float32 scalar.
    """
    return _by_epoch(lambda epoch: jnp.full_like(epoch, recipe.learning_rate), steps_per_epoch)


def half_then_linear(recipe: Settings, steps_per_epoch: int) -> optax.Schedule:
    """Returns full `learning_rate` for half of the epochs, a line down to 0.01 of it at 90% of them, and that.

    learning_rate min(1, max(0.01, 1 - 0.99 (t - 0.5) / 0.4)) for t = e / epochs, where e counts the epochs from 1:
    the schedule of Chao, Wang, Xing and Cheng, *Directional Pruning of Deep Neural Networks* (2020) on CIFAR, as in
    their code.

    Args:
      recipe: `learning_rate` and `epochs` are read.
      steps_per_epoch: number of optimizer steps in an epoch.

    Returns:
      An optax schedule: step -> float32 scalar.
    """

    def rate(epoch: jax.Array) -> jax.Array:
        done = (epoch + 1) / recipe.epochs
        return recipe.learning_rate * jnp.clip(1 - 0.99 * (done - 0.5) / 0.4, 0.01, 1)

    return _by_epoch(rate, steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class drops:  # called like the functions above, but two of the same settings are equal and print as them
    """The schedule learning_rate factor^n, where n is the number of the epochs `at` that are complete.

    `drops(at=(140,))` is that of *Directional Pruning of Deep Neural Networks* on ImageNet.
    """

    at: Sequence[int]
    """Numbers of epochs after which the rate drops, increasing, at least 1."""
    factor: float = 0.1
    """What each drop multiplies the rate with, positive."""

    def __post_init__(self):
        """Raises `ValueError` for epochs that do not increase from 1 and a factor that is not positive."""
        object.__setattr__(self, "at", tuple(self.at))
        if list(self.at) != sorted({epoch for epoch in self.at if epoch >= 1}):
            raise ValueError(f"at: got {self.at}, but drops come after at least 1 epoch, and one after another")
        _check_factor(self.factor)

    def __call__(self, recipe: Settings, steps_per_epoch: int) -> optax.Schedule:
        """Returns an optax schedule: step -> float32 scalar."""
        drop = optax.piecewise_constant_schedule(recipe.learning_rate, dict.fromkeys(self.at, self.factor))
        return _by_epoch(drop, steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class drops_every:
    """The schedule learning_rate factor^(e // epochs) for epoch e, from 0; `drops_every(30)` is usual on ImageNet."""

    epochs: int
    """Number of epochs between drops."""
    factor: float = 0.1
    """What each drop multiplies the rate with, positive."""

    def __post_init__(self):
        """Raises `ValueError` for less than one epoch and a factor that is not positive."""
        if self.epochs < 1:
            raise ValueError(f"epochs: got {self.epochs}, but at least 1 epoch lies between two drops")
        _check_factor(self.factor)

    def __call__(self, recipe: Settings, steps_per_epoch: int) -> optax.Schedule:
        """Returns an optax schedule: step -> float32 scalar."""
        drop = optax.exponential_decay(recipe.learning_rate, self.epochs, self.factor, staircase=True)
        return _by_epoch(drop, steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class geometric:
    """The schedule learning_rate last^(e / (epochs - 1)) for epoch e, from 0: the last epoch has `last` times the rate.

    *AutoPrune* decreases its rates gradually from 1e-3 to 1e-5 (LeNet-5, `geometric(0.01)`), from 1e-5 to 1e-6
    (ResNet-50, `geometric(0.1)`); that the decrease is geometric is our reading.
    """

    last: float
    """What the last epoch's rate is of the first one's, positive."""

    def __post_init__(self):
        """Raises `ValueError` for a share that is not positive."""
        if not 0 < self.last < math.inf:
            raise ValueError(f"last: got {self.last}, but a learning rate ends at a positive share of itself")

    def __call__(self, recipe: Settings, steps_per_epoch: int) -> optax.Schedule:
        """Returns an optax schedule: step -> float32 scalar."""
        decay = optax.exponential_decay(recipe.learning_rate, max(1, recipe.epochs - 1), self.last)
        return _by_epoch(decay, steps_per_epoch)


def _check_factor(factor: float) -> None:
    if not factor > 0:
        raise ValueError(f"factor: got {factor}, but a drop multiplies the learning rate with a positive number")


def _by_epoch(rate: Callable[[jax.Array], jax.Array], steps_per_epoch: int) -> optax.Schedule:
    """Returns step -> rate(epoch), where the epoch is a float32 scalar, from 0."""

    def schedule(step: chex.Numeric) -> jax.Array:
        epoch = jnp.asarray(step, jnp.int32) // steps_per_epoch
        return rate(epoch.astype(jnp.float32))

    return schedule
