"""What an experiment says: measured networks, tables, and claims that hold or do not."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

import sparsejax as sj
from experiments import models, provenance, training
from experiments.data import Dataset
from experiments.methods import Recipe, settings
from experiments.training import Run


class Measured(NamedTuple):
    """A trained network, counted and tested; arrays and tuples run over seeds."""

    name: str
    accuracy: np.ndarray
    """Top-1 accuracy on the test split, in percent."""
    reports: tuple[sj.report.Report, ...]
    """Counts of the finalised parameters; prunable are the leaves that the method prunes."""
    run: Run
    original: int
    """Parameters of the dense network that it is compared with; a thin network has fewer of its own."""

    @property
    def nonzeros(self) -> np.ndarray:
        """Non-zeros among all parameters."""
        return np.array([report.nonzeros for report in self.reports])

    @property
    def kept(self) -> np.ndarray:
        """Non-zeros as a share of all parameters of the dense network, in percent."""
        return 100 * self.nonzeros / self.original

    @property
    def compression(self) -> np.ndarray:
        """All parameters of the dense network / non-zeros."""
        return self.original / self.nonzeros

    @property
    def sparsity(self) -> np.ndarray:
        """Share of zeros in the layers that are pruned, in percent."""
        return np.array([100 * report.prunable_sparsity for report in self.reports])

    @property
    def multiply_adds_left(self) -> np.ndarray:
        """Multiply-adds that zeros leave, in percent of this network's without zeros."""
        return np.array([100 * report.effective_multiply_adds / report.multiply_adds for report in self.reports])

    @property
    def validation(self) -> float:
        """Accuracy on the validation split after the last epoch, in percent, as the mean over seeds."""
        return 100 * float(np.mean(self.run.history[-1]["val_accuracy"]))

    @property
    def layers(self) -> dict[str, np.ndarray]:
        """Share of zeros of each layer that is pruned, in percent, by leaf name."""
        leaves = {leaf.name: [] for leaf in self.reports[0].leaves if leaf.prunable}
        for report in self.reports:
            for leaf in report.leaves:
                if leaf.prunable:
                    leaves[leaf.name].append(100 * leaf.sparsity)
        return {name: np.array(values) for name, values in leaves.items()}

    @property
    def largest(self) -> str:
        """The name of the largest layer that is pruned."""
        return max((leaf for leaf in self.reports[0].leaves if leaf.prunable), key=lambda leaf: leaf.size).name


class Claim(NamedTuple):
    """A statement of a paper, what was measured here, and whether it holds here."""

    statement: str
    paper: str
    measured: str
    holds: bool


def measure(
    name: str,
    run: Run,
    model: nn.Module,
    dataset: Dataset,
    reference: nn.Module,
    pruned: Sequence[str],
    asked: Any = None,
) -> Measured:
    """Counts a finished run and tests it, once, on the test split.

    Args:
      name: what tables and figures call it.
      run: a finished run; its arrays have a leading seeds axis.
      model: the network that was trained.
      dataset: the data it was trained on.
      reference: the dense network that it is compared with.
      pruned: the names of the leaves that sparsities are about.
      asked: the sparsities asked of them, for the reports: a tree, or a share of all of them together.

    Returns:
      A `Measured`.
    """
    scores = training.evaluate(model, run.params, run.model_state, dataset.test, dataset)
    # A NaN, of a network that failed, is no zero.
    countable = jax.tree.map(lambda leaf: np.nan_to_num(leaf, nan=1.0), run.params)
    networks = [jax.tree.map(lambda leaf, i=i: leaf[i], countable) for i in range(len(run.failed))]
    products = models.multiply_adds(model, dataset.test.image_shape)
    reports = tuple(
        sj.report.count(params, where=lambda name, _: name in pruned, multiply_adds=products, asked=asked)
        for params in networks
    )
    original = models.parameter_count(reference, dataset.test.image_shape)
    return Measured(name, 100 * np.asarray(scores["accuracy"]), reports, run, original)


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Returns "mean ± standard deviation" over seeds (ddof=1), or the value alone if there is one seed."""
    values = np.asarray(values, np.float64)
    deviation = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"


def is_ahead(points: Sequence[np.ndarray]) -> bool:
    """Returns whether differences, over seeds at each sparsity, are above 0 by more than two standard errors.

    Seeds are what varies: a seed's difference is its mean over the sparsities.
    """
    if not len(points):
        return False
    of_seeds = np.mean(points, 0)
    error = of_seeds.std(ddof=1) / np.sqrt(len(of_seeds)) if len(of_seeds) > 1 else 0.0
    return bool(of_seeds.mean() > 2 * error)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an aligned Markdown table, which reads well in a terminal too; the first column is text."""
    widths = [max(len(str(row[i])) for row in [headers, *rows]) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        first, *others = [str(cell) for cell in cells]
        padded = [first.ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(others, widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join([":" + "-" * (widths[0] + 1), *("-" * (n + 1) + ":" for n in widths[1:])]) + "|"
    return "\n".join([line(headers), rule, *map(line, rows)])


def network_table(networks: Sequence[Measured]) -> str:
    """Returns one row a network: accuracy, what is kept, compression, multiply-adds and training time."""
    headers = ["method", "test accuracy %", "sparsity of pruned layers %", "non-zeros", "kept of all %", "compression"]
    headers += ["multiply-adds", "zeros skipped", "training s"]
    rows = [
        [
            network.name + (" (failed)" if any(network.run.failed) else ""),
            spread(network.accuracy),
            spread(network.sparsity),
            f"{network.nonzeros.mean():,.0f}",
            spread(network.kept),
            f"{network.compression.mean():.2f}x",
            f"{network.reports[0].multiply_adds:,}",
            f"{np.mean([report.effective_multiply_adds for report in network.reports]):,.0f}",
            f"{network.run.seconds:.1f}",
        ]
        for network in networks
    ]
    return table(headers, rows)


def claims_table(claims: Sequence[Claim]) -> str:
    """Returns one row a claim."""
    rows = [[c.statement, c.paper, c.measured, "yes" if c.holds else "NO"] for c in claims]
    return table(["claim", "paper", "measured here", "holds here"], rows)


def summary(network: Measured) -> dict[str, Any]:
    """Returns what a log keeps of a network, JSON-serialisable, values over seeds as lists."""
    return {
        "name": network.name,
        "test_accuracy": network.accuracy.tolist(),
        "sparsity_of_pruned_layers": network.sparsity.tolist(),
        "kept_of_all": network.kept.tolist(),
        "compression": network.compression.tolist(),
        "failed": [bool(failed) for failed in network.run.failed],
        "seconds": network.run.seconds,
        "compile_seconds": network.run.compile_seconds,
        "reports": [report.as_dict() for report in network.reports],
    }


def write(
    directory: Path,
    report: str,
    options: Any,
    recipe: Recipe,
    networks: Sequence[Measured],
    claims: Sequence[Claim] = (),
    **more: Any,
) -> None:
    """Writes `report.md` for people and `results.json` for programs.

    Args:
      directory: where to; it is made if it does not exist.
      report: the Markdown text.
      options: the experiment's configuration, a dataclass.
      recipe: how the networks were trained.
      networks: everything that was measured.
      claims: everything that was checked.
      more: further entries of `results.json`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config, origin = {**dataclasses.asdict(options), **settings(recipe)}, provenance.find()
    config.pop("processes", None)  # the numbers do not depend on who computes them, which the command tells
    footer = "\n".join(f"- {name}: {value}" for name, value in {**config, **origin}.items())
    (directory / "report.md").write_text(f"{report}\n\n## Settings and versions\n\n{footer}\n")
    record = {
        "config": config,
        "provenance": origin,
        "networks": [summary(network) for network in networks],
        "claims": [{**claim._asdict(), "holds": bool(claim.holds)} for claim in claims],  # NumPy's is no JSON
        **more,
    }
    (directory / "results.json").write_text(json.dumps(record, indent=1, default=str))
