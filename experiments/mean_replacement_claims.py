"""What `experiments.mean_replacement` finds, and what the paper says of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments import results
from experiments.removals import REPLACED, SCORES, Choice
from experiments.results import Claim, spread

SQUARES = np.concatenate([[0.0], np.logspace(-6, 4, 51)])
"""The edges of the histograms of squared activations."""
ROUNDING = 1e-6
"""Losses that differ by less are equal: units that were never active, whose mean is zero."""
TUNED_SCORES = ("norm", "abs_rs", "abs_mrs")
"""The scores whose copies are fine-tuned: those of the paper's scatter plots."""


class Found(NamedTuple):
    """Everything that the figures and the claims are made from. Penalties are losses less the whole network's."""

    steps: np.ndarray
    """The training steps after which copies were measured, (marks,)."""
    choices: tuple[Choice, ...]
    """Which units competed."""
    followed: int
    """The number of the choice whose units are followed: some of the middle convolution."""
    loss: np.ndarray
    """Of the whole network, (marks, seeds)."""
    accuracies: np.ndarray
    """Of the whole network on the validation split, in percent, (marks, seeds)."""
    penalties: np.ndarray
    """(marks, seeds, choices, scores, 2)."""
    first: np.ndarray
    """By how much means have the lower penalty than zeros to first order, (marks, seeds, choices, scores)."""
    gone: np.ndarray
    """Which of the followed units each score removes, bool (marks, seeds, scores, units)."""
    squares: np.ndarray
    """How many of their squared activations are between the `SQUARES`, (marks, seeds, scores, bins)."""
    tuning: tuple[int, ...]
    """Numbers of fine-tuning steps."""
    tuned_steps: np.ndarray
    """The training steps after which copies were fine-tuned."""
    tuned: np.ndarray
    """(marks, seeds, `TUNED_SCORES`, 2, numbers of steps)."""

    def of(self, score: str, how: str) -> np.ndarray:
        """Returns the penalties of a score and a replacement, (marks, seeds, choices)."""
        return self.penalties[..., SCORES.index(score), REPLACED.index(how)]

    @property
    def gain(self) -> np.ndarray:
        """By how much the mean lowers the penalty, (marks, seeds, choices, scores)."""
        return self.penalties[..., 0] - self.penalties[..., 1]

    @property
    def ever(self) -> np.ndarray:
        """The share of the followed units that a score has removed once by a mark, (marks, seeds, scores)."""
        return np.logical_or.accumulate(self.gone, axis=0).mean(-1)


def lower(gain: np.ndarray) -> float:
    """Returns in which share of the measurements the mean lowers the penalty, of those in which it does anything."""
    different = np.abs(gain) > ROUNDING
    return float((gain[different] > 0).mean()) if different.any() else float("nan")


def claims(found: Found) -> list[Claim]:
    """Returns what the paper says beside what was measured."""
    return [
        _lowers(found),
        _for_every_score(found),
        *(_worse_than_random(found, score) for score in ("rs", "mrs")),
        _absolute_best(found),
        _close(found),
        _slightly_ahead(found),
        *(_after_tuning(found, number) for number in range(len(found.tuning))),
        _few_units(found),
        _random_touches_all(found),
        _active_units(found),
    ]


def _lowers(found: Found) -> Claim:
    share = lower(found.gain)
    equal = (np.abs(found.gain) <= ROUNDING).mean()
    measured = f"{share:.1%} of {found.gain.size:,} measurements; {equal:.1%} of all equal, dead units alone"
    statement = "replacing units by their mean instead of zero lowers the penalty (at least 95% of measurements)"
    return Claim(statement, "nearly all points of Figure 3", measured, share >= 0.95)


def _for_every_score(found: Found) -> Claim:
    shares = [lower(found.gain[..., number]) for number in range(len(SCORES))]
    measured = ", ".join(f"{score} {share:.0%}" for score, share in zip(SCORES, shares, strict=True))
    return Claim("so it does whatever the score (more than half each)", "Figures 2, 3", measured, min(shares) > 0.5)


def _against(found: Found, better: str, worse: str, how: str) -> np.ndarray:
    """Returns by how much the penalty of one score is lower than another's, (marks x choices, seeds)."""
    difference = found.of(worse, how) - found.of(better, how)
    return np.moveaxis(difference, 1, -1).reshape(-1, difference.shape[1])


def _worse_than_random(found: Found, score: str) -> Claim:
    points = _against(found, "rand", score, "mean")
    ratio = found.of(score, "mean").mean() / found.of("rand", "mean").mean()
    measured = f"penalty with means {ratio:.2f} times that of rand"
    return Claim(f"{score} chooses worse than at random", "Section 4.3, Figure 5", measured, results.is_ahead(points))


def _absolute_best(found: Found) -> Claim:
    means = {score: found.of(score, "mean").mean() for score in SCORES}
    best = sorted(means, key=means.__getitem__)
    measured = ", ".join(f"{score} {means[score]:.4f}" for score in best)
    return Claim(
        "abs_mrs and abs_rs choose best of the six (mean penalty with means)",
        "Figures 2, 5",
        measured,
        set(best[:2]) == {"abs_mrs", "abs_rs"},
    )


def _close(found: Found) -> Claim:
    one, other, chance = (found.of(score, "mean").mean() for score in ("abs_mrs", "abs_rs", "rand"))
    measured = f"{one:.4f} and {other:.4f}; rand {chance:.4f}"
    statement = "abs_mrs and abs_rs are nearly equal (apart by a tenth of what rand adds, at most)"
    return Claim(statement, "Figures 2, 3", measured, abs(one - other) <= 0.1 * chance)


def _slightly_ahead(found: Found) -> Claim:
    points = _against(found, "abs_mrs", "abs_rs", "mean")
    measured = f"lower by {spread(points.mean(0), 5)}, in {(points > 0).mean():.0%} of the measurements"
    return Claim("abs_mrs is slightly ahead of abs_rs", "Section 4.3", measured, results.is_ahead(points))


def _after_tuning(found: Found, number: int) -> Claim:
    gain = found.tuned[..., 0, number] - found.tuned[..., 1, number]  # (marks, seeds, scores)
    of_seeds = np.moveaxis(gain, 1, -1).reshape(-1, gain.shape[1])
    measured = f"lower by {spread(of_seeds.mean(0), 4)}, in {(gain > 0).mean():.0%} of {gain.size} measurements"
    statement = f"means still have the lower loss {found.tuning[number]} fine-tuning steps later"
    return Claim(statement, "Figures 4, 8", measured, results.is_ahead(of_seeds))


def _few_units(found: Found) -> Claim:
    ever = dict(zip(SCORES, found.ever[-1].mean(0), strict=True))
    measured = ", ".join(f"{score} {share:.0%}" for score, share in ever.items())
    return Claim(
        "good scores choose the same few units (ever chosen: abs_mrs and abs_rs at most half of what rand chooses)",
        "Figure 7",
        measured,
        max(ever["abs_mrs"], ever["abs_rs"]) <= 0.5 * ever["rand"],
    )


def _random_touches_all(found: Found) -> Claim:
    share = found.ever[-1, :, SCORES.index("rand")]
    amount = found.choices[found.followed].amount
    chance = 1 - (1 - amount) ** len(found.steps) if amount < 1 else float("nan")
    measured = f"{spread(100 * share, 0)}% after {len(found.steps)} measurements (chance: {chance:.0%})"
    return Claim("rand has chosen every unit once in the end", "Figure 7", measured, bool((share == 1).all()))


def _active_units(found: Found) -> Claim:
    middle = np.sqrt(np.maximum(SQUARES[:-1], SQUARES[1] / 10) * SQUARES[1:])
    counts = found.squares.sum((0, 1))
    means = dict(zip(SCORES, counts @ middle / counts.sum(1), strict=True))
    measured = ", ".join(f"{score} {mean:.3g}" for score, mean in means.items())
    statement = "mrs removes units with larger squared activations than abs_mrs"
    return Claim(statement, "Figure 6b", measured, means["mrs"] > means["abs_mrs"])


def describe(dataset: str, model: str, found: Found, checked: Sequence[Claim]) -> str:
    """Returns the report: penalties by score, by choice, after fine-tuning, and the claims."""
    intro = (
        f"# Mean replacement on {dataset}: {model}, {len(found.steps)} measurements of {found.loss.shape[1]} networks\n"
        f"\nA penalty is what the removal of units adds to the loss, on training images. Means over measurements, ± "
        f'standard deviation over seeds. "mean lower" is the share of measurements in which replacement by the mean '
        f'has the lower penalty, of those that differ. "first order" is how well that difference correlates with the '
        f"derivative of the loss along the biases that take the means, which is 0 at a minimum: near 1, means help or "
        f"harm because the network is on its way. The networks end at {found.accuracies[-1].mean():.2f}% on the "
        f"validation split."
    )
    parts = {
        "By score, over all choices of units": _by_score(found),
        "By choice of units, over all scores": _by_choice(found),
        "After fine-tuning": _by_tuning(found),
        "Claims": results.claims_table(checked),
    }
    return "\n\n".join([intro, *(f"## {title}\n\n{part}" for title, part in parts.items())])


def _by_score(found: Found) -> str:
    rows = []
    for number, score in enumerate(SCORES):
        penalties = [spread(found.of(score, how).mean((0, 2)), 4) for how in REPLACED]
        rows.append([score, *penalties, f"{lower(found.gain[..., number]):.1%}"])
    return results.table(["score", "penalty, zero", "penalty, mean", "mean lower"], rows)


def _by_choice(found: Found) -> str:
    rows = []
    for number, choice in enumerate(found.choices):
        penalties = [spread(found.penalties[:, :, number, :, how].mean((0, 2)), 4) for how in range(len(REPLACED))]
        gain, first = found.gain[:, :, number], found.first[:, :, number]
        correlation = np.corrcoef(gain.ravel(), first.ravel())[0, 1]
        rows.append([choice.name, *penalties, f"{lower(gain):.1%}", f"{correlation:.2f}"])
    return results.table(["layers, amount", "penalty, zero", "penalty, mean", "mean lower", "first order"], rows)


def _by_tuning(found: Found) -> str:
    rows = []
    for number, steps in enumerate(found.tuning):
        for which, score in enumerate(TUNED_SCORES):
            pair = found.tuned[:, :, which, :, number]
            penalties = [spread(pair[..., how].mean(0), 4) for how in range(len(REPLACED))]
            rows.append([f"{steps}", score, *penalties, f"{lower(pair[..., 0] - pair[..., 1]):.0%}"])
    return results.table(["steps", "score", "penalty, zero", "penalty, mean", "mean lower"], rows)
