"""Prepares a data set on this machine, without a network: `python -m experiments prepare_data fashion_mnist`."""

import dataclasses
from pathlib import Path

import tyro

from experiments import data


@dataclasses.dataclass(frozen=True)
class Config:
    """Prepare a data set from files that are here already."""

    name: tyro.conf.Positional[str]
    """Data set: digits, mnist_5k or fashion_mnist."""
    manual_dir: Path | None = None
    """Where the four official files of fashion_mnist are, if not where Debian's package puts them."""
    data_dir: str | None = None
    """Where to put the prepared data set; TensorFlow Datasets' usual folder if left out."""


def main(config: Config) -> Path:
    """Prepares the data set and returns the folder it is in."""
    directory = data.prepare(config.name, config.manual_dir, config.data_dir)
    print(f"{config.name} is prepared in {directory}")
    return directory
