"""How long networks take for the same images: as they are, with zeros, thin, and cut to what is left of their units."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import contenders, shrinking, steps, timing
from experiments.bench import Bench
from experiments.results import table
from experiments.tradeoff_claims import Found

ROUNDS = 50
BATCHES = (1, 256)


class Times(NamedTuple):
    """Forward passes of one network."""

    name: str
    seconds: dict[int, float]
    """Medians over rounds, by number of images."""
    relative: dict[int, float]
    """Medians of the ratio to the dense network's time in the same round, by number of images."""


def of(bench: Bench, found: Found) -> list[Times]:
    """Times the first seed's networks, interleaved: the dense one, and at every compression those that differ in speed.

    Zeros alone change nothing, of which one masked network is the evidence: the sparsest by gradual magnitude.
    """
    dense = shrinking.unstacked(found.dense.run)[0]
    programs = {"dense": (bench.model.apply, dense)}
    masked = found.rows.get("gradual magnitude", {})
    if masked:
        furthest = max(masked)
        name = f"{furthest:g}x, gradual magnitude, zeros in place"
        programs[name] = (bench.model.apply, shrinking.unstacked(masked[furthest].run)[0])
    for compression, network in found.rows.get(contenders.THIN, {}).items():
        thin = bench.thin(bench.share(compression))
        programs[f"{compression:g}x, thin dense"] = (thin.apply, shrinking.unstacked(network.run)[0])
    for compression, network in found.rows.get("mean replacement", {}).items():
        programs[f"{compression:g}x, mean replacement, cut"] = shrinking.small(bench, network.run)
    images = {size: _images(bench, size) for size in BATCHES}
    seconds = {size: _timed(programs, batch) for size, batch in images.items()}
    return [
        Times(
            name,
            {size: float(np.median(taken[name])) for size, taken in seconds.items()},
            {size: timing.ratio(taken[name], taken["dense"])[0] for size, taken in seconds.items()},
        )
        for name in programs
    ]


def describe(times: list[Times]) -> str:
    """Returns one row a network."""
    sizes = list(times[0].seconds)
    headers = ["network", *(f"{what}, batch of {size}" for size in sizes for what in ("ms", "time / dense"))]
    rows = []
    for one in times:
        values = [(f"{1000 * one.seconds[size]:.3f}", f"{one.relative[size]:.2f}") for size in sizes]
        rows.append([one.name, *(value for pair in values for value in pair)])
    return table(headers, rows)


def _timed(programs, images: jax.Array) -> dict[str, np.ndarray]:
    ready = {name: timing.compiled(apply, variables, images)[0] for name, (apply, variables) in programs.items()}
    runs = {name: partial(ready[name], variables, images) for name, (_, variables) in programs.items()}
    return timing.interleaved(runs, ROUNDS)


def _images(bench: Bench, size: int) -> jax.Array:
    data = bench.dataset
    images, _ = data.test.read(np.arange(size) % len(data.test))
    return steps.normalizer(data.mean, data.std)(jnp.asarray(images))
