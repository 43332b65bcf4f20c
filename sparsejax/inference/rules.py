"""Which of several ways is taken: the one that was fastest when they were timed, or by what each of them stores."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsejax import _checks

__all__ = ["Candidate", "Rule", "Verdict", "fastest", "smallest"]


class Candidate(NamedTuple):
    """Holds one of several programs that compute the same.

    Attributes:
      run: runs it on an example; compiled at the first call.
      stored: numbers that it keeps of the weights / numbers of the weights.
      plain: whether XLA's own operations are all it takes.

    >>> Candidate(run=lambda: None, stored=0.25).plain
    True
    """

    run: Callable[[], Any]
    stored: float
    plain: bool = True


class Verdict(NamedTuple):
    """Holds the name of what is taken, and the milliseconds of what was timed.

    >>> Verdict("dense", {"dense": 0.5}).choice
    'dense'
    """

    choice: str
    milliseconds: Mapping[str, float]


Rule = Callable[[Mapping[str, Candidate]], Verdict]
"""`{name: candidate} -> verdict`, the dense program first."""


def fastest(candidates: Mapping[str, Candidate], rounds: int = 30, margin: float = 1.1) -> Verdict:
    """Returns the program that is fastest on this machine now, the dense one unless another beats it clearly.

    The programs run in turn, in rounds, after one to compile and warm up; the median counts.

    Args:
      candidates: `{name: candidate}`, the dense one first.
      rounds: how often each is timed.
      margin: by what factor the dense one must be beaten.

    Returns:
      A `Verdict` with the median milliseconds of each.

    >>> import time
    >>> pause = {"dense": Candidate(lambda: time.sleep(0.02), 1.0), "sparse": Candidate(lambda: None, 0.1)}
    >>> fastest(pause, rounds=3).choice
    'sparse'
    """
    _checks.check_integer("rounds", rounds, 1, "it is how often each program is timed, 30 say")
    _check(candidates)
    medians = _milliseconds({name: one.run for name, one in candidates.items()}, rounds)
    dense, best = next(iter(medians)), min(medians, key=medians.get)
    return Verdict(best if medians[best] * margin <= medians[dense] else dense, medians)


def smallest(candidates: Mapping[str, Candidate], at_most: float = 0.125) -> Verdict:
    """Returns the program that stores least, the dense one unless little is stored; nothing is timed.

    The same on every machine. Blocks that store at most an eighth were faster than the whole matrix wherever that was
    measured: on CPUs, in matrices of 512 inputs and outputs or more. CSR, with which it depends, is left out.

    Args:
      candidates: `{name: candidate}`, the dense one first.
      at_most: what share of the weights another may store.

    Returns:
      A `Verdict`; of those that store equally little, it is the first.

    >>> smallest({"dense": Candidate(lambda: None, 1.0), "blocks": Candidate(lambda: None, 0.1)}).choice
    'blocks'
    """
    _check(candidates)
    few = {name: one.stored for name, one in candidates.items() if one.plain and one.stored <= at_most}
    return Verdict(min(few, key=few.get) if few else next(iter(candidates)), {})


def _check(candidates: Mapping[str, Candidate]) -> None:
    if not candidates:
        raise ValueError("candidates={} has no program; pass the dense one first, {'dense': Candidate(run, 1.0)}")


def _milliseconds(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    names = list(runs)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-1, rounds):
        turn = index % len(names)  # so that no program always follows the same one
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            jax.block_until_ready(runs[name]())
            if index >= 0:
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(times)) for name, times in taken.items()}
