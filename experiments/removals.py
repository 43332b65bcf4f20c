"""Units removed from copies of a network, in many ways at once, and what each way does to a loss."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from experiments import evaluation, unit_groups
from experiments.evaluation import Normalizer
from experiments.splits import Batch
from sparsejax.units import Statistics, UnitGraph

SCORES = ("rand", "norm", "rs", "abs_rs", "mrs", "abs_mrs")
REPLACED = ("zero", "mean")

Ways = dict[str, jax.Array]
"""`{group: bool (ways, units)}`: which units stay in each of many copies; every group is there."""


class Choice(NamedTuple):
    """Which units compete for removal."""

    layers: str
    """"all", or "firstconv", "midconv", "lastconv" or "firstdense"."""
    amount: float
    """The share of every layer's units that goes, or how many if it is an integer."""

    @property
    def name(self) -> str:
        """For tables and figures."""
        return f"{self.layers} {self.amount:g}"


def layers(graph: UnitGraph) -> dict[str, tuple[str, ...]]:
    """Returns the groups of units that a choice of layers means, by its name.

    Of n convolutions, number (n + 1) // 2 is the middle one. The output layer has no units.

    Args:
      graph: of a plain network, whose layers Linen has numbered.
    """
    leaves = sj.tree.named(graph.params)
    ranks = {
        name: max(leaves[m.leaf].ndim for m in group.members if not m.reads) for name, group in graph.groups.items()
    }
    numbered = sorted(ranks, key=lambda name: int(name.rsplit("_", 1)[1]))
    convolutions = [name for name in numbered if ranks[name] == 4]
    dense = [name for name in numbered if ranks[name] == 2]
    chosen = {"all": (*convolutions, *dense)}
    if convolutions:
        chosen |= {"firstconv": convolutions[:1], "lastconv": convolutions[-1:]}
        chosen |= {"midconv": convolutions[(len(convolutions) - 1) // 2 :][:1]}
    return {name: tuple(groups) for name, groups in {**chosen, "firstdense": dense[:1]}.items()}


class Copies:
    """Compiled once for a network: scores and means of its units, copies without some, their losses, and training.

    Variables are `{"params": params, **other collections}`, of one network without a seeds axis.
    """

    def __init__(
        self,
        model: nn.Module,
        image_shape: tuple[int, int, int],
        normalize: Normalizer,
        choices: Sequence[Choice],
        descent: optax.GradientTransformation,
        at: str,
    ):
        """Traces a network.

        Args:
          model: `apply(variables, images, train)` -> logits.
          image_shape: (h, w, c).
          normalize: uint8 images -> float images.
          choices: which units compete.
          descent: what trains copies.
          at: where activations are taken, as `sparsejax.units.statistics` has it.

        Raises:
          ValueError: a choice is of a layer that the network does not have.
        """
        self.model, self.normalize, self.choices, self.descent, self.at = model, normalize, choices, descent, at
        self.graph, self.loss = unit_groups.graph(model, image_shape), evaluation.loss(model, normalize)
        self.layers = layers(self.graph)
        for choice in choices:
            if choice.layers not in self.layers:
                raise ValueError(
                    f"layers={choice.layers!r}: {type(model).__name__} has {', '.join(self.layers)}; choose among them"
                )
        self.select = jax.jit(self._select)
        self.without = jax.jit(self._without)
        self._pairs = jax.jit(self._losses_of_pairs)
        self._each = jax.jit(self._losses_of_each)
        self._gradient = jax.jit(jax.grad(self.loss))
        self._along = jax.jit(self._derivatives)
        self._steps = jax.jit(self._several_steps)

    def statistics(self, variables: chex.ArrayTree, batches: Iterable[Batch], key: chex.PRNGKey) -> Statistics:
        """Returns means and scores over batches of images."""
        return sj.units.statistics(self.graph, self.loss, variables, batches, key=key, at=self.at)

    def losses(self, variables: chex.ArrayTree, ways: Ways, stats: Statistics, batches: Sequence[Batch]) -> np.ndarray:
        """Returns the loss of copies without units, (ways, 2): as `REPLACED` has it."""
        return _mean(lambda *batch: self._pairs(variables, ways, stats, *batch), batches)

    def first_order(
        self, variables: chex.ArrayTree, ways: Ways, stats: Statistics, batches: Sequence[Batch]
    ) -> np.ndarray:
        """Returns by how much means have the lower loss than zeros to first order, (ways,).

        That is the derivative of the loss along the biases that take the means: 0 at a minimum of the loss.
        """
        counts = np.array([len(labels) for _, labels in batches], np.float32)
        gradients = [self._gradient(variables, *batch) for batch in batches]
        gradient = jax.tree.map(lambda *leaves: np.average(leaves, axis=0, weights=counts), *gradients)
        return np.asarray(self._along(variables, gradient, ways, stats))

    def losses_of(self, copies: chex.ArrayTree, batches: Sequence[Batch]) -> np.ndarray:
        """Returns the losses of networks with a leading axis, (networks,)."""
        return _mean(lambda *batch: self._each(copies, *batch), batches)

    def tuned(
        self,
        copies: chex.ArrayTree,
        ways: Ways,
        training: Iterable[Batch],
        batches: Sequence[Batch],
        marks: Sequence[int],
    ) -> np.ndarray:
        """Returns the losses of copies after numbers of training steps in which removed units stay removed.

        Args:
          copies: variables with a leading axis.
          ways: which units each copy has left.
          training: blocks of steps: images (steps, n, h, w, c) and labels (steps, n), the same for all copies.
          batches: on which losses are measured.
          marks: after which numbers of steps; each ends a block.

        Returns:
          (copies, marks).
        """
        masks = jax.vmap(self.graph.push)(ways)
        state = copies, jax.vmap(self.descent.init)(copies["params"])
        done, found = 0, []
        for images, labels in training:
            state = self._steps(jax.random.key(done), *state, masks, images, labels)
            done += len(labels)
            if done in marks:
                found.append(self.losses_of(state[0], batches))
        return np.stack(found, -1)

    def squares(self, variables: chex.ArrayTree, images: jax.Array, group: str) -> np.ndarray:
        """Returns the squared activations of a convolution's units behind the ReLU, (images, h, w, units)."""
        layer, number = group.split("/")[-1].split("_")
        name = f"BatchNorm_{number}" if self.model.normalised else f"{layer}_{number}"
        _, seen = self.model.apply(
            variables,
            self.normalize(images),
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == name,
        )
        return np.square(np.maximum(seen["intermediates"][name]["__call__"][0], 0))

    def _select(self, stats: Statistics) -> Ways:
        """Returns what stays of every group, (choices x scores, units), choices outside."""
        scores = {n: jnp.stack([getattr(stats, score)[n] for score in SCORES]) for n in self.graph.groups}
        found = {name: [] for name in scores}
        for layers, amount in self.choices:
            chosen = {name: scores[name] for name in self.layers[layers]}
            kept = jax.vmap(partial(sj.units.lowest, amount=amount))(chosen)
            for name, rows in found.items():
                rows.append(kept.get(name, jnp.ones(scores[name].shape, bool)))
        return {name: jnp.concatenate(rows) for name, rows in found.items()}

    def _without(self, variables: chex.ArrayTree, ways: Ways, stats: Statistics) -> chex.ArrayTree:
        """Returns copies without units, (ways x 2) of them, ways outside."""
        pairs = jax.vmap(lambda kept: _stacked([self._removed(variables, kept, stats, how) for how in REPLACED]))(ways)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), pairs)

    def _removed(self, variables: chex.ArrayTree, kept: dict[str, jax.Array], stats: Statistics, how: str):
        return sj.units.remove(self.graph, variables, kept, how, stats)

    def _losses_of_pairs(self, variables, ways, stats, images, labels):
        def pair(kept):
            return jnp.stack(
                [self.loss(self._removed(variables, kept, stats, how), images, labels) for how in REPLACED]
            )

        return jax.lax.map(pair, ways)

    def _derivatives(self, variables, gradient, ways, stats):
        def derivative(kept):
            zero, mean = (self._removed(variables, kept, stats, how) for how in REPLACED)
            return optax.tree.vdot(gradient, jax.tree.map(jnp.subtract, zero, mean))

        return jax.lax.map(derivative, ways)

    def _losses_of_each(self, copies, images, labels):
        return jax.lax.map(lambda variables: self.loss(variables, images, labels), copies)

    def _several_steps(self, key, copies, opt_states, masks, images, labels):
        """Returns every copy, and its optimizer's state, some steps later; they drop the same inputs."""
        keys = jax.random.split(key, len(labels))

        def objective(params, state, images, labels, key):
            rngs = {"dropout": key}
            variables = {"params": params, **state}
            logits, state = self.model.apply(variables, self.normalize(images), True, mutable=list(state), rngs=rngs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

        def step(mask, carry, batch):
            variables, opt_state = carry
            state = {name: value for name, value in variables.items() if name != "params"}
            grads, state = jax.grad(objective, has_aux=True)(variables["params"], state, *batch)
            updates, opt_state = self.descent.update(grads, opt_state, variables["params"])
            moved = {"params": optax.apply_updates(variables["params"], updates), **state}
            return (sj.masks.apply(mask, moved), opt_state), None

        def one(copy):
            variables, opt_state, mask = copy
            return jax.lax.scan(partial(step, mask), (variables, opt_state), (images, labels, keys))[0]

        return jax.lax.map(one, (copies, opt_states, masks))


def repeated(ways: Ways) -> Ways:
    """Returns every way once for each of `REPLACED`: those of what `Copies.without` returns."""
    return jax.tree.map(lambda kept: jnp.repeat(kept, len(REPLACED), axis=0), ways)


def _stacked(trees: Sequence[chex.ArrayTree]) -> chex.ArrayTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _mean(function, batches: Sequence[Batch]) -> np.ndarray:
    """Returns the mean over examples of what a function returns of batches."""
    counts = [len(labels) for _, labels in batches]
    return np.average([function(*batch) for batch in batches], axis=0, weights=counts)
