"""How well one network does on images: as functions to compile, and to map over seeds."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

Normalizer = Callable[[jax.Array], jax.Array]
"""uint8 images (n, h, w, c) -> float32 images."""


class Scores(NamedTuple):
    """How well a network does on a split: the mean loss, and the shares of images it gets right."""

    loss: jax.Array
    accuracy: jax.Array
    top5: jax.Array


def loss(model: nn.Module, normalize: Normalizer) -> Callable[..., jax.Array]:
    """Returns the mean cross-entropy of one network on one batch, to differentiate.

    Args:
      model: `apply(variables, images, train)` -> logits (n, classes).
      normalize: uint8 images -> float images.

    Returns:
      (variables, images (n, h, w, c), labels (n,)) -> a scalar, in evaluation mode.
    """

    def mean_loss(variables: chex.ArrayTree, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.apply(variables, normalize(images), train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return mean_loss


def sums(model: nn.Module, normalize: Normalizer) -> Callable[..., Scores]:
    """Returns the evaluation of one network on one batch.

    Args:
      model: `apply(variables, images, train)` -> logits (n, classes).
      normalize: uint8 images -> float images.

    Returns:
      (params, model_state, images (n, h, w, c), labels (n,), where -1 is padding) -> scores, as sums over the batch.
    """

    def batch_sums(params, model_state, images, labels):
        logits = model.apply({"params": params, **model_state}, normalize(images), train=False)
        known = labels >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
        right = best == jnp.where(known, labels, -1)[:, None]
        return Scores(jnp.where(known, losses, 0).sum(), right[:, 0].sum(), right.sum())

    return batch_sums


def means(model: nn.Module, normalize: Normalizer) -> Callable[..., Scores]:
    """Returns the evaluation of one network on a split in memory.

    Args:
      model: `apply(variables, images, train)` -> logits (n, classes).
      normalize: uint8 images -> float images.

    Returns:
      (params, model_state, images (chunks, n, h, w, c), labels (chunks, n), where -1 is padding) -> scores.
    """
    batch_sums = sums(model, normalize)

    def scores(params, model_state, images, labels):
        count = (labels >= 0).sum().astype(jnp.float32)
        chunks = jax.lax.map(lambda chunk: batch_sums(params, model_state, *chunk), (images, labels))
        return Scores(*(total.sum().astype(jnp.float32) / count for total in chunks))

    return scores
