"""What `experiments.tradeoff` finds, and what is said of pruning methods that holds of it."""

from typing import NamedTuple

import numpy as np

from experiments import results
from experiments.contenders import SHUFFLED, THIN
from experiments.one_shot import CUT
from experiments.results import Claim, Measured, spread

STRUCTURED = ("blocks", "channels", "mean replacement", "AutoPrune, units")
CONTROLS = (THIN, THIN + ", multiply-adds", "random", "magnitude mask, other weights")
TOLERATED = 0.5  # points of accuracy
EXCESS = 1.1  # times as many parameters as it was asked to keep, at most, for a network to count

PEER = "{} against {} (ResNet-50, 80%, JaxPruner's README)"


class Found(NamedTuple):
    """Everything that the figures and the claims are made from."""

    start: Measured
    """The dense network before its last cycle, which one-shot methods prune."""
    dense: Measured
    """The same after it: as many epochs as every other network."""
    compressions: list[float]
    """Those that were asked, from the smallest."""
    rows: dict[str, dict[float, Measured]]
    """The networks of every method, by the compression that was asked."""
    groups: list[Measured]
    """N:M sparsity, at sparsities of its own."""
    averaged: list[Measured]
    """gRDA, which cannot be asked for a compression."""

    @property
    def networks(self) -> list[Measured]:
        """All networks."""
        asked = [network for row in self.rows.values() for network in row.values()]
        return [self.start, self.dense, *asked, *self.groups, *self.averaged]

    def fewer_multiply_adds(self, network: Measured) -> np.ndarray:
        """Returns the dense network's multiply-adds to those that a network has where zeros are skipped."""
        left = np.array([report.effective_multiply_adds for report in network.reports])
        return self.dense.reports[0].multiply_adds / left


def counts(network: Measured, compression: float) -> bool:
    """Returns whether a network has trained, and is as small as it was asked to be."""
    return not any(network.run.failed) and bool(EXCESS * network.compression.mean() >= compression)


def errors(found: Found) -> dict[str, dict[float, float]]:
    """Returns the test error of every method at every compression, in percent, infinite where it does not count.

    gRDA's is that of its network of the best validation accuracy among those that are as small.
    """
    methods = {name: row for name, row in found.rows.items() if not name.endswith(CUT)}
    near = {
        compression: max(small, key=lambda network: network.validation)
        for compression in found.compressions
        if (small := [network for network in found.averaged if counts(network, compression)])
    }
    return {
        name: {c: _error(row[c], c) if c in row else float("inf") for c in found.compressions}
        for name, row in {**methods, **({"gRDA": near} if found.averaged else {})}.items()
    }


def _error(network: Measured, compression: float) -> float:
    return 100 - float(network.accuracy.mean()) if counts(network, compression) else float("inf")


def gains(found: Found, one: str, other: str) -> dict[float, np.ndarray]:
    """Returns the points of test accuracy by which one method is ahead of another, over seeds, by compression asked.

    Those at which it does not count are left out: it keeps more parameters there.
    """
    rows = found.rows[one], found.rows[other]
    return {c: rows[0][c].accuracy - rows[1][c].accuracy for c in found.compressions if counts(rows[0][c], c)}


COMPARED = [
    # statement, source, what is ahead, of what
    (
        "pruning gradually beats pruning at once and fine-tuning (magnitude)",
        "Zhu, Gupta 2017",
        "gradual magnitude",
        "one-shot magnitude",
    ),
    (
        "one competition of all layers beats one a layer (gradual magnitude)",
        PEER.format(75.49, 75.53),
        "global magnitude",
        "gradual magnitude",
    ),
    ("RigL beats SET", PEER.format(74.75, 74.57), "RigL", "SET"),
    ("RigL beats a random mask that stays", PEER.format(74.75, 71.34), "RigL", "random"),
    ("SET beats a random mask that stays", PEER.format(74.57, 71.34), "SET", "random"),
    (
        "starting dense beats starting sparse (gradual magnitude and RigL)",
        PEER.format(75.53, 74.75),
        "gradual magnitude",
        "RigL",
    ),
    ("SNIP beats a random mask", "Lee et al. 2019", "SNIP", "random"),
    (
        "masks of a trained network matter: shuffled within layers they lose (magnitude, fine-tuned)",
        "Frankle et al. 2021",
        "one-shot magnitude",
        "one-shot magnitude" + SHUFFLED,
    ),
    (
        "LAMP's layer sparsities beat uniform ones (one-shot, fine-tuned)",
        "Lee et al. 2021",
        "one-shot LAMP",
        "one-shot magnitude",
    ),
    (
        "without fine-tuning, Wanda beats magnitude",
        "Sun et al. 2024 (language models)",
        "Wanda" + CUT,
        "one-shot magnitude" + CUT,
    ),
    ("single weights beat blocks (gradual magnitude)", "-", "gradual magnitude", "blocks"),
    ("single weights beat channels", "-", "gradual magnitude", "channels"),
    ("single weights beat units", "-", "gradual magnitude", "mean replacement"),
    (
        "a lottery ticket beats its mask on other weights",
        "Frankle, Carbin 2019",
        "lottery ticket",
        "magnitude mask, other weights",
    ),
    (
        "a trained network without its least units beats a thin one",
        "not so in Liu et al. 2019",
        "mean replacement",
        THIN,
    ),
    (
        "adaptive sparsity loss beats gradual magnitude",
        "Retsinas et al. 2020",
        "adaptive sparsity",
        "gradual magnitude",
    ),
    ("AutoPrune beats gradual magnitude", "Xiao et al. 2019", "AutoPrune", "gradual magnitude"),
]


def claims(found: Found) -> list[Claim]:
    """Returns what is said of the methods beside what was measured, as far as they were trained.

    Differences of accuracy are paired by seed.
    """
    trained = found.rows.keys()
    checked = [ahead(found, *words, one, other) for *words, one, other in COMPARED if {one, other} <= trained]
    if {"SNIP", "SNIP" + SHUFFLED} <= trained:
        checked.append(_shuffled_at_the_start(found))
    if THIN in trained:
        checked.append(_against_thin(found))
    if "gradual magnitude" in trained:
        checked.append(_nothing_lost(found))
    return checked


def ahead(found: Found, statement: str, source: str, one: str, other: str) -> Claim:
    """Returns the claim that one method is more accurate than another on average over the compressions."""
    points = gains(found, one, other)
    return Claim(statement, source, _by_compression(points), results.is_ahead(list(points.values())))


def _shuffled_at_the_start(found: Found) -> Claim:
    points = gains(found, "SNIP" + SHUFFLED, "SNIP")
    return Claim(
        f"which weights of a layer SNIP keeps does not matter: shuffled it loses at most {TOLERATED:g} points",
        "Frankle et al. 2021",
        _by_compression(points),
        bool(points) and bool(np.mean(list(points.values())) >= -TOLERATED),
    )


def _against_thin(found: Found) -> Claim:
    """Returns the claim that whatever prunes single weights, and was meant to be good, beats the thin network."""
    others = (*CONTROLS, *STRUCTURED)
    names = [name for name in found.rows if name not in others and not name.endswith((CUT, SHUFFLED))]
    points = {name: gains(found, name, THIN) for name in names}
    lost = {name: sum(gain.mean() <= 0 for gain in gained.values()) for name, gained in points.items()}
    behind = {name: count for name, count in lost.items() if count}
    thin = ", ".join(f"{network.accuracy.mean():.2f}" for network in found.rows[THIN].values())
    listed = ", ".join(f"{name} ({count} of {len(points[name])})" for name, count in behind.items())
    return Claim(
        "every method that prunes single weights beats the thin dense network at every compression",
        "-",
        f"thin: {thin}; not ahead of it: {listed or 'none'}",
        not behind,
    )


def _nothing_lost(found: Found) -> Claim:
    near = min(found.compressions, key=lambda compression: abs(compression - 5))
    network = found.rows["gradual magnitude"][near]
    lost = float((found.dense.accuracy - network.accuracy).mean())
    return Claim(
        f"at {near:g}x gradual magnitude loses at most {TOLERATED:g} points",
        "1.14 (ResNet-50, 80%, JaxPruner's README)",
        f"{-lost:+.2f} points ({spread(network.accuracy)} against {spread(found.dense.accuracy)})",
        lost <= TOLERATED,
    )


def _by_compression(points: dict[float, np.ndarray]) -> str:
    listed = ", ".join(f"{gain.mean():+.2f}" for gain in points.values())
    return f"{listed} points at {', '.join(f'{c:g}x' for c in points)}" if points else "reached none"
