"""All results of a folder in one report: claims of every experiment that is there, trade-offs, and how they were made.

python -m experiments evidence
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import figures, profiles
from experiments.results import table

REPORT = "REPORT.md"
PROFILES = "profiles.png"
TAUS = np.linspace(1, 4, 121)


@dataclasses.dataclass(frozen=True)
class Config:
    """Gather the results that are in a folder into one report."""

    results: Path = Path("results")
    """Where experiments wrote theirs."""


class Result(NamedTuple):
    """What one experiment wrote."""

    experiment: str
    data: str
    """Data set and network."""
    record: dict[str, Any]
    report: str

    @property
    def title(self) -> str:
        """What the report calls it."""
        return f"{self.experiment}, {self.data}"


def main(config: Config) -> Path:
    """Writes the report, and returns its path."""
    path = write(config.results)
    print(f"the report is {path}")
    return path


def write(folder: Path) -> Path:
    """Writes the report on all results of a folder, and returns its path.

    Raises:
      ValueError: the folder has none.
    """
    found = list(read(folder))
    if not found:
        raise ValueError(f"results: {folder} has no EXPERIMENT/DATA/results.json; run an experiment first")
    tradeoffs = [result for result in found if "errors" in result.record]
    parts = [
        "# Evidence\n\nWhat the experiments of this folder found; each wrote its part itself, with the command, the "
        "commit, the versions and the seeds at its end.",
        "## Claims\n\n" + claims(found),
    ]
    if tradeoffs:
        measured = errors(tradeoffs)
        draw(measured, folder / PROFILES)
        parts.append(_profiles(measured))
    parts += [_demoted(result) for result in tradeoffs]
    others = [f"- [{r.title}]({r.experiment}/{r.data}/report.md)" for r in found if r not in tradeoffs]
    if others:
        parts.append("## Other reports\n\n" + "\n".join(others))
    (folder / REPORT).write_text("\n\n".join(parts) + "\n")
    return folder / REPORT


def read(folder: Path) -> Iterator[Result]:
    """Yields the results of a folder, in the order of their names."""
    for path in sorted(folder.glob("*/*/results.json")):
        report = (path.parent / "report.md").read_text()
        yield Result(path.parent.parent.name, path.parent.name, json.loads(path.read_text()), report)


def claims(found: Sequence[Result]) -> str:
    """Returns one row a claim, and how many of an experiment's hold."""
    rows, counted = [], []
    for result in found:
        checked = result.record["claims"]
        rows += [
            [result.title, claim["statement"], claim["paper"], claim["measured"], "yes" if claim["holds"] else "NO"]
            for claim in checked
        ]
        if checked:
            counted.append([result.title, f"{sum(claim['holds'] for claim in checked)} of {len(checked)}"])
    headers = ["experiment", "claim", "source", "measured here", "holds here"]
    return table(["experiment", "claims that hold"], counted) + "\n\n" + table(headers, rows)


def errors(tradeoffs: Sequence[Result]) -> dict[str, np.ndarray]:
    """Returns the errors of every method over all data sets, networks and compressions; infinite where it has none."""
    problems = [
        (result.record["errors"], compression)
        for result in tradeoffs
        for compression in next(iter(result.record["errors"].values()))
    ]
    names = dict.fromkeys(name for result in tradeoffs for name in result.record["errors"])
    found = {name: [by.get(name, {}).get(compression) for by, compression in problems] for name in names}
    # JSON has null for a network that does not count.
    return {name: np.array([np.inf if error is None else error for error in row]) for name, row in found.items()}


def ranked(measured: Mapping[str, np.ndarray], taus: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the performance profile of every method, that of the largest mean first."""
    shares = profiles.within(np.stack(list(measured.values())), taus)
    names = list(measured)
    return {names[i]: shares[i] for i in np.argsort(-shares.mean(1), kind="stable")}


def draw(measured: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws performance profiles; the legend is in their order."""
    drawn, (ax,) = figures.figure("How often a method's error is within a factor of the best one's", width=9, height=5)
    for rank, (name, shares) in enumerate(ranked(measured, TAUS).items()):
        line, colour = divmod(rank, len(figures.COLOURS))
        style = {"color": figures.COLOURS[colour], "linestyle": ("-", "--", ":", "-.")[line]}
        ax.step(TAUS, shares, where="post", label=name, linewidth=1.4, **style)
    ax.set(xlabel="factor of the best error", ylabel="share of (data, network, compression)", ylim=(0, 1.02))
    ax.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figures.save(drawn, path)


def _profiles(measured: Mapping[str, np.ndarray]) -> str:
    factors = (1.0, 1.1, 1.25, 1.5, 2.0, 1e9)
    found = ranked(measured, np.array(factors))
    rows = [[name, *(f"{share:.2f}" for share in shares)] for name, shares in found.items()]
    headers = ["method", "best", *(f"within {factor:g}" for factor in factors[1:-1]), "counts"]
    count = len(next(iter(measured.values())))
    return (
        f"## Performance profiles\n\nThe share of {count} problems (data, network, compression) on which a method's "
        f"test error is within a factor of the best one's; failures are infinite (Dolan and More 2001).\n\n"
        f"![performance profiles]({PROFILES})\n\n{table(headers, rows)}"
    )


def _demoted(result: Result) -> str:
    """Returns a report as a part of this one, with its figures."""
    lines = [f"#{line}" if line.startswith("#") else line for line in result.report.splitlines()]
    folder = f"{result.experiment}/{result.data}/figures"
    drawn = [f"![{name}]({folder}/{name}.png)" for name in ("compression", "near_dense", "multiply_adds")]
    return "\n".join([lines[0], "", *drawn, *lines[1:]])
