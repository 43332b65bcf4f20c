"""In which order an epoch takes the images: (run key, epoch key, number of images, batch size) -> indices.

The run key is the same in every epoch of a seed, the epoch key another in each.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Order = Callable[[chex.PRNGKey, chex.PRNGKey, int, int], jax.Array]
"""(run key, epoch key, number of images, batch size) -> indices int32 (steps, batch size), pure."""


def shuffled(run_key: chex.PRNGKey, epoch_key: chex.PRNGKey, count: int, batch_size: int) -> jax.Array:
    """Returns the images in a new order every epoch, without the last, partial batch.

    Args:
      run_key: not read.
      epoch_key: draws the order.
      count: number of images.
      batch_size: images in a step.

    Returns:
      int32 (count // batch_size, batch_size).
    """
    steps = count // batch_size
    order = jax.random.permutation(epoch_key, count)
    return order[: steps * batch_size].reshape(steps, batch_size)


@dataclasses.dataclass(frozen=True)
class windows:  # called like the functions around it, but two of the same length are equal and print as them
    """Batches of a training run that is cut into windows of so many steps, each an "epoch" to the training loop.

    A window takes the images in as many new orders as it needs, each without its last, partial batch.
    """

    steps: int
    """Number of batches, at least 1."""

    def __post_init__(self):
        """Raises `ValueError` for a window without steps."""
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, but a window has at least 1")

    def __call__(self, run_key: chex.PRNGKey, epoch_key: chex.PRNGKey, count: int, batch_size: int) -> jax.Array:
        """Returns int32 (steps, batch_size); no batch if there are fewer images than one has."""
        passes = -(-self.steps // max(1, count // batch_size))
        orders = [shuffled(run_key, key, count, batch_size) for key in jax.random.split(epoch_key, passes)]
        return jnp.concatenate(orders)[: self.steps]


def alternating_halves(run_key: chex.PRNGKey, epoch_key: chex.PRNGKey, count: int, batch_size: int) -> jax.Array:
    """Returns batches of two disjoint halves of the images in turn: steps 0, 2, ... of an epoch take the first half.

    The halves stay the same in every epoch, and each is shuffled anew. Both give count // 2 // batch_size batches, so
    that the number of steps is even and the halves keep their turns from epoch to epoch. Each half drops the images
    of its own last, partial batch, others in every epoch; if `count` is odd, the second half has one image more.

    Args:
      run_key: draws the halves.
      epoch_key: draws the order within them.
      count: number of images.
      batch_size: images in a step.

    Returns:
      int32 (2 (count // 2 // batch_size), batch_size).
    """
    turns = count // 2 // batch_size
    images = jax.random.permutation(run_key, count)
    halves = images[: count // 2], images[count // 2 :]
    batches = [
        jax.random.permutation(key, half)[: turns * batch_size].reshape(turns, batch_size)
        for key, half in zip(jax.random.split(epoch_key), halves, strict=True)
    ]
    return jnp.stack(batches, axis=1).reshape(2 * turns, batch_size)
