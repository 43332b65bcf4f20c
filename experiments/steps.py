"""What a run compiles: the start, training and evaluation, all seeds in one program.

Each is written for one network and mapped over seeds as the model's `over_seeds` says. Images that fit stay on the
device as uint8 and an epoch is one scan, so that the host does nothing between steps; others come batch by batch.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import evaluation, gradients
from experiments.evaluation import Normalizer, Scores
from experiments.methods import Method, Trainable
from experiments.models import one_by_one
from experiments.orders import Order

# Independent streams of random numbers of one seed.
WEIGHTS, METHOD, ORDER, NOISE, RUN_ORDER = range(5)

Networks = tuple[chex.ArrayTree, chex.ArrayTree]
"""(params, model_state), with a leading seeds axis."""


class State(NamedTuple):
    """Everything that an epoch changes; in a run, every leaf has a leading seeds axis."""

    seed: jax.Array
    epoch: jax.Array
    trainable: Trainable
    opt_state: optax.OptState
    model_state: chex.ArrayTree


class Metrics(NamedTuple):
    """The task's loss and the method's penalty before an update; of an epoch, the means over its steps."""

    train_loss: jax.Array
    penalty: jax.Array


class Programs(NamedTuple):
    """The functions of a run, over all its seeds, to compile; data is shared by the seeds."""

    begin: Callable[[jax.Array, chex.ArrayTree, chex.ArrayTree], State]
    """(seeds, params, model_state) -> the state before the first epoch."""
    epoch: Callable[[State, jax.Array, jax.Array], tuple[State, Metrics]]
    """(state, images (n, h, w, c), labels (n,)) -> the state after one more epoch, and its metrics."""
    step: Callable[..., tuple[State, Metrics]]
    """(state, sums, images (n, h, w, c), labels (n,), number of the step, steps=number of steps in the epoch) -> the
    state after one more step, which after the last one is that after the epoch, and the sums with its metrics."""
    validate: Callable[[State, jax.Array, jax.Array], tuple[Scores, jax.Array, dict[str, jax.Array]]]
    """(state, chunks of images, of labels) -> scores of the finalised parameters, and what `inspect` returns."""
    inspect: Callable[[State], tuple[jax.Array, dict[str, jax.Array]]]
    """state -> the finalised parameters' number of non-zeros, and what the method observes, by name."""
    evaluate: Callable[..., Scores]
    """(params, model_state, images (n, h, w, c), labels (n,)) -> scores, as sums over the batch."""
    finalize: Callable[[Trainable], chex.ArrayTree]
    """trainable -> finalised parameters."""


def over_seeds(model: nn.Module) -> Callable[[Callable], Callable]:
    """Returns the model's way to map a function over seeds; a model that names none runs them one by one."""
    return getattr(model, "over_seeds", one_by_one)


def stream(seed: chex.Numeric, purpose: int, epoch: chex.Numeric = 0) -> chex.PRNGKey:
    """Returns the key for one purpose in one epoch: a function of its arguments alone, so that a run can resume."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), epoch)


def epoch_order(order: Order, seed: chex.Numeric, epoch: chex.Numeric, count: int, batch_size: int) -> jax.Array:
    """Returns the indices (steps, batch size) of an epoch's images, of `count` in all."""
    return order(stream(seed, RUN_ORDER), stream(seed, ORDER, epoch), count, batch_size)


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


def one(networks: Networks, seed: int = 0) -> Networks:
    """Returns the network of one seed, without a seeds axis."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[seed]), tuple(networks))


@functools.cache
def fresh(model: nn.Module, image_shape: tuple[int, int, int]) -> Callable[[jax.Array], Networks]:
    """Returns seeds -> initial (params, model_state); all runs of a network share what is compiled."""

    def one(seed):
        images = jnp.zeros((1, *image_shape), jnp.float32)
        model_state = dict(model.init(stream(seed, WEIGHTS), images))
        return model_state.pop("params"), model_state

    return jax.jit(over_seeds(model)(one))


def make_programs(
    model: nn.Module,
    method: Method,
    optimizer: optax.GradientTransformation,
    normalize: Normalizer,
    augment: Callable[[chex.PRNGKey, jax.Array], jax.Array],
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
    losses: gradients.Losses = optax.softmax_cross_entropy_with_integer_labels,
    precision: gradients.Precision = gradients.as_it_is,
    accumulate: int = 1,
) -> Programs:
    """Returns the functions of a run.

    Args:
      model: `apply(variables, images, train)` -> logits (n, classes).
      method: what is trained, and how the network runs with it.
      optimizer: of the method's trainable.
      normalize: uint8 images -> float images.
      augment: (key, uint8 images) -> uint8 images, in training.
      batch_size: images in a step.
      sharding: of a batch over the devices, along its first axis.
      losses: of the images of a batch, in training.
      precision: in which the network computes in training; parameters, losses and optimizer are float32.
      accumulate: number of parts of a batch that are computed one after another, for one update.

    Returns:
      Pure functions, not yet compiled.
    """
    over = method.over_seeds or over_seeds(model)
    gradient = gradients.in_parts(_gradient(model, method, losses, precision), accumulate, sharding)
    update = _update(gradient, optimizer, lambda key, x: normalize(augment(key, x)), sharding)
    one_epoch, one_step = _epoch(update, method.order, batch_size, sharding), _step(update)
    one_evaluation = evaluation.means(model, normalize)
    one_batch = evaluation.sums(model, normalize)

    def begin(seed, params, model_state):
        # An epoch overwrites its state's buffers, which must therefore not be the caller's.
        params, model_state = jax.tree.map(jnp.copy, (params, model_state))
        trainable = method.init(stream(seed, METHOD), params)
        return State(seed, jnp.zeros_like(seed), trainable, optimizer.init(trainable), model_state)

    def inspect(state, params):
        nonzeros = functools.reduce(jnp.add, [jnp.count_nonzero(leaf) for leaf in jax.tree.leaves(params)])
        return nonzeros, method.observe(state.trainable, state.opt_state)

    def validate(state, images, labels):
        params = method.finalize(state.trainable)
        return one_evaluation(params, state.model_state, images, labels), *inspect(state, params)

    return Programs(
        begin=over(begin),
        epoch=lambda state, *data: over(lambda one: one_epoch(one, *data))(state),
        step=lambda state, sums, *batch, steps: over(lambda *one: one_step(*one, *batch, steps))(state, sums),
        validate=lambda state, *data: over(lambda one: validate(one, *data))(state),
        inspect=over(lambda one: inspect(one, method.finalize(one.trainable))),
        evaluate=lambda params, model_state, *data: over(lambda *one: one_batch(*one, *data))(params, model_state),
        finalize=over(method.finalize),
    )


def _gradient(model, method, losses, precision):
    """Returns (trainable, model_state, images, labels, key) -> ((gradient, metrics), model_state) of one network."""

    def objective(trainable, model_state, images, labels, key):
        variables = {"params": precision(method.forward(trainable)), **model_state}
        logits, model_state = model.apply(
            variables, precision(images), train=True, mutable=list(model_state), rngs={"dropout": key}
        )
        loss = losses(logits.astype(jnp.float32), labels).mean()
        penalty = jnp.asarray(method.penalty(trainable), jnp.float32)
        return loss + penalty, (Metrics(loss, penalty), model_state)

    def gradient(*batch):
        grads, (metrics, model_state) = jax.grad(objective, has_aux=True)(*batch)
        return (grads, metrics), model_state

    return gradient


def _update(gradient, optimizer, prepare, sharding):
    """Returns (carry, images, labels, key) -> (carry, metrics): a step of one network; carry is `state[2:]`."""

    def update(carry, images, labels, key):
        trainable, opt_state, model_state = carry
        prepare_key, model_key = jax.random.split(key)
        inputs = jax.lax.with_sharding_constraint(prepare(prepare_key, images), sharding)
        (grads, metrics), model_state = gradient(trainable, model_state, inputs, labels, model_key)
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        return (optax.apply_updates(trainable, updates), opt_state, model_state), metrics

    return update


def _epoch(update, order, batch_size, sharding):
    """Returns (state, images, labels) -> (state, metrics): an epoch of one network, over images on the device."""

    def epoch(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, Metrics]:
        batches = epoch_order(order, state.seed, state.epoch, labels.size, batch_size)
        keys = jax.random.split(stream(state.seed, NOISE, state.epoch), len(batches))

        def step(carry, batch):
            indices, key = batch
            indices = jax.lax.with_sharding_constraint(indices, sharding)
            return update(carry, images[indices], labels[indices], key)

        carry, metrics = jax.lax.scan(step, state[2:], (batches, keys))
        return State(state.seed, state.epoch + 1, *carry), jax.tree.map(jnp.mean, metrics)

    return epoch


def _step(update):
    """Returns `Programs.step` of one network: the same update and random numbers as `_epoch` has at that step."""

    def step(state, sums, images, labels, number, steps):
        keys = jax.random.split(stream(state.seed, NOISE, state.epoch), steps)
        carry, metrics = update(state[2:], images, labels, keys[number])
        epoch = state.epoch + (number == steps - 1).astype(state.epoch.dtype)
        return State(state.seed, epoch, *carry), jax.tree.map(jnp.add, sums, metrics)

    return step
