"""AutoPrune: weights and units pruned by auxiliary parameters, from scratch and from a trained network.

    python -m experiments autoprune                            digits, LeNet-300-100
    python -m experiments autoprune --dataset fashion_mnist    60,000 images, LeNet-5
    python -m experiments autoprune --paper --dataset cifar10 --data-dir DIR       VGG-like network

Xiao, Wang, Rajasekaran, *AutoPrune: Automatic Network Pruning by Regularizing Auxiliary Parameters*, NeurIPS 2019.
Every network sees the same number of epochs in all. Gates freeze at their target, and training goes on.
"""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tyro

import sparsejax as sj
from experiments import autoprune_claims, autoprune_figures, compiling, gating, models, rates, results, setup
from experiments import unit_groups as units
from experiments.autoprune_claims import Found
from experiments.gating import Rule
from experiments.methods import Recipe, dense
from experiments.results import Measured
from experiments.training import Run
from experiments.workshop import Workshop

LENET5: dict[str, Any] = {
    "model": "lenet5",
    "batch_size": 64,
    "learning_rate": 0.02,
    "magnitudes": True,
    "pretraining": 0.25,
}

# What each data set is trained with unless the command line says otherwise.
PRESETS: dict[str, dict[str, Any]] = {
    # 20 steps an epoch, in which gates hardly move at the paper's rates.
    "digits": {"epochs": 90, "rates": (1.0, 4.0, 10.0)},
    "mnist_5k": {"epochs": 40, **LENET5},
    "mnist": {"epochs": 20, **LENET5},
    "fashion_mnist": {"epochs": 12, **LENET5},
    "cifar10": {"model": "vgg-like", "epochs": 300, "learning_rate": 0.05},
    "cifar100": {"model": "vgg-like", "epochs": 300, "learning_rate": 0.05},
    "imagenet2012": {"model": "resnet50", "epochs": 90, "learning_rate": 0.1, "weight_decay": 1e-5, "seeds": 1},
}

# The published settings: learning rates of the weights while pruning, which are Adam's in our reading, the compression
# and the multiply-adds that were reached. Another network is asked for with --model.
PUBLISHED: dict[str, Any] = {"optimizer": "adam", "ablations": False, "magnitudes": False, "pretraining": 0.5}
PRETRAINED: dict[str, Any] = {**PUBLISHED, "starts": ("pretrained",)}
PAPER: dict[tuple[str, str], dict[str, Any]] = {
    ("mnist", "lenet5"): {
        **PUBLISHED,
        "pruning_rate": 1e-3,
        "last": 0.01,
        "compressions": (168, 310),
        "shares": (0.07,),
    },
    ("mnist", "lenet300"): {**PUBLISHED, "pruning_rate": 1e-3, "last": 0.01, "shares": ()},
    ("cifar10", "vgg-like"): {"compressions": (10, 20, 30, 40, 50, 60, 70, 75, 80), "shares": (0.23,)},
    ("imagenet2012", "resnet50"): {
        **PRETRAINED,
        "pruning_rate": 1e-5,
        "last": 0.1,
        "compressions": (2.2,),
        "shares": (600e6 / 4_089_184_256,),
    },
    ("imagenet2012", "alexnet"): {
        **PRETRAINED,
        "learning_rate": 0.01,
        "pruning_rate": 1e-3,
        "compressions": (18.5,),
        "shares": (),
    },
    ("imagenet2012", "mobilenetv2"): {
        **PRETRAINED,
        "pruning_rate": 1e-5,
        "compressions": (),
        "shares": (200e6 / 300_774_272, 100e6 / 300_774_272),
    },
}

SURROGATES = {
    "linear": sj.surrogates.linear,
    "leaky ReLU": sj.surrogates.leaky_relu,
    "softplus": sj.surrogates.softplus,
}
DESCENTS = {"sgd": gating.momentum, "adam": gating.adam}


@dataclasses.dataclass(frozen=True)
class Config(setup.Options):
    """AutoPrune: compression of weights and of units, from scratch and pretrained, and the paper's ablations."""

    compressions: tuple[float, ...] | None = None
    """Targets for weights: all parameters to those that stay."""
    shares: tuple[float, ...] | None = None
    """Targets for units: shares of the multiply-adds that stay."""
    starts: tuple[Literal["scratch", "pretrained"], ...] | None = None
    """From which networks to prune."""
    rates: tuple[float, ...] | None = None
    """Learning rates of the auxiliary parameters that are compared."""
    rate: float | None = None
    """The one that meets the targets."""
    penalty: float | None = None
    """Pull on every auxiliary parameter."""
    factors: dict[str, float] | None = None
    """What the rate is multiplied with in some layers, where weights are pruned."""
    pretraining: float | None = None
    """Share of the epochs after which a trained network is pruned."""
    magnitudes: bool | None = None
    """Whether the auxiliary parameters of a trained network's weights start in proportion to their magnitudes, and not
    at random. `pretrained_rate` and `pretrained_penalty` are then theirs, and there are no factors."""
    pretrained_rate: float | None = None
    """Learning rate of the auxiliary parameters that start from magnitudes."""
    pretrained_penalty: float | None = None
    """Pull on them."""
    unit_rate: float | None = None
    """Learning rate of the auxiliary parameters of units."""
    optimizer: Literal["sgd", "adam"] | None = None
    """Of the weights while there are gates."""
    pruning_rate: float | None = None
    """Learning rate of the weights while there are gates; that of the dense network if left out."""
    l1: float = 1e-3
    """Strength of the L1 penalty of the weights that is compared with weight decay and with neither."""
    last: float | None = None
    """What is left of that at the end, falling geometrically; a cosine to 0 if left out."""
    cycles: tyro.conf.Suppress[int] = 1
    """One cosine."""
    ablations: bool | None = None
    """Whether to compare updates, learning rates and surrogates too."""
    weight_decay: float | None = None
    """Coefficient of the L2 term, with gates and without."""
    seeds: int | None = None
    """Networks trained side by side."""
    paper: bool = False
    """The paper's own setting, unless other options say otherwise."""


@dataclasses.dataclass(frozen=True)
class Job(Workshop):
    """The workshop, and what was asked of it."""

    config: Config

    @cached_property
    def before(self) -> Recipe:
        """The recipe of the dense network that is pruned when it is trained."""
        return dataclasses.replace(self.recipe, epochs=max(1, round(self.config.pretraining * self.recipe.epochs)))

    @cached_property
    def after(self) -> Recipe:
        """The recipe of what follows: as many epochs as are left."""
        return dataclasses.replace(self.recipe, epochs=max(1, self.recipe.epochs - self.before.epochs))

    @property
    def rule(self) -> Rule:
        """How gates of weights are trained."""
        config = self.config
        return Rule(config.rate, config.factors, config.penalty, descent=DESCENTS[config.optimizer])

    def of(self, start: str) -> Rule:
        """Returns how gates of weights are trained from one of the starts."""
        config = self.config
        if start == "scratch" or not config.magnitudes:
            return self.rule
        settings = {"rate": config.pretrained_rate, "penalty": config.pretrained_penalty, "factors": {}}
        return dataclasses.replace(self.rule, start=gating.magnitudes, **settings)

    def gated(self, initial) -> Recipe:
        """Returns the recipe of networks with gates: all epochs from scratch, what is left of a trained network."""
        config, recipe = self.config, self.recipe if initial is None else self.after
        schedule = recipe.schedule if config.last is None else rates.geometric(config.last)
        return dataclasses.replace(recipe, learning_rate=config.pruning_rate or recipe.learning_rate, schedule=schedule)

    def weights(self, name: str, ratio: float | None, rule: Rule, initial=None) -> Run:
        """Prunes weights down to a compression ratio, or on and on."""
        target = None if ratio is None else sj.targets.weights(sj.budgets.compression(self.shapes, ratio))
        recipe = self.gated(initial)
        return self.train(name, gating.weights(recipe, rule, target), recipe, initial, ratio=ratio, **rule.settings())

    def units(self, name: str, share: float, initial=None) -> Run:
        """Prunes units down to a share of the multiply-adds."""
        groups, recipe = units.of(self.model, self.image), self.gated(initial)
        rule = dataclasses.replace(self.rule, rate=self.config.unit_rate, factors={})
        budget = sj.budgets.multiply_adds(self.shapes, models.multiply_adds(self.model, self.image), share)
        method = gating.units(recipe, rule, groups, sj.targets.units(budget, groups))
        return self.train(name, method, recipe, initial, share=share, **rule.settings())


def main(config: Config) -> Path:
    """Trains every network, writes report, figures and logs, and returns the folder they are in."""
    config = settle(config)
    dataset, model, recipe = setup.resolve(config)
    directory = config.results / "autoprune" / f"{config.dataset}-{type(model).__name__}"
    with compiling.once():
        found = find(Job(dataset, model, recipe, directory, config))
    checked = autoprune_claims.claims(found)
    report = autoprune_claims.describe(config.dataset, found, checked)
    print(report)
    autoprune_figures.draw(config.dataset, found, directory / "figures")
    results.write(directory, report, config, recipe, found.networks, checked)
    print(f"\nreport, figures and logs are in {directory}")
    return directory


def settle(config: Config) -> Config:
    """Returns the configuration with the paper's setting, or the data set's preset, where the user left a choice."""
    chosen = PRESETS[config.dataset] | setup.published(config, PAPER)
    preset = {"optimizer": "sgd", "seeds": 3, "weight_decay": 5e-4}
    preset |= setup.gates(config.dataset, config.model or chosen.get("model"))
    preset |= {"pretraining": 0.5, "magnitudes": False, "pretrained_rate": 0.1, "pretrained_penalty": 0.02}
    preset |= {"starts": ("scratch", "pretrained"), "ablations": True, "unit_rate": 0.5, "rates": (0.01, 0.1, 0.5)}
    preset |= {"compressions": (10, 20, 30, 80), "shares": (0.5, 0.25, 0.1), **chosen}
    return setup.filled(config, preset)


def find(job: Job) -> Found:
    """Trains and measures the networks: dense, pruned from scratch and pretrained, and the ablations."""
    config, rule = job.config, job.rule
    reference = job.measure("dense", job.train("dense", dense(job.recipe)))
    initial = dict.fromkeys(config.starts)
    if "pretrained" in config.starts:
        initial["pretrained"] = job.train("dense, to prune", dense(job.before), job.before).networks

    def weights(start: str, ratio: float) -> Measured:
        name = f"{start} {ratio:g}x"
        return job.measure(name, job.weights(name, ratio, job.of(start), initial[start]))

    def thinned(start: str, share: float) -> Measured:
        name = f"{start}, units {share:.0%}"
        return job.measure(name, job.units(name, share, initial[start]))

    def regular(ratio: float) -> Measured:
        name = f"regular update {ratio:g}x"
        return job.measure(name, job.weights(name, ratio, dataclasses.replace(rule, power=1.0)))

    def free(surrogate: str, rate: float) -> Run:
        changed = dataclasses.replace(rule, rate=rate, surrogate=SURROGATES[surrogate])
        return job.weights(f"free {surrogate} {rate:g}", None, changed)

    def penalised() -> dict[str, Run]:
        plain = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, weight_decay=0.0))
        return {
            "L2": free("softplus", config.rate),
            "L1": job.weights("free, L1", None, dataclasses.replace(rule, l1=config.l1)),
            "neither": plain.weights("free, no penalty", None, rule),
        }

    return Found(
        reference,
        {start: {ratio: weights(start, ratio) for ratio in config.compressions} for start in config.starts},
        {start: {share: thinned(start, share) for share in config.shares} for start in config.starts},
        {ratio: regular(ratio) for ratio in config.compressions} if config.ablations and "scratch" in initial else {},
        {(name, rate): free(name, rate) for name in SURROGATES for rate in config.rates} if config.ablations else {},
        penalised() if config.ablations else {},
    )
