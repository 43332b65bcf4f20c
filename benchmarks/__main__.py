"""All ratios of masks and units in one command: `python -m benchmarks` prints the tables and writes the pictures.

Selection against sorts, the training step of every recipe against the dense one, what takes how long to compile, and
the units of networks: how long they take to find, and how fast the smaller network is. See `benchmarks.select`,
`benchmarks.sparsify` and `benchmarks.units`.
"""

import dataclasses
from pathlib import Path

import tyro

from benchmarks import select, sparsify, units
from experiments import figures


@dataclasses.dataclass(frozen=True)
class Config:
    """Selection, training steps, compilation and units, as ratios, tables and pictures."""

    selection: select.Config = dataclasses.field(default_factory=select.Config)
    """Ways to select."""
    training: sparsify.Config = dataclasses.field(default_factory=sparsify.Config)
    """Steps of training."""
    smaller: units.Config = dataclasses.field(default_factory=units.Config)
    """Units found and removed."""
    results: Path = Path("results/benchmarks")
    """Where the tables and the pictures go."""


def main(config: Config) -> Path:
    """Prints the tables, writes them and the pictures, and returns the folder they are in."""
    selection, steps = select.measure(config.selection), sparsify.measure(config.training)
    found = units.measure(config.smaller)
    report = f"{select.describe(selection)}\n\n{sparsify.describe(steps)}\n\n{units.describe(found)}\n"
    print(report)
    drawn, axes = figures.figure("Selection and masks through training, medians and quartiles", columns=3, width=5.2)
    select.draw(axes[0], selection)
    sparsify.draw(axes[1], axes[2], steps)
    figures.save(drawn, config.results / "ratios.png")
    drawn, axes = figures.figure("Units: found by tracing, and a network without half of them", columns=2)
    units.draw(*axes, found)
    figures.save(drawn, config.results / "units.png")
    (config.results / "ratios.md").write_text(report)
    print(f"tables and pictures are in {config.results}")
    return config.results


if __name__ == "__main__":
    main(tyro.cli(Config))
