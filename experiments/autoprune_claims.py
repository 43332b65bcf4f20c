"""What `experiments.autoprune` finds, and which claims of *AutoPrune* hold of it."""

from typing import NamedTuple

import numpy as np

from experiments import figures, results
from experiments.results import Claim, Measured, spread
from experiments.training import Run

TOLERATED = 0.5  # points of accuracy


class Found(NamedTuple):
    """Everything that the figures and the claims are made from; what was not asked for is empty."""

    dense: Measured
    weights: dict[str, dict[float, Measured]]
    """Weights pruned, by start and compression asked: from "scratch", or from a network "pretrained" for some of the
    epochs."""
    units: dict[str, dict[float, Measured]]
    """Units pruned, by start and share of the multiply-adds asked."""
    regular: dict[float, Measured]
    """Weights pruned from scratch with the regular update of binary networks."""
    free: dict[tuple[str, float], Run]
    """Weights pruned on and on, by surrogate and learning rate of the auxiliary parameters."""
    penalties: dict[str, Run]
    """The same under penalties of the weights: "L2", "L1" and "neither"."""

    @property
    def networks(self) -> list[Measured]:
        """The networks of the table."""
        groups = (*self.weights.values(), self.regular, *self.units.values())
        return [self.dense, *(network for group in groups for network in group.values())]


def lost(found: Found, network: Measured) -> float:
    """Returns the points of test accuracy that a network has less than the dense one, as the mean over seeds."""
    return float((found.dense.accuracy - network.accuracy).mean())


def reached(network: Measured) -> bool:
    """Returns whether every seed has reached its target; networks without one have."""
    return min(network.run.history[-1].get("reached_at", [0])) >= 0


def largest(found: Found, networks: dict[float, Measured]) -> float:
    """Returns the largest compression that keeps the accuracy, judged on the validation split; 1 if none does."""
    kept = [n for n in networks.values() if reached(n) and found.dense.validation - n.validation <= TOLERATED]
    return max((float(network.compression.mean()) for network in kept), default=1.0)


def claims(found: Found) -> list[Claim]:
    """Returns the paper's statements beside what was measured; differences of accuracy are paired by seed."""
    checked = [_at_twenty(found, start, networks) for start, networks in found.weights.items() if networks]
    if checked:
        checked.append(_furthest(found))
    if found.regular:
        checked += _updates(found)
    if found.free:
        checked += [*_free(found), _recovering(found)]
    return checked + [_thinnest(found, start, networks) for start, networks in found.units.items() if networks]


def _furthest(found: Found) -> Claim:
    best = {start: largest(found, networks) for start, networks in found.weights.items() if networks}
    return Claim(
        f"the largest compression within {TOLERATED:g} points is over 100 times",
        "168x from scratch, 310x (LeNet-5, MNIST)",
        ", ".join(f"{compression:.0f}x {start}" for start, compression in best.items()),
        max(best.values()) >= 100,
    )


def _thinnest(found: Found, start: str, networks: dict[float, Measured]) -> Claim:
    smallest = min(networks)
    network = networks[smallest]
    return Claim(
        f"units, {start}: {smallest:.0%} of the multiply-adds are enough (at most {TOLERATED:g} points lost)",
        "7% (LeNet-5, MNIST), 23% (VGG-like, CIFAR-10), no loss",
        f"{network.multiply_adds_left.mean():.1f}% of {network.reports[0].multiply_adds:,} at "
        f"{-lost(found, network):+.2f} points",
        reached(network) and lost(found, network) <= TOLERATED,
    )


def _at_twenty(found: Found, start: str, networks: dict[float, Measured]) -> Claim:
    ratio = min((ratio for ratio in networks if ratio >= 20), default=max(networks))
    network = networks[ratio]
    return Claim(
        f"{ratio:g} times smaller at no loss, {start} (at most {TOLERATED:g} points)",
        "168x or 310x (LeNet-5, MNIST)",
        f"{network.compression.mean():.1f}x at {-lost(found, network):+.2f} points "
        f"({spread(network.accuracy)} against {spread(found.dense.accuracy)})",
        reached(network) and lost(found, network) <= TOLERATED,
    )


def _updates(found: Found) -> list[Claim]:
    """Returns the claims on the two updates, of the compressions that both have reached with every seed."""
    scratch = found.weights["scratch"]
    both = [ratio for ratio in found.regular if reached(scratch[ratio]) and reached(found.regular[ratio])]
    pairs = {ratio: (scratch[ratio].accuracy, found.regular[ratio].accuracy) for ratio in both}
    deviations = {ratio: [figures.deviation(accuracy) for accuracy in pair] for ratio, pair in pairs.items()}
    gaps = {ratio: float((paper - regular).mean()) for ratio, (paper, regular) in pairs.items()}
    high = [ratio for ratio in both if ratio >= 30]
    spreads = [f"{ratio:g}x: {paper:.2f} against {regular:.2f}" for ratio, (paper, regular) in deviations.items()]
    return [
        Claim(
            "from 30x on the regular update varies more over seeds (standard deviations)",
            "figure 2c",
            ", ".join(spreads) or "no compression was reached by both",
            bool(high) and all(paper < regular for paper, regular in map(deviations.get, high)),
        ),
        Claim(
            "from 30x on the paper's update is more accurate than the regular one",
            "figure 2c",
            ", ".join(f"{ratio:g}x: {gap:+.2f} points" for ratio, gap in gaps.items()) or "none was reached by both",
            bool(high) and all(gaps[ratio] > 0 for ratio in high),
        ),
    ]


def _free(found: Found) -> list[Claim]:
    """Returns the claims on networks that are pruned on and on."""
    final = {key: compression(found, run)[-1].mean() for key, run in found.free.items()}
    rates = sorted({rate for _, rate in final})
    middle = rates[len(rates) // 2]
    openings = {rate: np.mean(found.free["softplus", rate].history[-1]["openings"]) for rate in rates}
    return [
        Claim(
            "the learning rate of the auxiliary parameters does not matter for the compression in the end (softplus)",
            "figure 2a",
            ", ".join(f"{rate:g}: {final['softplus', rate]:.1f}x" for rate in rates),
            max(final["softplus", r] for r in rates) <= 1.2 * min(final["softplus", r] for r in rates),
        ),
        Claim(
            f"softplus compresses most, linear least (rate {middle:g})",
            "figure 2d",
            ", ".join(f"{name}: {final[name, middle]:.1f}x" for name in ("softplus", "leaky ReLU", "linear")),
            final["softplus", middle] >= final["leaky ReLU", middle] >= final["linear", middle],
        ),
        Claim(
            "pruned weights come back (openings in all, softplus)",
            "section 3.4",
            ", ".join(f"{rate:g}: {openings[rate]:,.0f}" for rate in rates),
            all(count > 0 for count in openings.values()),
        ),
    ]


def _recovering(found: Found) -> Claim:
    rows = {name: run.history[-1] for name, run in found.penalties.items()}
    back = {name: float(np.mean(row["openings"]) / max(1.0, np.mean(row["closings"]))) for name, row in rows.items()}
    return Claim(
        "a pruned weight comes back less often under L2 than without a penalty, and under L1 less often still",
        "section 3.4",
        ", ".join(f"{name}: {share:.1%} of the prunings were undone" for name, share in back.items()),
        back["L1"] < back["L2"] < back["neither"],
    )


def compression(found: Found, run: Run) -> np.ndarray:
    """Returns all parameters / non-zeros after every epoch, (epochs, seeds)."""
    return found.dense.original / np.array([row["nonzeros"] for row in run.history])


def describe(dataset: str, found: Found, checked: list[Claim]) -> str:
    """Returns the report: one row a network, and the claims."""
    missed = [network.name for network in found.networks if not reached(network)]
    note = f"\n\nTargets that were NOT reached: {', '.join(missed)}." if missed else ""
    return (
        f"# AutoPrune on {dataset}\n\n{len(found.dense.accuracy)} seeds, mean ± standard deviation; sparsity and "
        f"compression are those of all parameters. Every network saw the same number of epochs in all.\n\n"
        f"{results.network_table(found.networks)}{note}\n\n## Claims of the paper\n\n{results.claims_table(checked)}\n"
    )
