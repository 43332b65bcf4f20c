"""The command line: `python -m experiments NAME [options]`; `--help` lists names and options."""

import dataclasses
from typing import Annotated

import tyro
from tyro.conf import subcommand

from experiments import (
    adaptive_sparsity,
    autoprune,
    directional_pruning,
    evidence,
    mean_replacement,
    prepare_data,
    processes,
    quickstart,
    setup,
    tradeoff,
)

EXPERIMENTS = {
    "quickstart": quickstart,
    "adaptive_sparsity": adaptive_sparsity,
    "directional_pruning": directional_pruning,
    "autoprune": autoprune,
    "mean_replacement": mean_replacement,
    "tradeoff": tradeoff,
    "evidence": evidence,
    "prepare_data": prepare_data,
}


def parse(arguments: list[str] | None = None):
    """Returns the configuration that a command line asks for, and the experiment it belongs to."""
    union = None
    for name, module in EXPERIMENTS.items():
        choice = Annotated[module.Config, subcommand(name=name, description=module.Config.__doc__)]
        union = choice if union is None else union | choice
    config = tyro.cli(union, args=arguments, prog="python -m experiments")
    (module,) = [module for module in EXPERIMENTS.values() if type(config) is module.Config]
    return module, config


def run(module, config) -> None:
    """Runs an experiment in the processes that it was asked for; the first one's results are kept."""
    if not isinstance(config, setup.Options):
        module.main(config)
        return
    processes.start(config.processes)
    with processes.one_writer(config.results) as results:
        module.main(dataclasses.replace(config, results=results))


if __name__ == "__main__":
    run(*parse())
