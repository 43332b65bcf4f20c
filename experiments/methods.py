"""The recipe of a training run, and the seam at which a pruning method plugs into it.

A method is pure functions over what it trains: the parameters themselves, or the parameters together with auxiliaries
such as bounds and gates. The training loop never looks inside.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from experiments import names
from experiments.orders import Order, shuffled
from experiments.rates import Schedule, cosine_cycles

Trainable = chex.ArrayTree
"""What a method's optimizer updates; only the method knows its structure."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train, whatever the method."""

    epochs: int = 60
    """Number of passes over the training split."""
    batch_size: int = 128
    """Images in a step, over all devices together; an epoch drops its last, partial batch."""
    learning_rate: float = 0.1
    """Learning rate at the start of training, and of each cycle."""
    momentum: float = 0.9
    """Momentum of the dense method's SGD; other methods may use it."""
    weight_decay: float = 5e-4
    """Coefficient w of the L2 term (w / 2) |params|^2 in the dense method's gradient; other methods may use it."""
    cycles: int = 1
    """Number of cosine cycles, each of which starts again at the full learning rate; it divides `epochs`."""
    schedule: Schedule = cosine_cycles
    """Learning rate of every epoch, from `experiments.rates`; a run's folder records its name and arguments."""
    clip: float | None = None
    """Largest global norm of the gradient of a batch; larger ones are scaled down to it."""
    augment: bool = False
    """Random crops from a border of 4 zero pixels, and horizontal flips, on the device; a stream transforms its images
    before that."""
    seed: int = 0
    """The first seed; it draws the initial weights, the order of the data and the augmentation."""
    seeds: int = 3
    """Number of networks trained side by side, with seeds seed, seed + 1, ..."""
    checkpoint_every: int = 0
    """Epochs between checkpoints; 0 saves the end only."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes, in training."""
    bfloat16: bool = False
    """Whether networks compute in bfloat16 in training; parameters, losses, averages of batch norm and optimizer are
    float32, and so is evaluation."""
    accumulate: int = 1
    """Number of parts of a batch whose gradients are computed one after another, for the memory of one. The update is
    that of the batch at once; batch norm sees a part at a time."""

    def __post_init__(self):
        """Raises `ValueError` for numbers that no run can have, and a schedule without a lasting name."""
        names.of(self.schedule)
        for name in ("epochs", "batch_size", "cycles", "seeds", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, but a run has at least 1")
        for name in ("learning_rate", "momentum", "weight_decay", "seed", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, but it cannot be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}, but a share of a label is in [0, 1)")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: got {self.clip}, but a norm is positive; None does not clip")
        if self.epochs % self.cycles:
            raise ValueError(
                f"cycles: got {self.cycles}, which does not divide epochs, {self.epochs}; choose a divisor"
            )


def settings(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe as JSON-serialisable values, with the schedule's name and arguments as text."""
    return {**dataclasses.asdict(recipe), "schedule": names.of(recipe.schedule)}


@dataclasses.dataclass(frozen=True)
class Method:
    """How to train a sparse network: pure functions of one network, without a seeds axis."""

    name: str
    """For logs and figures; a run's folder tells methods apart by it and by the run's `config`."""
    init: Callable[[chex.PRNGKey, chex.ArrayTree], Trainable]
    """(key, params) -> trainable."""
    forward: Callable[[Trainable], chex.ArrayTree]
    """trainable -> the parameters that the network runs with; differentiable."""
    penalty: Callable[[Trainable], chex.Numeric]
    """trainable -> a scalar that is added to the task's loss; differentiable."""
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
    """learning-rate schedule -> optimizer of trainable."""
    finalize: Callable[[Trainable], chex.ArrayTree]
    """trainable -> parameters with real zeros, for evaluation and export."""
    observe: Callable[[Trainable, optax.OptState], dict[str, jax.Array]] = lambda trainable, opt_state: {}
    """(trainable, optimizer state) -> scalars by name, which join the history's row of every epoch."""
    order: Order = shuffled
    """In which order an epoch takes the images, from `experiments.orders`."""
    over_seeds: Callable[[Callable], Callable] | None = None
    """How to map training over seeds, where the network's own way does not suit; `None` is that one."""


def dense(recipe: Recipe) -> Method:
    """Returns ordinary training by SGD with momentum m and coupled (L2) weight decay w, as in PyTorch.

    b <- m b + (gradient + w params);  params <- params - learning rate b.

    Args:
      recipe: `momentum`, `weight_decay` and `clip` are read.

    Returns:
      A method whose trainable is params.
    """

    def optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
        decay, descent = optax.add_decayed_weights(recipe.weight_decay), optax.sgd(schedule, recipe.momentum)
        return optax.chain(clipping(recipe), decay, descent)

    return Method(
        name="dense",
        init=lambda key, params: params,
        forward=lambda params: params,
        penalty=lambda params: jnp.zeros(()),
        optimizer=optimizer,
        finalize=lambda params: params,
    )


def clipping(recipe: Recipe) -> optax.GradientTransformation:
    """Returns the transformation of gradients that comes first in every optimizer: it keeps their norm at the clip."""
    return optax.identity() if recipe.clip is None else optax.clip_by_global_norm(recipe.clip)
