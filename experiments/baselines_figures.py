"""The figures of what `experiments.baselines` found."""

from pathlib import Path

from experiments import figures
from experiments.baselines_claims import SHUFFLED, THIN, Found

FAMILIES = {
    "pruned while or after training": (
        "gradual magnitude",
        "global magnitude",
        "one-shot magnitude",
        "one-shot LAMP",
        "Wanda",
    ),
    "sparse from the start": ("RigL", "SET", "SNIP", "random"),
    "papers' methods": ("adaptive sparsity", "AutoPrune", "gRDA", "gradual magnitude"),
    "structured": ("N:M", "blocks", "channels", "gradual magnitude"),
    "controls: shuffled": ("one-shot magnitude", "one-shot magnitude" + SHUFFLED, "SNIP", "SNIP" + SHUFFLED),
}


def draw(dataset: str, found: Found, directory: Path) -> None:
    """Draws accuracy against compression by family of methods, all of it and near the dense network.

    Args:
      dataset: named in the titles.
      found: what to draw.
      directory: where to; it is made if it does not exist.
    """
    title = f"Accuracy against compression, {dataset}, mean and standard deviation over seeds"
    level = found.dense.accuracy.mean()
    for name, below in (("tradeoff", None), ("tradeoff_near_dense", 5.0)):
        drawn, axes = figures.figure(title, columns=len(FAMILIES), width=4.6, height=4.4)
        for ax, (family, methods) in zip(axes, FAMILIES.items(), strict=True):
            ax.axhline(level, color="black", linewidth=0.8, linestyle=":", label="dense")
            # The thin network comes first, so that it looks the same everywhere.
            figures.tradeoff(ax, series(found, (THIN, *methods)), "compression (all parameters / non-zeros)", "")
            ax.set_title(family, fontsize=9)
            ax.legend(fontsize=8, frameon=False, loc="lower left")
            if below is not None:
                ax.set_ylim(level - below, level + 1)
        axes[0].set_ylabel("test accuracy %")
        figures.save(drawn, directory / f"{name}.png")


def series(found: Found, methods: tuple[str, ...]) -> dict[str, list[figures.Point]]:
    """Returns the points of methods: compression and accuracy, over seeds."""
    groups = {name: list(row.values()) for name, row in found.rows.items()}
    groups |= {"N:M": found.groups, "gRDA": found.averaged}
    return {name: [(n.compression, n.accuracy) for n in groups[name]] for name in methods}
