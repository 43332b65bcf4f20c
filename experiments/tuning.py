"""The authors' advice for gRDA: fix mu, then find the largest c that keeps the accuracy after a few epochs."""

import math
from collections.abc import Callable
from typing import NamedTuple

from experiments import results

LIMIT = 40  # doublings or halvings, after which something else is wrong


class Trial(NamedTuple):
    """One value of c, and what came of it."""

    c: float
    accuracy: float
    """Mean validation accuracy over seeds, in percent."""
    sparsity: float
    """Mean share of zeros among all parameters, in percent."""


def largest(trial: Callable[[float], Trial], wanted: float, start: float, rounds: int = 3) -> tuple[Trial, list[Trial]]:
    """Returns the largest c whose accuracy is at least `wanted`, and all trials in the order they were made.

    From `start` it doubles c while the accuracy holds, or halves it until it does, and then halves the ratio between
    the largest c that held and the smallest that did not, `rounds` times. That is right where accuracy falls with c;
    where noise makes it rise again, a larger c may hold as well.

    Args:
      trial: trains with one c.
      wanted: accuracy in percent.
      start: the first c, > 0.
      rounds: bisections; each brings the factor between the brackets to its square root.

    Returns:
      The best trial, and all of them.

    Raises:
      ValueError: `start` is not a positive number, `rounds` is negative, or no c was found to hold, or none to fail.
    """
    if not 0 < start < math.inf or rounds < 0:
        raise ValueError(f"start={start} must be a positive number and rounds={rounds} at least 0")
    trials = [trial(start)]
    factor = 2.0 if trials[0].accuracy >= wanted else 0.5
    while (trials[-1].accuracy >= wanted) == (trials[0].accuracy >= wanted):
        if len(trials) > LIMIT:
            raise ValueError(
                f"from c={start:g} to c={trials[-1].c:g} the accuracy stays on one side of {wanted:.2f}%: "
                "ask for another margin, or train long enough for c to matter"
            )
        trials.append(trial(factor * trials[-1].c))
    for _ in range(rounds):
        held = max((t for t in trials if t.accuracy >= wanted), key=lambda t: t.c)
        failed = min((t for t in trials if t.accuracy < wanted and t.c > held.c), key=lambda t: t.c)
        trials.append(trial(math.sqrt(held.c * failed.c)))
    return max((t for t in trials if t.accuracy >= wanted), key=lambda t: t.c), trials


def describe(subject: str, reference: float, margin: float, best: Trial, trials: list[Trial]) -> str:
    """Returns the report: one row a trial, by c, and the answer.

    Args:
      subject: what was trained, and for how long.
      reference: SGD's accuracy in percent.
      margin: what c may cost, in points.
      best: the answer.
      trials: all of them.

    Returns:
      Markdown.
    """
    rows = [
        [f"{t.c:.5f}", f"{t.accuracy:.2f}", f"{t.sparsity:.2f}", "yes" if t.accuracy >= reference - margin else "no"]
        for t in sorted(trials)
    ]
    return (
        f"# c for {subject}\n\nSGD has {reference:.2f}% of the validation split right, and c may cost {margin:g} "
        f"points.\n\n"
        f"{results.table(['c', 'validation accuracy %', 'sparsity %', 'holds'], rows)}\n\n"
        f"The largest that holds: --c {best.c:.3g}"
    )
