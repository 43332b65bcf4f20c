"""All ratios of masks in one command: `python -m benchmarks` prints the tables and writes the picture.

Selection against sorts, the training step of every recipe against the dense one, and what takes how long to compile;
see `benchmarks.select` and `benchmarks.sparsify`.
"""

import dataclasses
from pathlib import Path

import tyro

from benchmarks import select, sparsify
from experiments import figures


@dataclasses.dataclass(frozen=True)
class Config:
    """Selection, training steps and compilation, as ratios, tables and a picture."""

    selection: select.Config = dataclasses.field(default_factory=select.Config)
    """Ways to select."""
    training: sparsify.Config = dataclasses.field(default_factory=sparsify.Config)
    """Steps of training."""
    results: Path = Path("results/benchmarks")
    """Where the tables and the picture go."""


def main(config: Config) -> Path:
    """Prints the tables, writes them and the picture, and returns the folder they are in."""
    selection, steps = select.measure(config.selection), sparsify.measure(config.training)
    report = f"{select.describe(selection)}\n\n{sparsify.describe(steps)}\n"
    print(report)
    drawn, axes = figures.figure("Selection and masks through training, medians and quartiles", columns=3, width=5.2)
    select.draw(axes[0], selection)
    sparsify.draw(axes[1], axes[2], steps)
    figures.save(drawn, config.results / "ratios.png")
    (config.results / "ratios.md").write_text(report)
    print(f"tables and picture are in {config.results}")
    return config.results


if __name__ == "__main__":
    main(tyro.cli(Config))
