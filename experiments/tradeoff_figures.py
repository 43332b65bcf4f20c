"""The figures of what `experiments.tradeoff` found."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from experiments import figures, published
from experiments.contenders import SHUFFLED, THIN
from experiments.published import Published
from experiments.results import Measured
from experiments.tradeoff_claims import Found, counts

FAMILIES = {
    "pruned while or after training": (
        "gradual magnitude",
        "global magnitude",
        "one-shot magnitude",
        "one-shot LAMP",
        "Wanda",
        "lottery ticket",
    ),
    "sparse from the start": ("RigL", "SET", "SNIP", "random"),
    "papers' methods": ("adaptive sparsity", "AutoPrune", "AutoPrune, pretrained", "gRDA", "gradual magnitude"),
    "structured": ("N:M", "blocks", "channels", "mean replacement", "AutoPrune, units", THIN + ", multiply-adds"),
    "controls: masks of a trained network": (
        "one-shot magnitude",
        "one-shot magnitude" + SHUFFLED,
        "lottery ticket",
        "magnitude mask, other weights",
    ),
    "controls: masks before training": ("SNIP", "SNIP" + SHUFFLED, "random"),
}
NEAR = 5.0
"""Points of accuracy below the dense network that are drawn a second time."""


def draw(dataset: str, network: str, found: Found, directory: Path) -> None:
    """Draws accuracy by family of methods: against compression, all and near the dense network; and multiply-adds.

    Args:
      dataset: named in the titles.
      network: the dense one's, too.
      found: what to draw.
      directory: where to; it is made if it does not exist.
    """
    others = published.of(dataset, network)

    def compression(measured: Measured) -> np.ndarray:
        return measured.compression

    title, label = f"{network} on {dataset}: accuracy against", "compression (all parameters / non-zeros)"
    families(f"{title} compression", found, compression, label, directory / "compression.png", others=others)
    families(f"{title} compression", found, compression, label, directory / "near_dense.png", NEAR, others)
    label = "multiply-adds, dense / left (zeros skipped)"
    families(f"{title} multiply-adds", found, found.fewer_multiply_adds, label, directory / "multiply_adds.png")


def families(
    title: str,
    found: Found,
    x: Callable[[Measured], np.ndarray],
    label: str,
    path: Path,
    below: float | None = None,
    others: Sequence[Published] = (),
) -> None:
    """Draws accuracy against what `x` says of a network, one picture a family; crosses do not count.

    Args:
      title: of the figure.
      found: what to draw.
      x: what is on the horizontal axis, of every seed.
      label: what that is.
      path: where to.
      below: how far below the dense network the axis begins; everything is drawn if left out.
      others: published numbers, in grey.
    """
    drawn, axes = figures.figure(title, columns=3, width=4.8, rows=2)
    level = found.dense.accuracy.mean()
    for ax, (family, methods) in zip(axes, FAMILIES.items(), strict=True):
        ax.axhline(level, color="black", linewidth=0.8, linestyle=":", label="dense")
        # The thin network comes first, so that it looks the same everywhere.
        chosen = {name: row for name in (THIN, *methods) if (row := _row(found, name))}
        series = {name: [(x(network), network.accuracy) for network, _ in row] for name, row in chosen.items()}
        figures.tradeoff(ax, series, label, "")
        missed = [network for row in chosen.values() for network, good in row if not good]
        ax.plot([x(n).mean() for n in missed], [n.accuracy.mean() for n in missed], "x", color="black", markersize=9)
        for other in others:
            reference = "" if other.dense is None else f" (dense {other.dense:g})"
            ax.plot(*zip(*other.points, strict=True), "s", color="0.7", markersize=4, label=other.source + reference)
        ax.set_title(family, fontsize=9)
        ax.legend(fontsize=7, frameon=False, loc="lower left")
        if below is not None:
            ax.set_ylim(level - below, level + 1)
    for ax in axes[::3]:
        ax.set_ylabel("test accuracy %")
    figures.save(drawn, path)


def _row(found: Found, name: str) -> list[tuple[Measured, bool]]:
    """Returns the networks of a method, and whether they count."""
    free = {"N:M": found.groups, "gRDA": found.averaged}
    if name in free:
        return [(network, not any(network.run.failed)) for network in free[name]]
    return [(network, counts(network, asked)) for asked, network in found.rows.get(name, {}).items()]
