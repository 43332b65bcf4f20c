"""Every classic recipe against every other, against the papers' methods, and against honest controls.

    python -m experiments baselines                            digits, LeNet-300-100
    python -m experiments baselines --dataset fashion_mnist    60,000 images

Every network sees the same number of epochs in all, in cosine cycles. One-shot methods prune a network that was trained
for all cycles but the last, and fine-tune it for the last one; the others are trained from scratch for all of them, and
have pruned what they prune when the last one begins. Nothing here is chosen by looking at accuracy: every network
has the same recipe, methods have their papers' settings or our defaults, and the test split is used once.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

import sparsejax as sj
from experiments import (
    baselines_claims,
    baselines_figures,
    calibration,
    compiling,
    models,
    pruning,
    results,
    setup,
)
from experiments import stages as staging
from experiments.baselines_claims import CUT, SHUFFLED, Found
from experiments.methods import dense
from experiments.results import Measured
from experiments.sparsifying import Around, shuffled, through_training
from experiments.stages import Stages, after
from experiments.steps import normalizer
from experiments.training import Run
from sparsejax import recipes

# What each data set is trained with unless the command line says otherwise.
PRESETS: dict[str, dict[str, Any]] = {"digits": {"epochs": 60}}


@dataclasses.dataclass(frozen=True)
class Config(setup.Options):
    """All recipes: magnitude, SNIP, SET, RigL, N:M, ..., and the papers' methods, at four sparsities, with controls."""

    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    """Sparsities asked of the pruned layers together."""
    groups: tuple[tuple[int, int], ...] = ((2, 4), (1, 4))
    """N and M of N:M sparsity, whose sparsities these are; the first is the one that hardware has."""
    block: tuple[int, ...] = (4, 2)
    """Size of a block, which must divide the kernels."""
    calibration: int = 128
    """Training images that Wanda sees."""
    mus: tuple[float, ...] = (0.51, 0.6, 0.74, 0.8)
    """Growth of gRDA's threshold, which cannot be asked for a sparsity."""
    rate: float | None = None
    """Learning rate of AutoPrune's auxiliary parameters."""
    checkpoint_every: int = 0
    """Epochs between checkpoints; at 0, a killed experiment goes on with the network it was training from its start."""


class Entry(NamedTuple):
    """A recipe, its target, and what it is asked for by that: the target, or a share of all pruned layers together."""

    around: Around
    target: chex.ArrayTree
    asked: chex.ArrayTree | float


def main(config: Config) -> Path:
    """Trains every network, writes report, figures and logs, and returns the folder they are in."""
    config = setup.filled(config, {"rate": setup.gates(config.dataset), **PRESETS.get(config.dataset, {})})
    dataset, model, recipe = setup.resolve(config)
    staging.check(recipe.cycles)
    directory = config.results / "baselines" / f"{config.dataset}-{type(model).__name__}"
    with compiling.once():
        found = find(Stages(dataset, model, recipe, directory), config)
    checked = baselines_claims.claims(found)
    report = baselines_claims.describe(config.dataset, found, checked)
    print(report)
    baselines_figures.draw(config.dataset, found, directory / "figures")
    results.write(directory, report, config, recipe, found.networks, checked)
    print(f"\nreport, figures and logs are in {directory}")
    return directory


def find(stages: Stages, config: Config) -> Found:
    """Trains and measures every network."""
    start = stages.stage("dense", dense, stages.every[:-1], snapshots=(0,))
    trained = (start.params, start.model_state)
    trained_on = after(start, stages.stage("dense, same epochs", dense, stages.last, initial=trained))
    rows: dict[str, dict[float, Measured]] = {}
    for share in config.sparsities:
        networks = [*one_shot(stages, config, start, share), *from_scratch(stages, config, share)]
        (snip,) = (network.run for network in networks if network.name == "SNIP")
        networks += [*papers(stages, config, share), *controls(stages, start, snip, share)]
        for network in networks:
            rows.setdefault(network.name, {})[share] = network
    return Found(
        start=stages.row("dense", start),
        dense=stages.row("dense, same epochs", trained_on),
        rows=rows,
        groups=list(groups(stages, config)),
        averaged=list(staging.averaged_rows(stages, config.dataset, config.mus)),
    )


def one_shot(stages: Stages, config: Config, start: Run, share: float) -> Iterator[Measured]:
    """Yields the trained network cut by every one-shot method, and each fine-tuned; and the control, shuffled."""
    uniform = sj.allocate.uniform(stages.shapes, share, stages.where())
    asked = {"one-shot magnitude": uniform, "one-shot LAMP": share, "Wanda": uniform}
    images = normalizer(stages.dataset.mean, stages.dataset.std)(stages.dataset.train.images[: config.calibration])

    def masks(params, model_state):
        norms = calibration.input_norms(stages.model, params, model_state, images)
        return {
            "one-shot magnitude": sj.select.leafwise(sj.scores.magnitude(params), uniform),
            "one-shot LAMP": sj.select.globally(sj.scores.lamp(params), uniform),
            "Wanda": recipes.wanda(params, norms, uniform),
        }

    chosen = jax.jit(jax.vmap(masks))(start.params, start.model_state)
    name = "one-shot magnitude" + SHUFFLED
    chosen[name], asked[name] = reordered(stages, chosen["one-shot magnitude"]), uniform
    for name, wanted in asked.items():
        cut = dataclasses.replace(start, params=jax.vmap(sj.apply)(chosen[name], start.params))
        yield stages.row(name + CUT, cut, asked=wanted)
        initial = (cut.params, cut.model_state)
        tuned = stages.stage(f"{name} {share:g}", pruning.masked, stages.last, initial=initial)
        yield stages.row(name, after(start, tuned), asked=wanted)


def from_scratch(stages: Stages, config: Config, share: float) -> Iterator[Measured]:
    """Yields the networks of the recipes that prune while they train."""
    uniform = sj.allocate.uniform(stages.shapes, share, stages.where())
    hidden = sj.allocate.uniform(stages.shapes, share, stages.where(lambda shape: shape[-1] != stages.dataset.classes))
    kernel = sj.allocate.erdos_renyi(stages.shapes, share, stages.where())
    ramp, exchange = stages.ramp, stages.exchange
    entries = {
        "gradual magnitude": Entry(
            lambda tx, target, _: recipes.gradual_magnitude(tx, target, **ramp), uniform, uniform
        ),
        "global magnitude": Entry(lambda tx, target, _: recipes.global_magnitude(tx, target, **ramp), uniform, share),
        "blocks": Entry(
            lambda tx, target, _: recipes.block_magnitude(tx, target, config.block, **ramp), uniform, uniform
        ),
        "channels": Entry(lambda tx, target, _: recipes.channel_magnitude(tx, target, **ramp), hidden, hidden),
        "SNIP": Entry(lambda tx, target, _: recipes.snip(tx, target), uniform, share),
        "SET": Entry(lambda tx, target, seed: recipes.set_(tx, target, **exchange, seed=seed), kernel, kernel),
        "RigL": Entry(lambda tx, target, seed: recipes.rigl(tx, target, **exchange, seed=seed), kernel, kernel),
        "random": Entry(lambda tx, target, seed: recipes.random_pruning(tx, target, seed=seed), uniform, uniform),
    }
    for name, entry in entries.items():
        yield sparsified(stages, name, f" {share:g}", entry, **({"size": config.block} if name == "blocks" else {}))


def papers(stages: Stages, config: Config, share: float) -> Iterator[Measured]:
    """Yields the networks of the papers' methods that can be asked for a sparsity."""
    method = partial(pruning.counted_budget, target=share)
    run = stages.stage(f"adaptive sparsity {share:g}", method, stages.every)
    yield stages.row("adaptive sparsity", run, asked=share)
    yield staging.gated_row(stages, share, config.rate)


def controls(stages: Stages, start: Run, snip: Run, share: float) -> Iterator[Measured]:
    """Yields the thin dense network of as many parameters, and SNIP with its masks shuffled, from the same start."""
    count = partial(models.parameter_count, image_shape=stages.image)
    yield staging.thin_row(stages, "thin dense", share, pruning.remaining(stages.shapes, share), count)

    params, model_state = start.snapshots[0]
    mask = reordered(stages, jax.tree.map(lambda leaf: leaf != 0, snip.params))
    initial = (jax.vmap(sj.apply)(mask, params), model_state)
    run = stages.stage(f"SNIP{SHUFFLED} {share:g}", pruning.masked, stages.every, initial=initial)
    yield stages.row("SNIP" + SHUFFLED, run, asked=share)


def groups(stages: Stages, config: Config) -> Iterator[Measured]:
    """Yields the networks of N:M sparsity."""
    for n, m in config.groups:
        fits = stages.where(lambda shape, m=m: shape[-2] % m == 0)
        ramp = {**stages.ramp, "where": fits}
        asked = sj.allocate.uniform(stages.shapes, 1 - n / m, fits)
        entry = Entry(lambda tx, _, __, n=n, m=m, ramp=ramp: recipes.n_of_m(tx, n, m, **ramp), asked, asked)
        yield sparsified(stages, f"{n}:{m}", "", entry)


def sparsified(stages: Stages, name: str, label: str, entry: Entry, **asked) -> Measured:
    """Returns the network of a recipe that is around the optimizer from the first step to the last."""
    method = partial(through_training, around=entry.around, target=entry.target, name=name)
    return stages.row(name, stages.stage(name + label, method, stages.every, **asked), asked=entry.asked)


def reordered(stages: Stages, mask):
    """Returns every seed's mask with its entries in another order within each layer."""
    seeds = stages.recipe.seed + jnp.arange(stages.recipe.seeds)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(1), seed))(seeds)
    return jax.vmap(shuffled)(keys, jax.tree.map(np.asarray, mask))
