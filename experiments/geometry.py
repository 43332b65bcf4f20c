"""Where two solutions lie: in one valley of the training loss, or with a barrier between them?

The training images of a network come in equal batches, `(images (m, n, h, w, c), labels (m, n))`, already normalised.
Running statistics of batch normalisation belong to one network: at every other point they are computed anew.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from experiments import steps
from experiments.data import Dataset

Batches = tuple[jax.Array, jax.Array]
"""`(images (m, n, h, w, c) float32, labels (m, n))`."""
Network = tuple[chex.ArrayTree, chex.ArrayTree]
"""`(params, model_state)`, of one seed."""

POINTS = 61  # on a curve, as the authors take


class Projection(NamedTuple):
    """How much of the ways from one run to others lies in the steepest directions at the first, over training."""

    epochs: np.ndarray
    shares: dict[str, np.ndarray]
    """|V^T d| / |d| of every other run at each of the epochs, in [0, 1]."""
    values: np.ndarray
    """The largest eigenvalues of the first run's Hessian, (epochs, k), falling."""
    chance: float
    """(k / n)^(1/2), about what a random displacement has."""


class Way(NamedTuple):
    """The training loss on two ways from one network to another, at `POINTS` points."""

    control: chex.ArrayTree
    """The control point of the trained Bezier curve."""
    curve: np.ndarray
    segment: np.ndarray
    """On the straight line."""

    @property
    def barrier(self) -> float:
        """How far the loss on the curve rises above its higher end."""
        return float(self.curve.max() - max(self.curve[0], self.curve[-1]))

    @property
    def wall(self) -> float:
        """How far the loss on the straight line rises above its higher end."""
        return float(self.segment.max() - max(self.segment[0], self.segment[-1]))


class Landscape(NamedTuple):
    """The training loss on the plane through two networks and the control point of the curve between them."""

    loss: np.ndarray
    """(ys, xs)."""
    xs: np.ndarray
    ys: np.ndarray
    points: np.ndarray
    """Coordinates of the first network, the control point and the second network, (3, 2)."""


def batches(dataset: Dataset, count: int, size: int) -> Batches:
    """Returns the first `count` training images, or all if there are fewer, normalised, in batches of one size.

    Args:
      dataset: its training images are in a fixed order; those of a stream are transformed as in training.
      count: about how many; what does not fill a batch is left out.
      size: images in a batch; fewer if `count` is smaller.

    Returns:
      `(images (m, n, h, w, c) float32, labels (m, n))`.
    """
    count = min(count, len(dataset.train))
    size = min(size, count)
    images, labels = dataset.train.read(np.arange(count // size * size))
    images = steps.normalizer(dataset.mean, dataset.std)(jnp.asarray(images))
    return images.reshape(-1, size, *images.shape[1:]), jnp.asarray(labels).reshape(-1, size)


def projection(
    model: nn.Module, first: dict[int, Network], others: dict[str, dict[int, Network]], data: Batches, k: int
) -> Projection:
    """Returns the shares of displacements that lie in the top eigenspace of the Hessian at the first run's networks.

    The network runs in evaluation mode: the authors leave it in training mode, where dropout makes the Hessian random.

    Args:
      model: `apply(variables, images, train)` -> logits.
      first: snapshots `{epoch: network}` of the run whose Hessian is taken.
      others: snapshots of other runs at the same epochs, by name.
      data: on which the loss is taken.
      k: number of directions.

    Returns:
      A `Projection`.
    """
    loss, whole = partial(_evaluated, model), len(data[1]) == 1
    if whole:  # in a loop, second derivatives of a convolution are several times slower on a CPU
        data = tuple(part[0] for part in data)
    else:
        loss = sj.directional.over_batches(loss)
    spectra, shares = [], {name: [] for name in others}
    for epoch, (params, state) in sorted(first.items()):
        inputs = (state if whole else _repeated(state, data), *data)
        values, vectors = sj.directional.top_eigenspace(loss, params, k, *inputs)
        spectra.append(np.asarray(values))
        for name, snapshots in others.items():
            moved = jax.tree.map(jnp.subtract, snapshots[epoch][0], params)
            shares[name].append(float(sj.directional.projection_share(moved, vectors)))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    shares = {name: np.array(values) for name, values in shares.items()}
    return Projection(np.array(sorted(first)), shares, np.array(spectra), (k / size) ** 0.5)


def way(
    model: nn.Module,
    first: Network,
    second: Network,
    data: Batches,
    seen: Batches,
    optimizer: optax.GradientTransformation,
    epochs: int,
) -> Way:
    """Trains a quadratic Bezier curve between two networks, and returns the loss along it and along the straight line.

    Args:
      model: `apply(variables, images, train)` -> logits.
      first: at t = 0.
      second: at t = 1.
      data: the training images on which the losses are evaluated.
      seen: the training images that the curve is trained on, a batch a step.
      optimizer: of the control point.
      epochs: passes over `seen`.

    Returns:
      A `Way`.
    """
    (start, state), (end, _) = first, second
    keys = jax.random.split(jax.random.key(1), len(seen[1]))
    steps = epochs * len(keys)
    loss, inputs = _of(model, _trained), (_repeated(state, seen), *seen, keys)
    control = sj.directional.connect(loss, start, end, optimizer, steps, jax.random.key(0), *inputs)
    loss, ts = _of(model, _recalibrated), jnp.linspace(0, 1, POINTS)
    ways = (control, sj.directional.midpoint(start, end))
    losses = (sj.directional.loss_along(loss, start, middle, end, ts, state, *data) for middle in ways)
    return Way(control, *map(np.asarray, losses))


def landscape(model: nn.Module, first: Network, control: chex.ArrayTree, second: Network, data: Batches, points: int):
    """Returns the `Landscape` of the plane through two networks and a control point, on `points` x `points`."""
    plane = sj.directional.plane(first[0], control, second[0])
    xs, ys = sj.directional.grid(plane, points)
    loss = sj.directional.loss_on_plane(_of(model, _recalibrated), plane, xs, ys, first[1], *data)
    return Landscape(*map(np.asarray, (loss, xs, ys, plane.points)))


def recomputed(
    apply: Callable[[chex.ArrayTree, jax.Array], chex.ArrayTree], state: chex.ArrayTree, images: jax.Array
) -> chex.ArrayTree:
    """Returns the running statistics of a network as the mean over batches of each batch's own.

    What a batch's own statistics are follows from the moving average itself, new = momentum old + (1 - momentum) own:
    from an old value of 0 it gives (1 - momentum) own, and one from an old value of 1 differs from it by the momentum.

    Args:
      apply: (state, images (n, ...)) -> the state after a training step's moving average.
      state: the statistics to replace; only their shapes matter.
      images: (m, n, ...).

    Returns:
      A tree like `state`.
    """

    def own(images):
        low, high = (apply(jax.tree.map(fill, state), images) for fill in (jnp.zeros_like, jnp.ones_like))
        return jax.tree.map(lambda low, high: low / (1 - (high - low)), low, high)

    return jax.tree.map(lambda leaf: leaf.mean(0), jax.lax.map(own, images)) if state else state


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@cache
def _of(model: nn.Module, loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a loss of a model, the same object every time: what is compiled for it is found again."""
    return partial(loss, model)


def _evaluated(model, params, state, images, labels) -> jax.Array:
    """Returns the loss on one batch in evaluation mode."""
    return _cross_entropy(model.apply({"params": params, **state}, images, train=False), labels)


def _trained(model, params, state, images, labels, key) -> jax.Array:
    """Returns the loss on one batch in training mode: with the batch's statistics, and dropout."""
    logits, _ = model.apply({"params": params, **state}, images, train=True, mutable=list(state), rngs={"dropout": key})
    return _cross_entropy(logits, labels)


def _recalibrated(model, params, state, images, labels) -> jax.Array:
    """Returns the mean loss over batches in evaluation mode, with statistics computed for these parameters."""

    def updated(state, images):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply({"params": params, **state}, images, train=True, mutable=list(state), rngs=rngs)[1]

    state = recomputed(updated, state, images)
    return jnp.mean(jax.lax.map(lambda batch: _evaluated(model, params, state, *batch), (images, labels)))


def _repeated(state: chex.ArrayTree, data: Sequence[jax.Array]) -> chex.ArrayTree:
    """Returns the state once for every batch, for functions that take one of everything a batch."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(data[1]), *leaf.shape)), state)
