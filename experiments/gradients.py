"""How the gradient of a batch is computed: its loss, the precision of the network, and the batch in parts."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

Losses = Callable[[jax.Array, jax.Array], jax.Array]
"""(logits float32 (n, classes), labels int32 (n,)) -> losses (n,)."""

Precision = Callable[[chex.ArrayTree], chex.ArrayTree]
"""Parameters or images -> what the network computes with; differentiable."""


def cross_entropy(smoothing: float = 0.0) -> Losses:
    """Returns the cross-entropy with smoothed labels, (1 - smoothing) one-hot + smoothing / classes.

    Szegedy et al., *Rethinking the Inception Architecture for Computer Vision* (2016), section 7.

    Args:
      smoothing: in [0, 1).
    """
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels

    def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, smoothing))

    return losses


def as_it_is(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the tree: the network computes in float32."""
    return tree


def bfloat16(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Returns float32 arrays as bfloat16, in which Flax's layers then compute; batch norm averages in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf, tree)


def in_parts(gradient: Callable, parts: int, sharding: NamedSharding) -> Callable:
    """Returns a gradient of a batch as the mean over parts of it, which take less memory one after another.

    The parameters stay as they are from part to part. Batch norm sees a part at a time, and dropout draws for each.

    Args:
      gradient: (trainable, model_state, images, labels, key) -> (tree of means over images, model_state).
      parts: their number, which divides the images of each device.
      sharding: of a batch, along its first axis; every part has images of all devices.

    Returns:
      A function as `gradient` is.
    """
    if parts == 1:
        return gradient
    apart = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))

    def split(leaf: jax.Array) -> jax.Array:
        # Every so many images, and not so many in a row, so that none has to move to another device.
        leaf = leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(leaf, apart)

    def mean(trainable, model_state, images, labels, key) -> tuple[Any, Any]:
        batches = *jax.tree.map(split, (images, labels)), jax.random.split(key, parts)

        def add(carry, batch):
            total, model_state = carry
            found, model_state = gradient(trainable, model_state, *batch)
            return (jax.tree.map(jnp.add, total, found), model_state), None

        shapes, _ = jax.eval_shape(gradient, trainable, model_state, *(leaf[0] for leaf in batches))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (total, model_state), _ = jax.lax.scan(add, (zeros, model_state), batches)
        return jax.tree.map(lambda leaf: leaf / parts, total), model_state

    return mean
