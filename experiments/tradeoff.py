"""Every method against every other, at the same sizes: accuracy against compression, with honest controls.

    python -m experiments tradeoff                            digits, LeNet-300-100
    python -m experiments tradeoff --dataset fashion_mnist    60,000 images
    python -m experiments tradeoff --methods "gradual magnitude" RigL "thin dense" --compressions 4 16

Every network sees the same number of epochs in all, in cosine cycles. One-shot methods prune a network that was trained
for all cycles but the last, and fine-tune it for the last one; the others are trained from scratch for all of them, and
have pruned what they prune when the last one begins. Nothing here is chosen by looking at test accuracy: every network
has the same recipe, methods have their papers' settings or our defaults, and the test split is used once. A run that
was killed is started again with the same words, on as many cores or others: what is finished is read from disk.
"""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sparsejax as sj
from experiments import (
    compiling,
    contenders,
    evidence,
    latency,
    results,
    setup,
    tradeoff_claims,
    tradeoff_figures,
    tradeoff_report,
)
from experiments import stages as staging
from experiments.bench import Bench, Options
from experiments.results import Measured
from experiments.tradeoff_claims import Found
from sparsejax import recipes

# What each data set is trained with unless the command line says otherwise. On digits epochs are short, and gates have
# to be fast to close at all.
PRESETS: dict[str, dict[str, Any]] = {"digits": {"epochs": 60, "pretrained_rate": 0.5, "unit_rate": 2.0}}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """All methods and controls at the same sizes: magnitude, SNIP, RigL, AutoPrune, gRDA, units, thin networks, ..."""

    compressions: tuple[float, ...] = (2, 4, 8, 16, 32, 64)
    """All parameters of the dense network to those that are left."""
    methods: tuple[contenders.Name, ...] = tuple(contenders.CONTENDERS)
    """What is compared, beside N:M sparsity and gRDA."""
    groups: tuple[tuple[int, int], ...] = ((2, 4), (1, 4))
    """N and M of N:M sparsity, whose sparsities these are; the first is the one that hardware has."""
    checkpoint_every: int = 0
    """Epochs between checkpoints; at 0, a killed experiment goes on with the network it was training from its start."""


def main(config: Config) -> Path:
    """Trains every network, writes report, figures and logs, and returns the folder they are in."""
    preset = {**setup.gates(config.dataset, config.model), "pretrained_rate": 0.1, "unit_rate": 0.5}
    config = setup.filled(config, preset | PRESETS.get(config.dataset, {}))
    dataset, model, recipe = setup.resolve(config)
    staging.check(recipe.cycles)
    directory = config.results / "tradeoff" / f"{config.dataset}-{type(model).__name__}"
    bench = Bench(dataset, model, recipe, directory, config)
    with compiling.once():
        found = find(bench, config)
        times = latency.of(bench, found)
    checked = tradeoff_claims.claims(found)
    report = tradeoff_report.describe(config.dataset, type(model).__name__, found, checked, times)
    print(report)
    tradeoff_figures.draw(config.dataset, type(model).__name__, found, directory / "figures")
    errors = {
        name: {compression: error if math.isfinite(error) else None for compression, error in row.items()}
        for name, row in tradeoff_claims.errors(found).items()
    }
    results.write(directory, report, config, recipe, found.networks, checked, errors=errors)
    evidence.write(config.results)
    print(f"\nreport, figures and logs are in {directory}; all results together in {config.results / evidence.REPORT}")
    return directory


def find(bench: Bench, config: Config) -> Found:
    """Trains and measures every network."""
    shares = {compression: bench.share(compression) for compression in sorted(config.compressions)}
    start, dense = bench.controls()
    rows: dict[str, dict[float, Measured]] = {}
    for compression, share in shares.items():
        for network in contenders.networks(bench, config.methods, share):
            rows.setdefault(network.name, {})[compression] = network
    averaged = staging.averaged_rows(bench, *setup.averaging(config.dataset, config.model), config.mus)
    return Found(start, dense, list(shares), rows, list(groups(bench, config.groups)), list(averaged))


def groups(bench: Bench, sizes: tuple[tuple[int, int], ...]) -> Iterator[Measured]:
    """Yields the networks of N:M sparsity, in the layers whose inputs are divided into groups of M."""
    for n, m in sizes:
        fits = bench.where(lambda shape, m=m: shape[-2] % m == 0)
        asked = sj.allocate.uniform(bench.shapes, 1 - n / m, fits)
        ramp = {**bench.ramp, "where": fits}
        run = contenders.sparsified(bench, f"{n}:{m}", "", partial(_n_of_m, n=n, m=m, ramp=ramp), asked)
        yield bench.row(f"{n}:{m}", run, asked=asked)


def _n_of_m(tx, target, seed, n: int, m: int, ramp: dict[str, Any]):
    return recipes.n_of_m(tx, n, m, **ramp)
