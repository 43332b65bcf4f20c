"""Weight Pruning via Adaptive Sparsity Loss: its methods, Table 2, figures 1 and 3-7, and whether its claims hold here.

    python -m experiments adaptive_sparsity                            digits, LeNet-300-100
    python -m experiments adaptive_sparsity --dataset fashion_mnist    60,000 images
    python -m experiments adaptive_sparsity --paper --data-dir DIR     CIFAR-100, WRN-16-8, 120 epochs, 3 cycles
    python -m experiments adaptive_sparsity --paper --dataset imagenet2012 --data-dir DIR    AlexNet, Table 3

Retsinas, Elafrou, Goumas, Maragos, 2020. Everything is trained for the same number of epochs: from scratch, or where a
trained network is pruned, from that; only thin networks, whose shapes are others, always start anew.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

import sparsejax as sj
from experiments import figures, models, pruning, results, setup
from experiments.methods import Method, Recipe, dense
from experiments.results import Claim, Measured, spread
from experiments.steps import Networks
from experiments.workshop import Workshop


@dataclasses.dataclass(frozen=True)
class Config(setup.Options):
    """Adaptive sparsity loss: dense, thin, fixed and learned bounds, and the trade-off curves between them."""

    target: float = 0.85
    """Sparsity asked of the pruned layers."""
    sweep: tuple[float, ...] | None = None
    """Further targets, for the trade-off curves."""
    strengths: tuple[float, ...] | None = None
    """Factors lambda of the unconstrained loss."""
    pretraining: int | None = None
    """Epochs of a dense network that all others start from; 0 trains from scratch."""
    cycles: int | None = None
    """Cosine cycles of the learning rate."""
    seeds: int | None = None
    """Networks trained side by side."""
    paper: bool = False
    """The paper's own setting, unless other options say otherwise."""


PRESET: dict[str, Any] = {
    "sweep": (0.5, 0.7, 0.9, 0.95),
    "strengths": (0.01, 0.1, 1.0, 10.0),
    "pretraining": 0,
    "cycles": 3,
    "seeds": 3,
}

# The published settings: Table 2, Table 3 and Figure 7. On ImageNet, trained networks were pruned for 20 epochs; how
# they were trained is torchvision's recipe.
IMAGENET: dict[str, Any] = {"pretraining": 90, "epochs": 20, "cycles": 1, "seeds": 1}
PAPER: dict[tuple[str, str], dict[str, Any]] = {
    ("cifar100", "wrn-16-8"): {},
    ("imagenet2012", "alexnet"): {**IMAGENET, "learning_rate": 0.01, "sweep": (), "strengths": (10.0,)},
    ("imagenet2012", "resnet50"): {**IMAGENET, "sweep": (0.5, 0.7, 0.8, 0.9), "strengths": ()},
}


class Variant(NamedTuple):
    """A network to train, and how."""

    name: str
    model: nn.Module
    method: Method
    settings: dict


def main(config: Config) -> Path:
    """Trains every variant, writes report, figures and logs, and returns the folder they are in."""
    config = settle(config)
    dataset, model, recipe = setup.resolve(config)
    directory = config.results / "adaptive_sparsity" / f"{config.dataset}-{type(model).__name__}"
    workshop = Workshop(dataset, model, recipe, directory)
    pruned, start = tuple(pruning.bounded(workshop.shapes)), trained(workshop, config.pretraining)
    networks = {}
    for name, network, method, asked in variants(config, model, recipe, workshop.image):
        initial = start if network is model else None
        run = workshop.train(name, method, initial=initial, model=network, variant=name, **asked)
        networks[name] = workshop.measure(name, run, network, pruned)
    checked = claims(config, networks)
    measured = list(networks.values())
    report = describe(config, measured, checked)
    print(report)
    draw(config, networks, directory / "figures")
    results.write(directory, report, config, recipe, measured, checked)
    print(f"\nreport, figures and logs are in {directory}")
    return directory


def settle(config: Config) -> Config:
    """Returns the configuration with the paper's setting, or ours, where the user left a choice."""
    if config.paper and config.dataset == "digits":
        config = dataclasses.replace(config, dataset="cifar100")
    return setup.filled(config, PRESET | setup.published(config, PAPER))


def trained(workshop: Workshop, epochs: int) -> Networks | None:
    """Returns the dense network after some epochs, in one cycle, which others start from; `None` after none."""
    if not epochs:
        return None
    recipe = dataclasses.replace(workshop.recipe, epochs=epochs, cycles=1)
    return workshop.train("dense, to prune", dense(recipe), recipe).networks


def variants(config: Config, model: nn.Module, recipe: Recipe, image: tuple[int, int, int]) -> list[Variant]:
    """Returns every network of the experiment: the paper's Table 1 and 2, and the sweeps of its figures 4 and 7."""
    count, shapes = partial(models.parameter_count, image_shape=image), models.parameter_shapes(model, image)
    target = config.target
    search, gaussian = partial(sj.bounds.search, sparsity=target), partial(sj.bounds.init, sparsity=target)
    asked = {"target": target}
    listed = [
        Variant("dense", model, dense(recipe), {}),
        Variant("thin, Eq. 12", models.scaled(model, 1 - target), dense(recipe), {}),
        Variant("fixed-BS", model, pruning.fixed(recipe, search), asked),
        Variant("fixed-GA without STE", model, pruning.fixed(recipe, gaussian, sj.ops.hard_threshold), asked),
        Variant("budget-avg", model, pruning.budget(recipe, target, pruning.average), asked),
    ]
    for share in (target, *config.sweep):
        label, asked = "" if share == target else f" {share:g}", {"target": share}
        kept = pruning.remaining(shapes, share)
        bounds = partial(sj.bounds.init, sparsity=share)
        listed += [
            Variant(f"thin{label}", models.thin(model, kept, count), dense(recipe), {"parameters": kept}),
            Variant(f"fixed-GA{label}", model, pruning.fixed(recipe, bounds), asked),
            Variant(f"budget-wavg{label}", model, pruning.budget(recipe, share), asked),
            Variant(f"budget-counted{label}", model, pruning.counted_budget(recipe, share), asked | {"lambda": 100}),
        ]
    for strength in config.strengths:
        method = pruning.unconstrained(recipe, strength)
        listed.append(Variant(f"unconstr {strength:g}", model, method, {"lambda": strength}))
    return listed


def claims(config: Config, networks: dict[str, Measured]) -> list[Claim]:
    """Returns the paper's statements beside what was measured; differences of accuracy are paired by seed."""
    dense_run, thin, wavg, avg = (networks[name] for name in ("dense", "thin", "budget-wavg", "budget-avg"))
    counted = networks["budget-counted"]
    search, gaussian, without = (networks[name] for name in ("fixed-BS", "fixed-GA", "fixed-GA without STE"))
    target = 100 * config.target
    lost = wavg.accuracy - dense_run.accuracy
    gained = wavg.accuracy - thin.accuracy
    overhead = wavg.run.seconds / dense_run.run.seconds
    bell = [np.mean([gaussian_distance(w) for w in stored(network)]) for network in (gaussian, without)]
    error = {name: abs(networks[name].sparsity.mean() - target) for name in ("fixed-BS", "fixed-GA")}
    return [
        Claim(
            f"budget-wavg meets its target of {target:g}% (within 0.5 points)",
            "85.45%",
            f"{spread(wavg.sparsity)}%",
            bool(abs(wavg.sparsity.mean() - target) <= 0.5),
        ),
        Claim(
            "budget-wavg loses no accuracy (at most 0.3 points)",
            "+0.03 points",
            f"{lost.mean():+.2f} points ({spread(wavg.accuracy)} against {spread(dense_run.accuracy)})",
            bool(lost.mean() >= -0.3),
        ),
        Claim(
            "it beats the thin dense network of its size (by at least 1 point)",
            "+3.66 points",
            f"{gained.mean():+.2f} points (thin: {spread(thin.accuracy)})",
            bool(gained.mean() >= 1),
        ),
        Claim(
            "the binary search meets the target more precisely than the Gaussian",
            "84.90% and 86.09%",
            f"{spread(search.sparsity)}% and {spread(gaussian.sparsity)}%",
            bool(error["fixed-BS"] <= error["fixed-GA"]),
        ),
        Claim(
            "fixed-GA with STE comes near its target (within 1 point)",
            "85.6%",
            f"{spread(gaussian.sparsity)}%",
            bool(error["fixed-GA"] <= 1),
        ),
        Claim(
            "without STE it overshoots (by 5 points or more)",
            "93.2%",
            f"{spread(without.sparsity)}%",
            bool(without.sparsity.mean() - target >= 5),
        ),
        Claim(
            "STE keeps the weights bell-shaped (Kolmogorov distance to a Gaussian, with and without)",
            "figure 3",
            f"{bell[0]:.3f} and {bell[1]:.3f}",
            bool(bell[0] < bell[1]),
        ),
        Claim(
            "budget-avg prunes less than budget-wavg, for it does not know sizes",
            "77.21% against 85.45%",
            f"{spread(avg.sparsity)}% against {spread(wavg.sparsity)}%",
            bool(avg.sparsity.mean() < wavg.sparsity.mean()),
        ),
        Claim(
            "budget-wavg prunes the largest layer most",
            "figure 5",
            f"{wavg.largest}: {spread(wavg.layers[wavg.largest])}%",
            bool(wavg.layers[wavg.largest].mean() >= max(values.mean() for values in wavg.layers.values())),
        ),
        Claim(
            "ours: a budget of counted shares is met whatever the weights' shape (within 0.5 points)",
            "-",
            f"{spread(counted.sparsity)}%, accuracy {spread(counted.accuracy)}",
            bool(abs(counted.sparsity.mean() - target) <= 0.5),
        ),
        Claim(
            "training costs little more than dense (at most 1.2 times the time)",
            "negligible",
            f"{overhead:.2f} times",
            bool(overhead <= 1.2),
        ),
    ]


def stored(network: Measured) -> list[np.ndarray]:
    """Returns the weights that a fixed method trained, pruned or not, of its largest layer, one array a seed."""
    return list(np.asarray(sj.tree.named(network.run.trainable)[network.largest]))


def gaussian_distance(weights: np.ndarray) -> float:
    """Returns the largest gap between the distribution of the weights and the Gaussian of their mean and deviation."""
    ordered = np.sort(np.ravel(weights).astype(np.float64))
    scaled = (ordered - ordered.mean()) / ordered.std(ddof=1)
    normal = np.asarray(jax.scipy.stats.norm.cdf(scaled.astype(np.float32)))
    steps = np.arange(len(scaled) + 1) / len(scaled)
    return float(max(np.max(steps[1:] - normal), np.max(normal - steps[:-1])))


def describe(config: Config, networks: list[Measured], checked: list[Claim]) -> str:
    """Returns the report: Table 2's columns for every network, and the claims."""
    return (
        f"# Adaptive sparsity loss on {config.dataset}\n\n"
        f"{config.seeds} seeds, mean ± standard deviation. The test split was used once, after training.\n\n"
        f"{results.network_table(networks)}\n\n## Claims of the paper\n\n{results.claims_table(checked)}\n"
    )


def draw(config: Config, networks: dict[str, Measured], directory: Path) -> None:
    """Draws the paper's figures 1 and 3-7 for the chosen data."""
    methods = ("dense", "fixed-BS", "fixed-GA", "budget-avg", "budget-wavg", "budget-counted")
    error = {name: 100 - network.accuracy for name, network in networks.items()}

    drawn, axes = figures.figure(f"Figure 1. Weights of the dense network, {config.dataset}, first seed", columns=2)
    leaves = sj.tree.named(networks["dense"].run.params)
    for index, name in enumerate(networks["dense"].layers):
        figures.bell(axes[0], leaves[name][0], name, figures.COLOURS[index % len(figures.COLOURS)])
    largest = networks["dense"].largest
    figures.bell(axes[1], leaves[largest][0], largest, figures.COLOURS[0], fit=True)
    figures.save(drawn, directory / "figure1_weights.png")

    drawn, axes = figures.figure(f"Figure 3. Trained weights of {largest} at {config.target:.0%}", columns=2)
    for ax, name in zip(axes, ("fixed-GA without STE", "fixed-GA"), strict=True):
        figures.bell(ax, stored(networks[name])[0], name, figures.COLOURS[0], fit=True)
    figures.save(drawn, directory / "figure3_straight_through.png")

    curves = {
        "thin dense": ["dense", "thin", *(f"thin {s:g}" for s in config.sweep)],
        "fixed-GA": ["fixed-GA", *(f"fixed-GA {s:g}" for s in config.sweep)],
        "budget-wavg": ["budget-wavg", *(f"budget-wavg {s:g}" for s in config.sweep)],
        "budget-counted": ["budget-counted", *(f"budget-counted {s:g}" for s in config.sweep)],
        "unconstr": [f"unconstr {s:g}" for s in config.strengths],
    }
    points = {curve: [(networks[n].nonzeros, error[n]) for n in names] for curve, names in curves.items()}
    for number, chosen in ((4, ["thin dense"]), (7, list(points))):
        drawn, axes = figures.figure(f"Figure {number}. Error against parameters, {config.dataset}")
        figures.tradeoff(axes[0], {name: points[name] for name in chosen}, "non-zero parameters", "test error %")
        figures.save(drawn, directory / f"figure{number}_tradeoff.png")

    drawn, axes = figures.figure(f"Figure 5. Sparsity of each layer, asked {config.target:.0%}", width=8)
    figures.layers(axes[0], {name: networks[name].layers for name in methods[1:]}, "zeros %")
    axes[0].axhline(100 * config.target, color="black", linewidth=0.8, linestyle=":")
    figures.save(drawn, directory / "figure5_layers.png")

    drawn, axes = figures.figure(f"Figure 6. Validation accuracy while training, {config.dataset}", width=8)
    histories = {name: [epoch["val_accuracy"] for epoch in networks[name].run.history] for name in methods}
    figures.curves(axes[0], {n: 100 * np.array(h) for n, h in histories.items()}, "epoch", "validation accuracy %")
    figures.save(drawn, directory / "figure6_training.png")
