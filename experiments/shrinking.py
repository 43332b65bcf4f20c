"""A trained network without the units that matter least: masked, fine-tuned, and cut to its size at the end.

Units differ from seed to seed, and so do the shapes of what is left. Networks are therefore trained side by side as
they were, with zeros, and every seed's is cut when it is trained.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import sparsejax as sj
from experiments import evaluation, models, results, stages, steps, timing, unit_groups
from experiments.remembered import once
from experiments.results import Measured, spread
from experiments.stages import Stages
from experiments.steps import Networks
from experiments.training import Run
from sparsejax.budgets import Budget
from sparsejax.units import Statistics

FLOOR = 0.1
"""The share of every layer's units that stays."""
BATCHES = 16
"""Training batches on which the units of a network are measured."""
IMAGES = 256
"""Test images in a forward pass that is timed."""
ROUNDS = 50

Kept = dict[str, np.ndarray]
"""`{group: bool (units,)}`: the units of one network that stay."""


class Cut(NamedTuple):
    """Networks cut to their size; arrays run over seeds."""

    name: str
    accuracy: np.ndarray
    """Top-1 accuracy of the small networks on the test split, in percent."""
    parameters: np.ndarray
    multiply_adds: np.ndarray
    """For one image, counted from the small network's own program."""
    dense: int
    """Those of the dense network."""
    difference: np.ndarray
    """The largest difference of a logit to the network with zeros, over the test split."""
    seconds: np.ndarray
    """A forward pass, as the median over rounds."""
    relative: np.ndarray
    """The median of its ratio to that of the dense network in the same round."""
    images: int
    """How many images it takes."""


def rows(workshop: Stages, start: Run, share: float) -> tuple[list[Measured], Cut]:
    """Returns networks without units, as cut and fine-tuned in the last cycle, and the last of them cut to its size.

    Args:
      workshop: what to train with.
      start: trained networks.
      share: of the multiply-adds, that stays.

    Returns:
      The networks with zeros in the place of units, with their means, and these fine-tuned; and a `Cut` of the last.
    """
    kept, removed = without(workshop, start, multiply_adds(workshop, share), FLOOR)
    found = []
    for replace in ("zero", "mean"):
        params, state = removed[replace]
        as_cut = dataclasses.replace(start, params=params, model_state=state)
        found.append(workshop.row(f"units replaced by {replace}s", as_cut))
    name = found[-1].name + ", fine-tuned"
    found.append(stages.tuned_row(workshop, name, share, start, removed["mean"]))
    return found, cut(workshop, found[-1], kept)


def multiply_adds(workshop: Stages, share: float) -> Budget:
    """Returns the budget of a share of the dense network's multiply-adds, for `without`."""
    graph, shapes = (of(workshop.model, workshop.image) for of in (unit_groups.graph, models.variable_shapes))
    return sj.budgets.multiply_adds(graph.params, sj.report.multiply_adds(workshop.model.apply, *shapes), share)


def without(workshop: Stages, start: Run, budget: Budget, floor: float) -> tuple[list[Kept], dict[str, Networks]]:
    """Chooses units of each seed's network by the saliency of mean replacement, and removes the others.

    Args:
      workshop: with the data on which units are measured.
      start: trained networks.
      budget: of what stays, over all variables of a network.
      floor: the share of every layer's units that stays at least.

    Returns:
      The units of every seed that stay, and `{"zero" | "mean": networks}` with that in the place of the others.
    """
    size = workshop.recipe.batch_size
    count = min(BATCHES, len(workshop.dataset.train) // size)
    remove = partial(_without, workshop, start, budget, floor, count)
    return once(workshop.directory / "removed", (start.networks, budget, floor, size, count), remove)


def _without(
    workshop: Stages, start: Run, budget: Budget, floor: float, count: int
) -> tuple[list[Kept], dict[str, Networks]]:
    """Does what `without` says, on a number of training batches."""
    data, size = workshop.dataset, workshop.recipe.batch_size
    graph, loss = unit_groups.graph(workshop.model, workshop.image), _loss(workshop.model, data.mean, data.std)

    @jax.jit
    def prune(variables: chex.ArrayTree, stats: Statistics):
        kept = sj.units.affordable(graph, sj.scores.normalized(stats.abs_mrs), budget, floor)
        remove = partial(sj.units.remove, graph, variables, kept, stats=stats, unfolded="drop")
        return kept, {replace: remove(replace) for replace in ("zero", "mean")}

    order = np.random.default_rng(0).permutation(len(data.train))[: count * size]
    batches = [data.train.read(indices) for indices in np.split(order, count)]
    kept, networks = [], {"zero": [], "mean": []}
    for variables in unstacked(start):
        stats = sj.units.statistics(graph, loss, variables, batches)
        alive, left = jax.device_get(prune(variables, stats))
        kept.append(alive)
        for replace, found in networks.items():
            found.append((left[replace].pop("params"), left[replace]))
    return kept, {how: jax.tree.map(lambda *leaves: np.stack(leaves), *found) for how, found in networks.items()}


def cut(workshop: Stages, network: Measured, kept: Sequence[Kept]) -> Cut:
    """Cuts every seed's network, tests it, and times it against the dense one.

    Args:
      workshop: with the dense network.
      network: the masked networks.
      kept: the units of every seed that stay.

    Returns:
      A `Cut`.
    """
    model, graph = workshop.model, unit_groups.graph(workshop.model, workshop.image)
    everything, (images, _) = unstacked(network.run), next(_batches(workshop))
    dense = timing.compiled(model.apply, everything[0], images)[0]
    runs, counts, accuracies, differences = {"dense": partial(dense, everything[0], images)}, [], [], []
    for seed, (variables, alive) in enumerate(zip(everything, kept, strict=True)):
        function, small = graph.small(alive), sj.shrink(graph, variables, alive)
        program = timing.compiled(function, small, images)[0]
        runs[f"seed {seed}"] = partial(program, small, images)
        accuracy, difference = _tested(workshop, partial(program, small), partial(dense, variables))
        accuracies.append(accuracy)
        differences.append(difference)
        params = sum(leaf.size for leaf in jax.tree.leaves(small["params"]))
        counts.append((params, sj.report.multiply_adds(function, small, images[:1]).total))
    seconds = timing.interleaved(runs, ROUNDS)
    reference = seconds.pop("dense")
    return Cut(
        f"{network.name}, cut",
        np.array(accuracies),
        *np.array(counts).T,
        network.reports[0].multiply_adds,
        np.array(differences),
        np.array([np.median(taken) for taken in seconds.values()]),
        np.array([timing.ratio(taken, reference)[0] for taken in seconds.values()]),
        len(images),
    )


def small(workshop: Stages, run: Run) -> tuple[Callable, chex.ArrayTree]:
    """Returns the first seed's network without the units of which nothing is left: a function, and its variables."""
    graph, variables = unit_groups.graph(workshop.model, workshop.image), unstacked(run)[0]
    alive = {}
    for name, total in graph.pull(jax.tree.map(jnp.abs, variables)).items():
        alive[name] = np.array(total > 0)
        alive[name][0] |= not alive[name].any()  # a layer keeps a unit
    return graph.small(alive), sj.shrink(graph, variables, alive)


def unstacked(run: Run) -> list[chex.ArrayTree]:
    """Returns the variables of each seed's network, on one device."""
    everything = jax.device_get(run.networks)
    networks = [steps.one(everything, seed) for seed in range(len(run.failed))]
    return [{"params": params, **state} for params, state in networks]


@functools.cache
def _loss(model: nn.Module, mean: tuple, std: tuple) -> Callable[..., jax.Array]:
    """Returns the loss of variables on a batch; the same one every time, so that its statistics are compiled once."""
    return evaluation.loss(model, steps.normalizer(mean, std))


def _tested(workshop: Stages, small: Callable, masked: Callable) -> tuple[float, float]:
    """Returns a network's accuracy on the test split, in percent, and the largest difference of its logits."""
    right, difference = 0, 0.0
    for images, labels in _batches(workshop):
        logits, wanted = np.asarray(small(images)), np.asarray(masked(images))
        right += np.sum(logits.argmax(-1) == labels)
        difference = max(difference, np.abs(logits - wanted).max())
    return 100 * right / len(workshop.dataset.test), difference


def _batches(workshop: Stages) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """Yields the test images, normalised, and labels, in batches of one size; at the end an image of label -1."""
    data = workshop.dataset
    size, normalize = min(IMAGES, len(data.test)), steps.normalizer(data.mean, data.std)
    for start in range(0, len(data.test), size):
        indices = np.arange(start, start + size)
        images, labels = data.test.read(indices.clip(max=len(data.test) - 1))
        yield normalize(jnp.asarray(images)), np.where(indices < len(data.test), labels, -1)


def describe(found: Cut) -> str:
    """Returns a table of one row."""
    head = ["network", "test accuracy %", "parameters", "multiply-adds", "of dense %", "largest difference of a logit"]
    head += [f"ms for {found.images} images", "time / dense"]
    row = [found.name, spread(found.accuracy), spread(found.parameters, 0), spread(found.multiply_adds, 0)]
    row += [spread(100 * found.multiply_adds / found.dense), f"{found.difference.max():.0e}"]
    row += [spread(1000 * found.seconds), spread(found.relative)]
    return results.table(head, [row])
