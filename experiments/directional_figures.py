"""The figures of *Directional Pruning*, of what `experiments.directional_pruning` found."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import sparsejax as sj
from experiments import figures
from experiments.directional_claims import Found
from experiments.geometry import POINTS, Projection
from experiments.results import Measured


def draw(dataset: str, found: Found, directory: Path) -> None:
    """Draws figures 1, 2, 4-6 and 8 (or 9, 10) of the paper for the chosen data, and 11 for all mu.

    Args:
      dataset: named in the titles.
      found: what to draw.
      directory: where to; it is made if it does not exist.
    """
    flatness(dataset, found, directory / "figure2_flatness.png")
    training(dataset, found, directory / "figure8_training.png")
    sparsity(dataset, found, directory / "figure4_sparsity.png")
    steepness(dataset, found.projection, directory / "figure6_projection.png")
    valley(dataset, found, directory / "figure1_valley.png")


def flatness(dataset: str, found: Found, path: Path) -> None:
    """Draws |w|_2 / |w|_1 over epochs, with the bound that equal weights would attain."""
    drawn, axes = figures.figure(f"Figure 2. Ratio of norms while training, {dataset}")
    series = {name: _history(network, "norm_ratio") for name, network in found.networks.items()}
    figures.curves(axes[0], series, "epoch", "|w|$_2$ / |w|$_1$")
    bound = found.descent.original**-0.5
    axes[0].axhline(bound, color="black", linewidth=0.8, linestyle=":", label="d$^{-1/2}$")
    axes[0].set(yscale="log")
    axes[0].legend(fontsize=8, frameon=False)
    figures.save(drawn, path)


def training(dataset: str, found: Found, path: Path) -> None:
    """Draws training loss, test accuracy and density over epochs."""
    drawn, axes = figures.figure(f"Figure 8. Learning curves, {dataset}", columns=3, width=4.6)
    loss = {name: _history(network, "train_loss") for name, network in found.networks.items()}
    density = {name: 100 * _history(network, "nonzeros") / network.original for name, network in found.networks.items()}
    figures.curves(axes[0], loss, "epoch", "training loss")
    figures.curves(axes[1], found.tests, "epoch", "test accuracy %", found.projection.epochs)
    figures.curves(axes[2], density, "epoch", "density %")
    for ax in (axes[0], axes[2]):
        ax.set(yscale="log")
    figures.save(drawn, path)


def sparsity(dataset: str, found: Found, path: Path) -> None:
    """Draws test accuracy against sparsity, and the sparsity of each layer beside the Erdos-Renyi-kernel rule."""
    title = f"Figure 4. Accuracy against sparsity: all, and near SGD; sparsity of each layer, {dataset}"
    drawn, axes = figures.figure(title, columns=3, width=5)
    series = {
        "gRDA": [(network.sparsity, network.accuracy) for network in found.averaged.values()],
        "SGD, smallest weights cut": [(network.sparsity, network.accuracy) for network in found.cut.values()],
    }
    level = found.descent.accuracy.mean()
    for ax in axes[:2]:
        ax.axhline(level, color="black", linewidth=0.8, linestyle=":", label="SGD")
        figures.points(ax, series, "sparsity of all parameters %", "test accuracy %")
    axes[1].set_ylim(level - 4, level + 1)
    kernels = {network.name: {name: network.layers[name] for name in found.erk} for network in found.averaged.values()}
    label = f"ERK, as gRDA {found.chosen:g}"
    balanced = {name: np.array([value]) for name, value in found.erk.items()}
    figures.layers(axes[2], {**kernels, label: balanced}, "zeros %")
    figures.save(drawn, path)


def steepness(dataset: str, projection: Projection, path: Path) -> None:
    """Draws the share of the displacement that lies in the steepest directions, over epochs."""
    count = projection.values.shape[1]
    drawn, axes = figures.figure(f"Figure 6. Displacement in the {count} steepest directions, {dataset}, first seed")
    series = {name: shares[:, None] for name, shares in projection.shares.items()}
    figures.curves(axes[0], series, "epoch", "|V$^T$d| / |d|", projection.epochs)
    axes[0].axhline(projection.chance, color="black", linewidth=0.8, linestyle=":", label="random")
    axes[0].set(yscale="log")
    axes[0].legend(fontsize=8, frameon=False)
    figures.save(drawn, path)


def valley(dataset: str, found: Found, path: Path) -> None:
    """Draws the plane of the chosen network with the curve on it, and the loss along every curve and straight line."""
    drawn, axes = figures.figure(f"Figures 1, 5, 11. Training loss between gRDA and SGD, {dataset}, first seed", 2)
    land, ts = found.landscape, np.linspace(0, 1, POINTS)
    corners = [jnp.asarray(point) for point in land.points]
    way = np.asarray(jax.vmap(lambda t: sj.directional.bezier(*corners, t))(jnp.asarray(ts, jnp.float32)))
    marks = {found.averaged[found.chosen].name: land.points[0], "control point": land.points[1], "SGD": land.points[2]}
    figures.contour(axes[0], land.xs, land.ys, land.loss, marks, way)
    axes[0].set(xlabel="from gRDA to SGD", ylabel="towards the control point")
    for index, (mu, between) in enumerate(found.ways.items()):
        colour = figures.COLOURS[index % len(figures.COLOURS)]
        axes[1].plot(ts, between.curve, color=colour, label=f"gRDA {mu:g}, curve", linewidth=1.4)
        axes[1].plot(ts, between.segment, color=colour, label="straight line", linewidth=1, linestyle="--")
    axes[1].set(xlabel="t, from gRDA (0) to SGD (1)", ylabel="training loss", yscale="log")
    axes[1].legend(fontsize=7, frameon=False, ncols=2)
    figures.save(drawn, path)


def _history(network: Measured, column: str) -> np.ndarray:
    """Returns a column of the run's history, (epochs, seeds)."""
    return np.array([row[column] for row in network.run.history])
