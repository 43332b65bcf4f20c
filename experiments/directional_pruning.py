"""Directional Pruning: gRDA beside SGD from the same start and on the same batches, and whether its claims hold here.

    python -m experiments directional_pruning                            digits, LeNet-300-100
    python -m experiments directional_pruning --dataset fashion_mnist    60,000 images, LeNet-5
    python -m experiments directional_pruning --tune                     the largest c that keeps accuracy, for one mu
    python -m experiments directional_pruning --paper --dataset cifar10 --data-dir DIR       VGG16, 600 epochs, 10 seeds

Chao, Wang, Xing, Cheng, *Directional Pruning of Deep Neural Networks*, NeurIPS 2020. Nothing is retrained.
"""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro

import sparsejax as sj
from experiments import (
    directional_claims,
    directional_figures,
    geometry,
    pruning,
    rates,
    results,
    setup,
    steps,
    training,
    tuning,
)
from experiments.directional_claims import Found
from experiments.geometry import Batches, Network, Way
from experiments.methods import Method
from experiments.results import Measured
from experiments.workshop import Workshop

EVALUATED = 1000  # images in a batch where the loss is only evaluated

DECAYS = {
    "linear": rates.half_then_linear,
    "none": rates.constant,
    "at 140": rates.drops((140,)),
    "every 30": rates.drops_every(30),
}

# What each data set is trained with unless the command line says otherwise; see also `setup.averaging`.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 300},
    "mnist_5k": {"model": "lenet5-relu", "epochs": 60},
    "mnist": {"model": "lenet5-relu", "epochs": 10, "batch_size": 64, "mus": (0.6, 0.65, 0.66)},
    "fashion_mnist": {"model": "lenet5-relu", "epochs": 10, "batch_size": 64, "mus": (0.6, 0.65, 0.66)},
    "cifar10": {},
    "cifar100": {},
    "imagenet2012": {"decay": "none"},
}
# The published settings (the paper's appendix and the authors' code); another network is asked for with --model.
PAPER: dict[tuple[str, str], dict[str, Any]] = {
    ("cifar10", "vgg16"): {"epochs": 600, "c": 5e-4, "mus": (0.4, 0.51, 0.6, 0.7), "seeds": 10},
    ("cifar10", "wrn-28-10"): {"epochs": 200, "c": 1e-3, "mus": (0.4, 0.501, 0.55, 0.6, 0.65), "seeds": 10},
    ("cifar100", "wrn-28-10"): {"epochs": 200, "c": 1e-3, "mus": (0.501, 0.55, 0.6, 0.65), "seeds": 10},
    ("imagenet2012", "resnet50"): {"epochs": 180, "batch_size": 256, "mus": (0.501, 0.51, 0.55), "seeds": 1},
}


@dataclasses.dataclass(frozen=True)
class Config(setup.Options):
    """gRDA beside SGD over a sweep of mu: sparsity, accuracy, and whether both end in the same valley."""

    mus: tuple[float, ...] | None = None
    """Growth of the threshold; the theory wants (0.5, 1), larger is sparser."""
    c: float | None = None
    """Strength of the threshold."""
    decay: Literal["linear", "none", "at 140", "every 30"] | None = None
    """Learning rate: full for half of the epochs, then linear to a hundredth at 90%; or constant; or a tenth at epoch
    140, or every 30 epochs."""
    seeds: int | None = None
    """Networks trained side by side."""
    weight_decay: float = 0.0
    """gRDA and its SGD have none."""
    cycles: tyro.conf.Suppress[int] = 1
    """These learning rates have no cycles."""
    margin: float = 0.3
    """Points of accuracy that gRDA may lose against SGD, in the claims and in tuning."""
    images: int = 1000
    """Training images on which curvature, curves and planes are computed; large data sets need not take all."""
    directions: int = 10
    """Steepest directions at SGD's networks."""
    snapshots: int = 8
    """How many times between start and end they are computed."""
    curve_epochs: int = 50
    """Passes over ten times these images that train a curve."""
    grid: int = 29
    """Points along each side of the plane."""
    tune: bool = False
    """Only find the largest c that loses at most the margin on the validation split, for the smallest mu above 0.5."""
    tune_epochs: int = 5
    """Epochs of each trial, at the full learning rate."""
    paper: bool = False
    """The paper's own setting, unless other options say otherwise."""


@dataclasses.dataclass(frozen=True)
class Job(Workshop):
    """The workshop, and what was asked of it."""

    config: Config

    @cached_property
    def data(self) -> Batches:
        """The training images on which curvature, curves and planes are computed."""
        return geometry.batches(self.dataset, self.config.images, EVALUATED)

    @cached_property
    def seen(self) -> Batches:
        """The training images that the curves are trained on."""
        return geometry.batches(self.dataset, 10 * self.config.images, self.recipe.batch_size)

    @cached_property
    def curve_descent(self) -> optax.GradientTransformation:
        """What trains the curves; one object, so that all of them are trained by one program."""
        steps = self.config.curve_epochs * len(self.seen[1])
        return optax.sgd(optax.cosine_decay_schedule(self.recipe.learning_rate, steps))

    @property
    def marks(self) -> list[int]:
        """The epochs after which networks are kept; the last one is among them."""
        return self.spread(self.config.snapshots)

    def network(self, name: str, method: Method, **asked) -> Measured:
        """Trains and measures a network; sparsities are those of all parameters."""
        return self.measure(name, self.train(name, method, snapshots=self.marks, **asked))

    def score(self, params, model_state, split) -> dict[str, np.ndarray]:
        """Returns how well networks do on a split."""
        return training.evaluate(self.model, params, model_state, split, self.dataset)


def main(config: Config) -> Path:
    """Runs the experiment, or tunes c, and returns the folder of the results."""
    config = settle(config)
    dataset, model, recipe = setup.resolve(config)
    recipe = dataclasses.replace(recipe, momentum=0.0, schedule=DECAYS[config.decay])
    directory = config.results / "directional_pruning" / f"{config.dataset}-{type(model).__name__}"
    job = Job(dataset, model, recipe, directory, config)
    if config.tune:
        return tune(dataclasses.replace(job, directory=directory.with_name(f"{directory.name}-tuning")))
    found = examine(job, *compare(job))
    checked = directional_claims.claims(found, config.margin)
    networks = [found.descent, *found.averaged.values(), *found.cut.values()]
    report = directional_claims.describe(f"{config.dataset}, c = {config.c:g}", found, networks, checked)
    print(report)
    directional_figures.draw(config.dataset, found, directory / "figures")
    results.write(directory, report, config, recipe, networks, checked)
    print(f"\nreport, figures and logs are in {directory}")
    return directory


def settle(config: Config) -> Config:
    """Returns the configuration with the paper's setting, or the data set's preset, where the user left a choice."""
    rate, c = setup.averaging(config.dataset, config.model)
    preset = {"mus": (0.4, 0.51, 0.6, 0.7), "decay": "linear", "seeds": 3, "learning_rate": rate, "c": c}
    preset |= PRESETS[config.dataset]
    return setup.filled(config, preset | setup.published(config, PAPER))


def compare(job: Job) -> tuple[Measured, dict[float, Measured], dict[float, Measured]]:
    """Returns SGD's networks, gRDA's by mu, and SGD's with as many of their smallest weights cut."""
    c = job.config.c
    descent, averaged, cut = job.network("SGD", pruning.descent(job.recipe)), {}, {}
    for mu in job.config.mus:
        averaged[mu] = job.network(f"gRDA {mu:g}", pruning.dual_averaging(job.recipe, c, mu), c=c, mu=mu)
        params = magnitude(descent.run.params, averaged[mu].sparsity / 100)
        cut[mu] = job.measure(f"SGD, cut as gRDA {mu:g}", dataclasses.replace(descent.run, params=params))
    return descent, averaged, cut


def examine(job: Job, descent: Measured, averaged: dict[float, Measured], cut: dict[float, Measured]) -> Found:
    """Measures what lies between the networks, of the first seed, and their losses and accuracies, of all."""
    runs = {network.name: network.run for network in (descent, *averaged.values())}
    snapshots = {name: {e: steps.one(run.snapshots[e]) for e in job.marks} for name, run in runs.items()}
    start, chosen = snapshots.pop(descent.name), choose(averaged)
    end = start[job.marks[-1]]
    last = {mu: snapshots[network.name][job.marks[-1]] for mu, network in averaged.items()}
    ways = {mu: way(job, first, end) for mu, first in last.items()}
    train, test = job.dataset.train, job.dataset.test
    return Found(
        descent=descent,
        averaged=averaged,
        cut=cut,
        losses={name: job.score(run.params, run.model_state, train)["loss"] for name, run in runs.items()},
        tests={
            name: np.array([100 * job.score(*run.snapshots[e], test)["accuracy"] for e in job.marks])
            for name, run in runs.items()
        },
        chosen=chosen,
        projection=geometry.projection(job.model, start, snapshots, job.data, job.config.directions),
        ways=ways,
        landscape=geometry.landscape(job.model, last[chosen], ways[chosen].control, end, job.data, job.config.grid),
        erk=balanced(job.shapes, averaged[chosen]),
    )


def way(job: Job, first: Network, second: Network) -> Way:
    """Returns the way between two networks of the first seed."""
    return geometry.way(job.model, first, second, job.data, job.seen, job.curve_descent, job.config.curve_epochs)


def balanced(shapes, network: Measured) -> dict[str, float]:
    """Returns the sparsity in percent that the Erdos-Renyi-kernel rule gives each kernel at that of all of them."""
    kernels = set(sj.tree.select(shapes))
    leaves = [leaf for report in network.reports for leaf in report.leaves if leaf.name in kernels]
    sparsity = 1 - sum(leaf.nonzeros for leaf in leaves) / sum(leaf.size for leaf in leaves)
    allocated = sj.tree.named(sj.allocate.erdos_renyi(shapes, sparsity))
    return {name: 100 * allocated[name] for name in allocated if name in kernels}


def magnitude(params, sparsities: np.ndarray):
    """Returns every seed's parameters with a share of the smallest, of all layers together, set to zero."""

    def cut(one, sparsity):
        return sj.masks.apply(sj.select.globally(sj.scores.magnitude(one), sparsity), one)

    return jax.jit(jax.vmap(cut))(params, np.asarray(sparsities, np.float32))


def choose(averaged: dict[float, Measured], sparsity: float = 90.0) -> float:
    """Returns the mu of the network to look at: the most accurate on the validation split of those sparse enough.

    Args:
      averaged: gRDA's networks by mu.
      sparsity: in percent of all parameters; if none is that sparse, the sparsest is taken.

    Returns:
      One of the keys.
    """
    sparse = {mu: network for mu, network in averaged.items() if network.sparsity.mean() >= sparsity}
    if not sparse:
        return max(averaged, key=lambda mu: averaged[mu].sparsity.mean())
    return max(sparse, key=lambda mu: sparse[mu].validation)


def tune(job: Job) -> Path:
    """Prints the largest c that loses at most the margin against SGD after a few epochs."""
    config = job.config
    mu = min((mu for mu in config.mus if mu > 0.5), default=config.mus[0])
    size = sum(leaf.size for leaf in jax.tree.leaves(job.shapes))
    recipe = dataclasses.replace(job.recipe, epochs=config.tune_epochs, schedule=rates.constant)

    def last(method: Method) -> tuple[float, float]:
        row = training.train(job.model, method, job.dataset, recipe).history[-1]
        return 100 * float(np.mean(row["val_accuracy"])), 100 * (1 - float(np.mean(row["nonzeros"])) / size)

    def trial(c: float) -> tuning.Trial:
        return tuning.Trial(c, *last(pruning.dual_averaging(recipe, c, mu)))

    reference, _ = last(pruning.descent(recipe))
    best, trials = tuning.largest(trial, reference - config.margin, config.c)
    subject = f"mu = {mu:g} on {config.dataset}: {config.tune_epochs} epochs, {config.seeds} seeds"
    report = tuning.describe(subject, reference, config.margin, best, trials)
    print(report)
    results.write(job.directory, report, config, recipe, [])
    return job.directory
