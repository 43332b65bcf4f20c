"""The figures of *AutoPrune*, of what `experiments.autoprune` found."""

from pathlib import Path

import numpy as np

from experiments import figures
from experiments.autoprune_claims import Found, compression
from experiments.results import Measured
from experiments.training import Run


def draw(dataset: str, found: Found, directory: Path) -> None:
    """Draws figure 2 of the paper, recovery over time, and units against their multiply-adds.

    Args:
      dataset: named in the titles.
      found: what to draw.
      directory: where to; it is made if it does not exist.
    """
    if any(found.weights.values()):
        accuracy(dataset, found, directory / "figure2c_updates.png")
    if any(found.units.values()):
        units(dataset, found, directory / "units.png")
    if found.free:
        learning_rates(dataset, found, directory / "figure2ab_learning_rates.png")
        surrogates(dataset, found, directory / "figure2d_surrogates.png")
        recovery(dataset, found, directory / "recovery.png")


def accuracy(dataset: str, found: Found, path: Path) -> None:
    """Draws test accuracy against compression: from scratch, pretrained, and with the regular update."""
    drawn, axes = figures.figure(f"Figure 2c. Accuracy against compression: all, and near dense, {dataset}", columns=2)
    groups = {**found.weights, "scratch, regular update": found.regular}
    series = {name: [(n.compression, n.accuracy) for n in group.values()] for name, group in groups.items() if group}
    _around_dense(axes, found.dense, series, "compression (all parameters / non-zeros)")
    figures.save(drawn, path)


def units(dataset: str, found: Found, path: Path) -> None:
    """Draws test accuracy against the multiply-adds that are left when units are pruned."""
    drawn, axes = figures.figure(f"Units: accuracy against multiply-adds, {dataset}", columns=2)
    series = {name: [(n.multiply_adds_left, n.accuracy) for n in group.values()] for name, group in found.units.items()}
    _around_dense(axes, found.dense, series, "multiply-adds left %")
    figures.save(drawn, path)


def learning_rates(dataset: str, found: Found, path: Path) -> None:
    """Draws compression over epochs, and validation accuracy against compression, for every learning rate."""
    drawn, axes = figures.figure(f"Figure 2a, 2b. Learning rates of the auxiliary parameters, {dataset}", columns=2)
    runs = {f"{rate:g}": run for (surrogate, rate), run in found.free.items() if surrogate == "softplus"}
    _over_epochs(axes[0], found, runs)
    for index, (name, run) in enumerate(runs.items()):
        x = compression(found, run).mean(1)
        y = 100 * np.array([row["val_accuracy"] for row in run.history]).mean(1)
        axes[1].plot(x, y, label=name, markersize=3, linewidth=1, **figures.style(index))
    axes[1].set(xscale="log", xlabel="compression", ylabel="validation accuracy %")
    axes[1].legend(fontsize=8, frameon=False)
    figures.save(drawn, path)


def surrogates(dataset: str, found: Found, path: Path) -> None:
    """Draws compression over epochs for every surrogate, one picture a learning rate."""
    rates = sorted({rate for _, rate in found.free})
    drawn, axes = figures.figure(f"Figure 2d. Surrogate derivatives, {dataset}", columns=len(rates), width=4.6)
    for ax, rate in zip(axes, rates, strict=True):
        _over_epochs(ax, found, {name: run for (name, other), run in found.free.items() if other == rate})
        ax.set_title(f"learning rate {rate:g}", fontsize=9)
    figures.save(drawn, path)


def recovery(dataset: str, found: Found, path: Path) -> None:
    """Draws how many weights each epoch prunes, and how many it brings back."""
    drawn, axes = figures.figure(f"Weights pruned and recovered in every epoch, {dataset}", columns=2)
    runs = {f"rate {rate:g}": run for (surrogate, rate), run in found.free.items() if surrogate == "softplus"}
    runs |= {f"{name} on weights": run for name, run in found.penalties.items() if name != "L2"}
    for ax, column, label in zip(axes, ("closings", "openings"), ("pruned", "recovered"), strict=True):
        totals = {name: np.array([row[column] for row in run.history]) for name, run in runs.items()}
        figures.curves(ax, {n: np.diff(t, axis=0, prepend=0) for n, t in totals.items()}, "epoch", f"weights {label}")
        ax.set(yscale="symlog")
    figures.save(drawn, path)


def _over_epochs(ax, found: Found, runs: dict[str, Run]) -> None:
    figures.curves(ax, {name: compression(found, run) for name, run in runs.items()}, "epoch", "compression")
    ax.set(yscale="log")


def _around_dense(axes, dense: Measured, series: dict[str, list[figures.Point]], x_label: str) -> None:
    """Draws the same points twice: all of them, and those near the dense network."""
    level = dense.accuracy.mean()
    for ax in axes:
        ax.axhline(level, color="black", linewidth=0.8, linestyle=":", label="dense")
        figures.tradeoff(ax, series, x_label, "test accuracy %")
    axes[1].get_legend().remove()  # the left one's
    axes[1].set_ylim(level - 3, level + 1)
