"""What `experiments.baselines` finds, and what is said of pruning methods that holds of it."""

from typing import NamedTuple

import numpy as np

from experiments import results
from experiments.results import Claim, Measured, spread

CUT = ", as cut"
SHUFFLED = ", shuffled"
THIN = "thin dense"
STRUCTURED = ("blocks", "channels")
TOLERATED = 0.5  # points of accuracy
EXCESS = 1.1  # times as many weights as it was asked to keep, at most, for a method to be compared

PEER = "{} against {} (ResNet-50, 80%, JaxPruner's README)"


class Found(NamedTuple):
    """Everything that the figures and the claims are made from."""

    start: Measured
    """The dense network before its last cycle, which one-shot methods prune."""
    dense: Measured
    """The same after it: as many epochs as every other network."""
    rows: dict[str, dict[float, Measured]]
    """The networks of every method, by the sparsity that was asked."""
    groups: list[Measured]
    """N:M sparsity, at sparsities of its own."""
    averaged: list[Measured]
    """gRDA, which cannot be asked for a sparsity."""

    @property
    def networks(self) -> list[Measured]:
        """All networks."""
        by_share = [network for row in self.rows.values() for network in row.values()]
        return [self.start, self.dense, *by_share, *self.groups, *self.averaged]

    @property
    def shares(self) -> list[float]:
        """The sparsities that were asked."""
        return list(self.rows[THIN])


def gains(found: Found, one: str, other: str) -> dict[float, np.ndarray]:
    """Returns the points of test accuracy by which one method is ahead of another, over seeds, by sparsity asked.

    Those that it did not reach are left out: it keeps more weights there.
    """
    reached = [share for share, n in found.rows[one].items() if 1 - n.sparsity.mean() / 100 <= EXCESS * (1 - share)]
    return {share: found.rows[one][share].accuracy - found.rows[other][share].accuracy for share in reached}


def ahead(found: Found, statement: str, paper: str, one: str, other: str) -> Claim:
    """Returns the claim that one method is more accurate than another on average over the sparsities."""
    points = gains(found, one, other)
    return Claim(statement, paper, _by_share(points), results.is_ahead(list(points.values())))


def claims(found: Found) -> list[Claim]:
    """Returns what is said of the methods beside what was measured; differences of accuracy are paired by seed."""
    return [
        ahead(
            found,
            "pruning gradually beats pruning at once and fine-tuning (magnitude)",
            "Zhu, Gupta 2017",
            "gradual magnitude",
            "one-shot magnitude",
        ),
        ahead(
            found,
            "one competition of all layers beats one a layer (gradual magnitude)",
            PEER.format(75.49, 75.53),
            "global magnitude",
            "gradual magnitude",
        ),
        ahead(found, "RigL beats SET", PEER.format(74.75, 74.57), "RigL", "SET"),
        ahead(found, "RigL beats a random mask that stays", PEER.format(74.75, 71.34), "RigL", "random"),
        ahead(found, "SET beats a random mask that stays", PEER.format(74.57, 71.34), "SET", "random"),
        ahead(
            found,
            "starting dense beats starting sparse (gradual magnitude and RigL)",
            PEER.format(75.53, 74.75),
            "gradual magnitude",
            "RigL",
        ),
        ahead(found, "SNIP beats a random mask", "Lee et al. 2019", "SNIP", "random"),
        _shuffled_at_the_start(found),
        ahead(
            found,
            "masks of a trained network matter: shuffled within layers they lose (magnitude, fine-tuned)",
            "Frankle et al. 2021",
            "one-shot magnitude",
            "one-shot magnitude" + SHUFFLED,
        ),
        ahead(
            found,
            "LAMP's layer sparsities beat uniform ones (one-shot, fine-tuned)",
            "Lee et al. 2021",
            "one-shot LAMP",
            "one-shot magnitude",
        ),
        ahead(
            found,
            "without fine-tuning, Wanda beats magnitude",
            "Sun et al. 2024 (language models)",
            "Wanda" + CUT,
            "one-shot magnitude" + CUT,
        ),
        ahead(
            found,
            "single weights beat blocks (gradual magnitude)",
            "-",
            "gradual magnitude",
            "blocks",
        ),
        ahead(found, "single weights beat channels, which keep more", "-", "gradual magnitude", "channels"),
        _against_thin(found),
        _nothing_lost(found),
        ahead(
            found,
            "adaptive sparsity loss beats gradual magnitude",
            "Retsinas et al. 2020",
            "adaptive sparsity",
            "gradual magnitude",
        ),
        ahead(found, "AutoPrune beats gradual magnitude", "Xiao et al. 2019", "AutoPrune", "gradual magnitude"),
    ]


def _shuffled_at_the_start(found: Found) -> Claim:
    points = gains(found, "SNIP" + SHUFFLED, "SNIP")
    return Claim(
        f"which weights of a layer SNIP keeps does not matter: shuffled it loses at most {TOLERATED:g} points",
        "Frankle et al. 2021",
        _by_share(points),
        bool(np.mean(list(points.values())) >= -TOLERATED),
    )


def _against_thin(found: Found) -> Claim:
    """Returns the claim that whatever prunes single weights, and was meant to be good, beats the thin network."""
    others = (THIN, *STRUCTURED, "random")
    names = [name for name in found.rows if name not in others and not name.endswith((CUT, SHUFFLED))]
    points = {name: gains(found, name, THIN) for name in names}
    lost = {name: sum(gain.mean() <= 0 for gain in by_share.values()) for name, by_share in points.items()}
    behind = {name: count for name, count in lost.items() if count}
    thin = ", ".join(f"{found.rows[THIN][share].accuracy.mean():.2f}" for share in found.shares)
    listed = ", ".join(f"{name} ({count} of {len(points[name])})" for name, count in behind.items())
    return Claim(
        "every method that prunes single weights beats the thin dense network at every sparsity",
        "-",
        f"thin: {thin}; not ahead of it: {listed or 'none'}",
        not behind,
    )


def _nothing_lost(found: Found) -> Claim:
    share = min(found.shares)
    network = found.rows["gradual magnitude"][share]
    lost = float((found.dense.accuracy - network.accuracy).mean())
    return Claim(
        f"at {share:.0%} gradual magnitude loses at most {TOLERATED:g} points",
        "1.14 (ResNet-50, 80%, JaxPruner's README)",
        f"{-lost:+.2f} points ({spread(network.accuracy)} against {spread(found.dense.accuracy)})",
        lost <= TOLERATED,
    )


def _by_share(points: dict[float, np.ndarray]) -> str:
    listed = ", ".join(f"{gain.mean():+.2f}" for gain in points.values())
    return f"{listed} points at {', '.join(f'{share:.0%}' for share in points)}" if points else "reached none"


def describe(dataset: str, found: Found, checked: list[Claim]) -> str:
    """Returns the report: accuracy by method and sparsity, the networks apart from that, the claims, and all counts."""
    headers = ["method: test accuracy % (sparsity reached %)", *(f"{share:.0%} asked" for share in found.shares)]
    rows = [[name, *(_cell(row[share]) for share in found.shares)] for name, row in found.rows.items()]
    others = [found.start, found.dense, *found.groups, *found.averaged]
    return (
        f"# Baselines on {dataset}\n\n{len(found.dense.accuracy)} seeds, mean ± standard deviation; sparsities are "
        f'those of the kernels together. Every network saw the same number of epochs in all, but for "dense" and those '
        f'"as cut". The dense network of as many epochs has {spread(found.dense.accuracy)}%. The test split was used '
        f"once, after training.\n\n"
        f"{results.table(headers, rows)}\n\nThe others choose their sparsity themselves, or have none:\n\n"
        f"{results.network_table(others)}\n\n## Claims\n\nOne method is ahead of another if its mean gain over "
        f"sparsities is above 0 by more than two standard errors over seeds. Sparsities that it did not reach, so that "
        f"it keeps over a tenth more weights than it was asked to, are left out.\n\n{results.claims_table(checked)}\n\n"
        f"## Asked and reached, in percent of the pruned layers\n\n{_counts(found)}\n"
    )


def _cell(network: Measured) -> str:
    reached = "" if network.reports[0].asked is None else f" ({network.sparsity.mean():.2f})"
    return spread(network.accuracy) + reached + (" (failed)" if any(network.run.failed) else "")


def _counts(found: Found) -> str:
    """Returns one row a network: what was asked, what was reached, and what it costs."""
    headers = ["method", "asked", "reached", "non-zeros", "compression", "multiply-adds left %", "validation %"]
    headers.append("training s")
    rows = []
    for network in [*(n for row in found.rows.values() for n in row.values()), *found.groups]:
        asked = network.reports[0].prunable_asked
        rows.append(
            [
                network.name,
                "-" if asked is None else f"{100 * asked:.2f}",
                spread(network.sparsity),
                f"{network.nonzeros.mean():,.0f}",
                f"{network.compression.mean():.2f}x",
                f"{network.multiply_adds_left.mean():.2f}",
                "-" if network.name.endswith(CUT) else f"{network.validation:.2f}",  # of the run, before the cut
                f"{network.run.seconds:.1f}",
            ]
        )
    return results.table(headers, rows)
