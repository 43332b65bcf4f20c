"""Times functions against each other: interleaved, so that the machine's moods fall on all of them alike."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np


def compiled(function: Callable, *args) -> tuple[Callable, float]:
    """Returns a compiled function and the seconds that tracing and compiling it took."""
    start = time.perf_counter()
    ready = jax.jit(function).lower(*args).compile()
    return ready, time.perf_counter() - start


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Runs every function once a round and returns the seconds of each, `{name: (rounds,)}`, after one warm-up round.

    The order turns by one from round to round, so that no function always follows the same one.
    """
    names = list(functions)
    seconds = {name: np.zeros(rounds) for name in names}
    for index in range(-1, rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            jax.block_until_ready(functions[name]())
            if index >= 0:
                seconds[name][index] = time.perf_counter() - start
    return seconds


def ratio(seconds: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Returns the median of the ratios of each round, and their quartiles."""
    low, middle, high = np.percentile(seconds / reference, [25, 50, 75])
    return float(middle), float(low), float(high)
