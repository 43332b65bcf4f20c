"""What a run compiles: the start, an epoch of training and an evaluation, all seeds in one program.

Each is written for one network and mapped over seeds as the model's `over_seeds` says. The images stay on the device
as uint8 and an epoch is one scan, so that the host does nothing between steps.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.methods import Method, Trainable
from experiments.models import one_by_one

# Independent streams of random numbers of one seed.
WEIGHTS, METHOD, ORDER, NOISE = range(4)

Normalizer = Callable[[jax.Array], jax.Array]


class State(NamedTuple):
    """Everything that an epoch changes; in a run, every leaf has a leading seeds axis."""

    seed: jax.Array
    epoch: jax.Array
    trainable: Trainable
    opt_state: optax.OptState
    model_state: chex.ArrayTree


class Metrics(NamedTuple):
    """Means over the steps of an epoch, each before its update: the task's loss and the method's penalty."""

    train_loss: jax.Array
    penalty: jax.Array


class Scores(NamedTuple):
    """How well a network does on a split: the mean loss, and the shares of images it gets right."""

    loss: jax.Array
    accuracy: jax.Array
    top5: jax.Array


class Programs(NamedTuple):
    """The functions of a run, over all its seeds, to compile; data is shared by the seeds."""

    fresh: Callable[[jax.Array], tuple[chex.ArrayTree, chex.ArrayTree]]
    """seeds -> initial (params, model_state)."""
    begin: Callable[[jax.Array, chex.ArrayTree, chex.ArrayTree], State]
    """(seeds, params, model_state) -> the state before the first epoch."""
    epoch: Callable[[State, jax.Array, jax.Array], tuple[State, Metrics]]
    """(state, images (n, h, w, c), labels (n,)) -> the state after one more epoch, and its metrics."""
    validate: Callable[[State, jax.Array, jax.Array], tuple[Scores, jax.Array]]
    """(state, chunks of images, of labels) -> scores and numbers of non-zeros of the finalised parameters."""
    finalize: Callable[[Trainable], chex.ArrayTree]
    """trainable -> finalised parameters."""


def over_seeds(model: nn.Module) -> Callable[[Callable], Callable]:
    """Returns the model's way to map a function over seeds; a model that names none runs them one by one."""
    return getattr(model, "over_seeds", one_by_one)


def stream(seed: chex.Numeric, purpose: int, epoch: chex.Numeric = 0) -> chex.PRNGKey:
    """Returns the key for one purpose in one epoch: a function of its arguments alone, so that a run can resume."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), epoch)


def normalizer(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalizer:
    """Returns uint8 images (n, h, w, c) -> float32 (images / 255 - mean) / std, with a mean and a std a channel."""
    scale = np.float32(1 / (255 * np.asarray(std))).reshape(1, 1, 1, -1)
    shift = np.float32(np.asarray(mean) / np.asarray(std)).reshape(1, 1, 1, -1)
    return lambda images: images.astype(jnp.float32) * scale - shift


def crop_and_flip(key: chex.PRNGKey, images: jax.Array, border: int = 4) -> jax.Array:
    """Returns random crops of the images in a border of zeros, half of them mirrored left to right.

    Args:
      key: draws an offset in {0, ..., 2 border}^2 and a fair coin for every image.
      images: (n, h, w, c), of any dtype; zero is black, so crop before normalising.
      border: width of the border, in pixels.

    Returns:
      Images of the same shape and dtype.
    """
    offset_key, coin_key = jax.random.split(key)
    count, *size = images.shape
    padded = jnp.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
    offsets = jax.random.randint(offset_key, (count, 2), 0, 2 * border + 1)
    crop = jax.vmap(lambda image, offset: jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), size))
    coins = jax.random.bernoulli(coin_key, shape=(count, 1, 1, 1))
    crops = crop(padded, offsets)
    return jnp.where(coins, crops[:, :, ::-1], crops)


def make_programs(
    model: nn.Module,
    method: Method,
    optimizer: optax.GradientTransformation,
    normalize: Normalizer,
    augment: Callable[[chex.PRNGKey, jax.Array], jax.Array],
    image_shape: tuple[int, int, int],
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
) -> Programs:
    """Returns the functions of a run.

    Args:
      model: `apply(variables, images, train)` -> logits (n, classes).
      method: what is trained, and how the network runs with it.
      optimizer: of the method's trainable.
      normalize: uint8 images -> float images.
      augment: (key, uint8 images) -> uint8 images, in training.
      image_shape: (h, w, c).
      batch_size: images in a step.
      sharding: of a batch over the devices, along its first axis.

    Returns:
      Pure functions, not yet compiled.
    """
    over = over_seeds(model)
    one_epoch = _epoch(model, method, optimizer, lambda key, x: normalize(augment(key, x)), batch_size, sharding)
    one_evaluation = evaluation(model, normalize)

    def fresh(seed):
        images = jnp.zeros((1, *image_shape), jnp.float32)
        model_state = dict(model.init(stream(seed, WEIGHTS), images))
        return model_state.pop("params"), model_state

    def begin(seed, params, model_state):
        # An epoch overwrites its state's buffers, which must therefore not be the caller's.
        params, model_state = jax.tree.map(jnp.copy, (params, model_state))
        trainable = method.init(stream(seed, METHOD), params)
        return State(seed, jnp.zeros_like(seed), trainable, optimizer.init(trainable), model_state)

    def validate(state, images, labels):
        params = method.finalize(state.trainable)
        nonzeros = reduce(jnp.add, [jnp.count_nonzero(leaf) for leaf in jax.tree.leaves(params)])
        return one_evaluation(params, state.model_state, images, labels), nonzeros

    return Programs(
        fresh=over(fresh),
        begin=over(begin),
        epoch=lambda state, *data: over(lambda one: one_epoch(one, *data))(state),
        validate=lambda state, *data: over(lambda one: validate(one, *data))(state),
        finalize=over(method.finalize),
    )


def evaluation(model: nn.Module, normalize: Normalizer) -> Callable[..., Scores]:
    """Returns the evaluation of one network.

    Args:
      model: `apply(variables, images, train)` -> logits (n, classes).
      normalize: uint8 images -> float images.

    Returns:
      (params, model_state, images (chunks, n, h, w, c), labels (chunks, n), where -1 is padding) -> scores.
    """

    def scores(params, model_state, images, labels):
        def totals(chunk):
            images, labels = chunk
            logits = model.apply({"params": params, **model_state}, normalize(images), train=False)
            known = labels >= 0
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
            best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
            right = best == jnp.where(known, labels, -1)[:, None]
            return jnp.where(known, losses, 0).sum(), right[:, 0].sum(), right.sum()

        count = (labels >= 0).sum().astype(jnp.float32)
        sums = jax.lax.map(totals, (images, labels))
        return Scores(*(total.sum().astype(jnp.float32) / count for total in sums))

    return scores


def _epoch(model, method, optimizer, prepare, batch_size, sharding):
    """Returns (state, images, labels) -> (state, metrics): an epoch of one network, without its last, partial batch."""

    def objective(trainable, model_state, images, labels, key):
        variables = {"params": method.forward(trainable), **model_state}
        logits, model_state = model.apply(
            variables, images, train=True, mutable=list(model_state), rngs={"dropout": key}
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        penalty = jnp.asarray(method.penalty(trainable), jnp.float32)
        return loss + penalty, (Metrics(loss, penalty), model_state)

    def epoch(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, Metrics]:
        steps = labels.size // batch_size
        order = jax.random.permutation(stream(state.seed, ORDER, state.epoch), labels.size)
        batches = order[: steps * batch_size].reshape(steps, batch_size)
        keys = jax.random.split(stream(state.seed, NOISE, state.epoch), steps)

        def step(carry, batch):
            trainable, opt_state, model_state = carry
            indices, key = batch
            prepare_key, model_key = jax.random.split(key)
            indices = jax.lax.with_sharding_constraint(indices, sharding)
            inputs = jax.lax.with_sharding_constraint(prepare(prepare_key, images[indices]), sharding)
            grads, (metrics, model_state) = jax.grad(objective, has_aux=True)(
                trainable, model_state, inputs, labels[indices], model_key
            )
            updates, opt_state = optimizer.update(grads, opt_state, trainable)
            return (optax.apply_updates(trainable, updates), opt_state, model_state), metrics

        carry, metrics = jax.lax.scan(step, state[2:], (batches, keys))
        return State(state.seed, state.epoch + 1, *carry), jax.tree.map(jnp.mean, metrics)

    return epoch
