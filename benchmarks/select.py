"""What exact selection costs against a sort: `python -m benchmarks.select`.

The mask of the largest tenth of Gaussian magnitudes, float32: the median over rounds of the ratio of each way's time to
that of `select.leafwise` within a round, with quartiles, and the scratch memory of each program. `numpy.partition`
runs on the host and gives a threshold alone, without a mask. Then the seconds to compile a selection over many leaves,
with one sparsity for all of them and with one for each.

The aims, at ten million scores: argsort at least 100, numpy.partition at least 0.67, scratch below one copy.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import timing
from experiments.results import table
from sparsejax import select

OURS = "leafwise"


@dataclasses.dataclass(frozen=True)
class Config:
    """Ratios of the times of other ways to select to that of `select.leafwise`."""

    sizes: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    """Scores."""
    sparsity: float = 0.9
    """The share to prune."""
    rounds: int = 7
    """Rounds, each of which runs every way once."""
    leaves: int = 50
    """Leaves of the network whose selection is compiled."""


def by_argsort(scores: jax.Array, kept: int) -> jax.Array:
    """Returns the mask of the first `kept` of a descending, stable argsort."""
    order = jnp.argsort(-scores)
    return jnp.zeros(scores.shape, jnp.bool_).at[order[:kept]].set(True)


def by_top_k(scores: jax.Array, kept: int) -> jax.Array:
    """Returns the mask of what reaches the last of the `kept` largest scores."""
    return scores >= jax.lax.top_k(scores, kept)[0][-1]


def programs(size: int, sparsity: float) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Returns every way as a compiled call on the same scores, and the scratch memory of each as a share of them."""
    scores = jnp.abs(jax.random.normal(jax.random.key(0), (size,)))
    host, kept = np.asarray(scores), round((1 - sparsity) * size)
    ways = {
        OURS: lambda s: select.leafwise(s, sparsity),
        f"{OURS}, again": lambda s: select.leafwise(s, sparsity),
        "argsort": lambda s: by_argsort(s, kept),
        "top_k": lambda s: by_top_k(s, kept),
    }
    ready = {name: jax.jit(way).lower(scores).compile() for name, way in ways.items()}
    scratch = {name: f"{way.memory_analysis().temp_size_in_bytes / scores.nbytes:.3f}" for name, way in ready.items()}
    calls = {name: lambda way=way: way(scores) for name, way in ready.items()}
    calls["numpy.partition"] = lambda: np.partition(host, size - kept)
    return calls, scratch


def compile_seconds(leaves: int) -> list[list[str]]:
    """Returns rows of the seconds that it takes to compile a selection over many leaves."""
    rng = np.random.default_rng(0)
    params = {str(i): jnp.zeros(rng.integers(10, 500, 2)) for i in range(leaves)}
    shares = {"one sparsity": dict.fromkeys(params, 0.9), "one each": {n: (int(n) + 1) / (leaves + 2) for n in params}}
    ways = {f"leafwise, {name}": lambda p, s=s: select.leafwise(p, s) for name, s in shares.items()}
    ways["globally"] = lambda p: select.globally(p, 0.9)
    ways["argsort of every leaf"] = lambda p: jax.tree.map(lambda s: by_argsort(s.ravel(), s.size // 10), p)
    return [[name, f"{timing.compiled(way, params)[1]:.1f}"] for name, way in ways.items()]


def main(config: Config) -> None:
    """Prints two tables."""
    rows = []
    for size in config.sizes:
        calls, scratch = programs(size, config.sparsity)
        seconds = timing.interleaved(calls, config.rounds)
        for name, taken in seconds.items():
            middle, low, high = timing.ratio(taken, seconds[OURS])
            quartiles, milliseconds = f"{low:.2f} to {high:.2f}", f"{1000 * np.median(taken):.2f}"
            rows.append([f"{size:,}", name, f"{middle:.2f}", quartiles, milliseconds, scratch.get(name, "-")])
    print(table(["scores", "way", "ratio", "quartiles", "ms", "scratch / scores"], rows))
    print(table([f"{config.leaves} leaves", "seconds to compile"], compile_seconds(config.leaves)))


if __name__ == "__main__":
    main(tyro.cli(Config))
