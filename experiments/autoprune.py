"""AutoPrune: weights and units pruned by auxiliary parameters, from scratch and from a trained network.

    python -m experiments autoprune                            digits, LeNet-300-100
    python -m experiments autoprune --dataset fashion_mnist    60,000 images, LeNet-5

Xiao, Wang, Rajasekaran, *AutoPrune: Automatic Network Pruning by Regularizing Auxiliary Parameters*, NeurIPS 2019.
Every network sees the same number of epochs in all. Gates freeze at their target, and training goes on.
"""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

import sparsejax as sj
from experiments import autoprune_claims, autoprune_figures, gating, results, setup, unit_groups
from experiments.autoprune_claims import Found
from experiments.gating import Rule
from experiments.methods import Recipe, dense, settings
from experiments.training import Run
from experiments.workshop import Workshop

# What each data set is trained with unless the command line says otherwise.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 90, "rate": 1.0, "penalty": 1e-3},
    "mnist_5k": {"model": "lenet5", "epochs": 40, "learning_rate": 0.01},
    "mnist": {"model": "lenet5", "epochs": 20, "learning_rate": 0.01},
    "fashion_mnist": {"model": "lenet5", "epochs": 12, "learning_rate": 0.01},
    "cifar10": {"model": "vgg-like", "epochs": 300, "learning_rate": 0.05},
    "cifar100": {"model": "vgg-like", "epochs": 300, "learning_rate": 0.05},
    "imagenet2012": {"model": "resnet50", "epochs": 90, "learning_rate": 0.1, "weight_decay": 1e-5},
}

SURROGATES = {
    "linear": sj.surrogates.linear,
    "leaky ReLU": sj.surrogates.leaky_relu,
    "softplus": sj.surrogates.softplus,
}


@dataclasses.dataclass(frozen=True)
class Config(setup.Options):
    """AutoPrune: compression of weights and of units, from scratch and pretrained, and the paper's ablations."""

    compressions: tuple[float, ...] = (10, 20, 30, 80)
    """Targets for weights: all parameters to those that stay."""
    shares: tuple[float, ...] = (0.5, 0.25, 0.1)
    """Targets for units: shares of the multiply-adds that stay."""
    rates: tuple[float, ...] = (0.01, 0.1, 0.5)
    """Learning rates of the auxiliary parameters that are compared."""
    rate: float | None = None
    """The one that meets the targets."""
    penalty: float | None = None
    """Pull on every auxiliary parameter."""
    cycles: int = 1
    """Cosine cycles of the learning rate."""
    ablations: bool = True
    """Whether to compare updates, learning rates and surrogates too."""


@dataclasses.dataclass(frozen=True)
class Job(Workshop):
    """The workshop, and what was asked of it."""

    config: Config

    @cached_property
    def half(self) -> Recipe:
        """The recipe for half of the epochs."""
        return dataclasses.replace(self.recipe, epochs=max(1, self.recipe.epochs // 2))

    @property
    def rule(self) -> Rule:
        """How gates are trained."""
        return Rule(self.config.rate, self.config.penalty)

    def weights(self, name: str, ratio: float | None, rule: Rule, recipe: Recipe | None = None, initial=None) -> Run:
        """Prunes weights down to a compression ratio, or on and on."""
        target = None if ratio is None else sj.targets.weights(sj.budgets.compression(self.shapes, ratio))
        method = gating.weights(recipe or self.recipe, rule, target)
        return self.train(name, method, recipe, initial, ratio=ratio, **rule.settings())

    def units(self, name: str, share: float, recipe: Recipe | None = None, initial=None) -> Run:
        """Prunes units down to a share of the multiply-adds."""
        groups = unit_groups.of(self.model, self.shapes)
        shape = jax.ShapeDtypeStruct((1, *self.image), "float32")
        counted = sj.report.multiply_adds(lambda p, x: self.model.apply({"params": p}, x), self.shapes, shape)
        target = sj.targets.units(sj.budgets.multiply_adds(self.shapes, counted, share), groups)
        method = gating.units(recipe or self.recipe, self.rule, groups, target)
        return self.train(name, method, recipe, initial, share=share, **self.rule.settings())


def main(config: Config) -> Path:
    """Trains every network, writes report, figures and logs, and returns the folder they are in."""
    config = settle(config)
    dataset, model, recipe = setup.resolve(config)
    directory = config.results / "autoprune" / f"{config.dataset}-{type(model).__name__}"
    found = find(Job(dataset, model, recipe, directory, config))
    checked = autoprune_claims.claims(found)
    report = autoprune_claims.describe(config.dataset, found, checked)
    print(report)
    autoprune_figures.draw(config.dataset, found, directory / "figures")
    results.write(directory, report, {**dataclasses.asdict(config), **settings(recipe)}, found.networks, checked)
    print(f"\nreport, figures and logs are in {directory}")
    return directory


def settle(config: Config) -> Config:
    """Returns the configuration with the data set's preset where the user left a choice."""
    return setup.filled(config, {"rate": 0.5, "penalty": 1e-3, **PRESETS[config.dataset]})


def find(job: Job) -> Found:
    """Trains and measures the networks: dense, pruned from scratch and pretrained, and the ablations."""
    config, rule = job.config, job.rule
    reference = job.measure("dense", job.train("dense", dense(job.recipe)))
    start = job.train("dense, half", dense(job.half), job.half)
    trained = (start.params, start.model_state)
    scratch, pretrained, regular = {}, {}, {}
    for ratio in config.compressions:
        name = f"scratch {ratio:g}x"
        scratch[ratio] = job.measure(name, job.weights(name, ratio, rule))
        name = f"pretrained {ratio:g}x"
        pretrained[ratio] = job.measure(name, job.weights(name, ratio, rule, job.half, trained))
        if config.ablations:
            name, other = f"regular update {ratio:g}x", dataclasses.replace(rule, power=1.0)
            regular[ratio] = job.measure(name, job.weights(name, ratio, other))
    thinned, thinned_pretrained = {}, {}
    for share in config.shares:
        name = f"units {share:.0%}"
        thinned[share] = job.measure(name, job.units(name, share))
        name = f"units {share:.0%}, pretrained"
        thinned_pretrained[share] = job.measure(name, job.units(name, share, job.half, trained))
    free = {}
    for rate in config.rates if config.ablations else ():
        for surrogate, function in SURROGATES.items():
            other = dataclasses.replace(rule, rate=rate, surrogate=function)
            free[surrogate, rate] = job.weights(f"free {surrogate} {rate:g}", None, other)
    return Found(reference, scratch, pretrained, regular, thinned, thinned_pretrained, free)
