"""AutoPrune: weights and units pruned by auxiliary parameters, from scratch and from a trained network.

    python -m experiments autoprune                            digits, LeNet-300-100
    python -m experiments autoprune --dataset fashion_mnist    60,000 images, LeNet-5
    python -m experiments autoprune --paper --dataset mnist --data-dir DIR

Xiao, Wang, Rajasekaran, *AutoPrune: Automatic Network Pruning by Regularizing Auxiliary Parameters*, NeurIPS 2019.
Every network sees the same number of epochs in all. Gates freeze at their target, and training goes on.
"""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

import sparsejax as sj
from experiments import autoprune_claims, autoprune_figures, gating, models, results, setup, training, unit_groups
from experiments.autoprune_claims import Found
from experiments.data import Dataset
from experiments.gating import Rule
from experiments.methods import Method, Recipe, dense, settings
from experiments.results import Measured
from experiments.training import Networks, Run

# What each data set is trained with unless the command line says otherwise.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 90, "rate": 0.1, "penalty": 1e-3},
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
    paper: bool = False
    """The paper's own setting, unless other options say otherwise."""


@dataclasses.dataclass(frozen=True)
class Workshop:
    """What every network is made from."""

    config: Config
    dataset: Dataset
    model: nn.Module
    recipe: Recipe
    directory: Path

    @cached_property
    def shapes(self):
        """The parameters, as shapes."""
        return models.parameter_shapes(self.model, self.image)

    @property
    def image(self) -> tuple[int, int, int]:
        """The shape of an image."""
        return self.dataset.train.image_shape

    @cached_property
    def half(self) -> Recipe:
        """The recipe for half of the epochs."""
        return dataclasses.replace(self.recipe, epochs=max(1, self.recipe.epochs // 2))

    @property
    def rule(self) -> Rule:
        """How gates are trained."""
        return Rule(self.config.rate, self.config.penalty)

    def train(self, name: str, method: Method, recipe: Recipe | None = None, initial: Networks | None = None, **asked):
        """Trains a network, or reads it from disk."""
        folder = self.directory / "runs" / name.replace(" ", "_")
        return training.train(self.model, method, self.dataset, recipe or self.recipe, folder, initial, config=asked)

    def measure(self, name: str, run: Run) -> Measured:
        """Counts and tests a finished run; sparsities are those of all parameters."""
        return results.measure(name, run, self.model, self.dataset, self.model, tuple(sj.tree.named(self.shapes)))

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
    found = find(Workshop(config, dataset, model, recipe, directory))
    checked = autoprune_claims.claims(found)
    report = autoprune_claims.describe(config.dataset, found, checked)
    print(report)
    autoprune_figures.draw(config.dataset, found, directory / "figures")
    results.write(directory, report, {**dataclasses.asdict(config), **settings(recipe)}, found.networks, checked)
    print(f"\nreport, figures and logs are in {directory}")
    return directory


def settle(config: Config) -> Config:
    """Returns the configuration with the data set's preset where the user left a choice."""
    preset = {"rate": 0.5, "penalty": 1e-3, **PRESETS[config.dataset]}
    chosen = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return Config(**{name: preset.get(name) if value is None else value for name, value in chosen.items()})


def find(shop: Workshop) -> Found:
    """Trains and measures the networks: dense, pruned from scratch and pretrained, and the ablations."""
    config, rule = shop.config, shop.rule
    reference = shop.measure("dense", shop.train("dense", dense(shop.recipe)))
    start = shop.train("dense, half", dense(shop.half), shop.half)
    trained = (start.params, start.model_state)
    scratch, pretrained, regular = {}, {}, {}
    for ratio in config.compressions:
        name = f"scratch {ratio:g}x"
        scratch[ratio] = shop.measure(name, shop.weights(name, ratio, rule))
        name = f"pretrained {ratio:g}x"
        pretrained[ratio] = shop.measure(name, shop.weights(name, ratio, rule, shop.half, trained))
        if config.ablations:
            name, other = f"regular update {ratio:g}x", dataclasses.replace(rule, power=1.0)
            regular[ratio] = shop.measure(name, shop.weights(name, ratio, other))
    thinned, thinned_pretrained = {}, {}
    for share in config.shares:
        name = f"units {share:.0%}"
        thinned[share] = shop.measure(name, shop.units(name, share))
        name = f"units {share:.0%}, pretrained"
        thinned_pretrained[share] = shop.measure(name, shop.units(name, share, shop.half, trained))
    free = {}
    for rate in config.rates if config.ablations else ():
        for surrogate, function in SURROGATES.items():
            other = dataclasses.replace(rule, rate=rate, surrogate=function)
            free[surrogate, rate] = shop.weights(f"free {surrogate} {rate:g}", None, other)
    return Found(reference, scratch, pretrained, regular, thinned, thinned_pretrained, free)
