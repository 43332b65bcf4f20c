"""The methods that can be asked for a sparsity, and the controls beside them, each from data to measured networks.

One-shot methods prune a network that was trained for all cycles but the last, and fine-tune it for the last one; the
others are trained from scratch for all of them. Controls answer whether it was pruning that did it: thin networks,
masks shuffled within each layer, the same masks on other weights.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import chex
import jax
import numpy as np

import sparsejax as sj
from experiments import gating, models, one_shot, pruning, shrinking, stages, unit_groups
from experiments.bench import Bench, Contender
from experiments.gating import Rule
from experiments.results import Measured
from experiments.sparsifying import Around, through_training
from experiments.training import Run
from sparsejax import recipes
from sparsejax.budgets import Budget

SHUFFLED = ", shuffled"
THIN = "thin dense"

Sparsities = Callable[[Bench, float], chex.ArrayTree]
"""(bench, sparsity of the pruned layers together) -> those of all leaves."""


def hidden(bench: Bench, share: float) -> chex.ArrayTree:
    """Returns the same sparsity for every pruned layer but the last, whose channels are the classes."""
    return bench.uniform(share, lambda shape: shape[-1] != bench.dataset.classes)


def divided(bench: Bench, share: float) -> chex.ArrayTree:
    """Returns the same sparsity for every pruned layer that consists of whole blocks."""
    block = bench.options.block
    return bench.uniform(share, lambda shape: not np.any(np.array(shape[-len(block) :]) % block))


def erdos_renyi(bench: Bench, share: float) -> chex.ArrayTree:
    """Returns sparsities by the sizes of the layers' sides."""
    return sj.allocate.erdos_renyi(bench.shapes, share, bench.where())


def through(
    around: Callable[[Bench], Around], sparsities: Sparsities = Bench.uniform, together: bool = False, **recorded: str
) -> Contender:
    """Returns the contender of a recipe that is around the optimizer from the first step to the last.

    Args:
      around: bench -> the recipe.
      sparsities: those of the layers.
      together: whether all layers compete with each other, so that only their share together is asked for.
      recorded: names of options that the recipe takes, which the run's folder records under another name.
    """

    def networks(bench: Bench, name: str, share: float) -> Iterator[Measured]:
        wanted = sparsities(bench, share)
        settings = {key: getattr(bench.options, option) for key, option in recorded.items()}
        run = sparsified(bench, name, f" {share:g}", around(bench), wanted, **settings)
        yield bench.row(name, run, asked=share if together else wanted)

    return networks


def sparsified(bench: Bench, name: str, label: str, around: Around, target: chex.ArrayTree, **settings) -> Run:
    """Trains the network of a recipe that is around the optimizer; method and label name its folder."""
    method = partial(through_training, around=around, target=target, name=name)
    return bench.stage(name + label, method, bench.every, **settings)


def ramped(recipe: Callable) -> Callable[[Bench], Around]:
    """Returns a recipe that prunes more and more until the last cycle."""
    return lambda bench: lambda tx, target, _: recipe(tx, target, **bench.ramp)


def blocks(bench: Bench) -> Around:
    """Returns magnitude pruning of blocks."""
    return lambda tx, target, _: recipes.block_magnitude(tx, target, bench.options.block, **bench.ramp)


def exchanging(recipe: Callable) -> Callable[[Bench], Around]:
    """Returns a recipe that exchanges weights through training."""
    return lambda bench: lambda tx, target, seed: recipe(tx, target, **bench.exchange, seed=seed)


def snip(bench: Bench) -> Around:
    """Returns SNIP, which prunes before training."""
    return lambda tx, target, _: recipes.snip(tx, target)


def random(bench: Bench) -> Around:
    """Returns random masks, drawn before training."""
    return lambda tx, target, seed: recipes.random_pruning(tx, target, seed=seed)


def shuffled_snip(bench: Bench, name: str, share: float) -> Iterator[Measured]:
    """Yields SNIP's masks with their entries in another order within each layer, on the weights it started from."""
    found = sparsified(bench, "SNIP", f" {share:g}", snip(bench), bench.uniform(share))
    mask = bench.reordered(jax.tree.map(lambda leaf: leaf != 0, found.params))
    yield one_shot.under(bench, name, share, mask, one_shot.as_initialised(bench), share)


def adaptive(bench: Bench, name: str, share: float) -> Iterator[Measured]:
    """Yields the network of the adaptive sparsity loss, under a counted budget."""
    method = partial(pruning.counted_budget, target=share)
    yield bench.row(name, bench.stage(f"{name} {share:g}", method, bench.every), asked=share)


def gates(bench: Bench, name: str, share: float) -> Iterator[Measured]:
    """Yields AutoPrune's network, from scratch."""
    options = bench.options
    yield stages.gated_row(bench, name, share, Rule(options.rate, options.factors, options.penalty))


def gates_of_trained(bench: Bench, name: str, share: float) -> Iterator[Measured]:
    """Yields AutoPrune's network, whose gates start in the last cycle from the magnitudes of trained weights."""
    rule = Rule(bench.options.pretrained_rate, penalty=bench.options.pretrained_penalty, start=gating.magnitudes)
    yield stages.gated_row(bench, name, share, rule, bench.start)


def gates_of_units(bench: Bench, name: str, share: float) -> Iterator[Measured]:
    """Yields AutoPrune's network without units, from scratch: gates freeze when as many parameters are left."""
    groups, rule = unit_groups.of(bench.model, bench.image), Rule(bench.options.unit_rate)
    target = sj.targets.units(bench.parameters(share), groups)
    method = partial(gating.units, rule=rule, groups=groups, target=target)
    yield bench.row(name, bench.stage(f"{name} {share:g}", method, bench.every, **rule.settings()))


def means_for_units(bench: Bench, name: str, share: float) -> Iterator[Measured]:
    """Yields the trained network without the units that matter least, in whose place their means are, fine-tuned."""
    costs, limit = bench.parameters(share)
    budget = Budget({unit_groups.PREFIX + leaf: cost for leaf, cost in costs.items()}, limit)
    _, removed = shrinking.without(bench, bench.start, budget, floor=0.0)
    params, model_state = removed["mean"]
    cut = dataclasses.replace(bench.start, params=params, model_state=model_state)
    yield bench.row(name + one_shot.CUT, cut)
    yield stages.tuned_row(bench, name, share, bench.start, cut.networks)


def thin(bench: Bench, name: str, share: float) -> Iterator[Measured]:
    """Yields the thin dense network of as many parameters."""
    yield stages.thin_row(bench, name, share, bench.thin(share))


def thin_in_work(bench: Bench, name: str, share: float) -> Iterator[Measured]:
    """Yields the thin dense network of as many multiply-adds as are left where every layer has the same sparsity."""
    model = models.thin(bench.model, bench.multiply_adds_left(share), bench.multiply_adds)
    yield stages.thin_row(bench, name, share, model)


CONTENDERS: dict[str, Contender] = {
    "one-shot magnitude": one_shot.cut(one_shot.magnitude),
    "one-shot LAMP": one_shot.cut(one_shot.lamp),
    "Wanda": one_shot.cut(one_shot.wanda),
    "gradual magnitude": through(ramped(recipes.gradual_magnitude)),
    "global magnitude": through(ramped(recipes.global_magnitude), together=True),
    "blocks": through(blocks, divided, size="block"),
    "channels": through(ramped(recipes.channel_magnitude), hidden),
    "SNIP": through(snip, together=True),
    "SET": through(exchanging(recipes.set_), erdos_renyi),
    "RigL": through(exchanging(recipes.rigl), erdos_renyi),
    "lottery ticket": one_shot.on_other_weights(one_shot.as_initialised),
    "adaptive sparsity": adaptive,
    "AutoPrune": gates,
    "AutoPrune, pretrained": gates_of_trained,
    "AutoPrune, units": gates_of_units,
    "mean replacement": means_for_units,
    # Controls.
    "random": through(random),
    "one-shot magnitude" + SHUFFLED: one_shot.cut(one_shot.shuffled_magnitude),
    "SNIP" + SHUFFLED: shuffled_snip,
    "magnitude mask, other weights": one_shot.on_other_weights(one_shot.drawn_again),
    THIN: thin,
    THIN + ", multiply-adds": thin_in_work,
}
Name = Literal[*CONTENDERS]


def networks(bench: Bench, names: Sequence[Name], share: float) -> Iterator[Measured]:
    """Yields the networks of contenders at a sparsity of the pruned layers."""
    for name in names:
        yield from CONTENDERS[name](bench, name, share)
