"""What exact selection costs against a sort: `python -m benchmarks.select`; with a picture, `python -m benchmarks`.

The mask of the largest tenth of Gaussian magnitudes, float32: the median over rounds of the ratio of each way's time to
that of `select.leafwise` within a round, with quartiles, and the scratch memory of each program. "per output" selects
in each column of a square matrix. `numpy.partition` and `torch.kthvalue`, if it is installed, run on the host and give
a threshold alone, without a mask. Then the seconds to compile a selection over many leaves, with one sparsity for all
of them and with one for each.

The aims, at ten million scores: argsort at least 100, numpy.partition at least 0.67, scratch below one copy.
"""

import dataclasses
import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.axes import Axes

from experiments import figures, timing
from experiments.results import table
from sparsejax import select

OURS = "leafwise"
PATIENCE = 10_000_000  # scores, beyond which there are fewer rounds: a sort of more takes a minute


@dataclasses.dataclass(frozen=True)
class Config:
    """Ratios of the times of other ways to select to that of `select.leafwise`."""

    sizes: tuple[int, ...] = (100_000, 1_000_000, 10_000_000, 50_000_000)
    """Scores."""
    sparsity: float = 0.9
    """The share to prune."""
    rounds: int = 7
    """Rounds, each of which runs every way once."""
    leaves: int = 50
    """Leaves of the network whose selection is compiled."""


class Found(NamedTuple):
    """What was measured."""

    seconds: dict[int, dict[str, np.ndarray]]
    """Those of every round, by size and way."""
    scratch: dict[int, dict[str, float]]
    """Scratch memory as a share of the scores, by size and way."""
    compiling: dict[str, float]
    """Seconds to compile, by way."""
    leaves: int
    """Leaves of what is compiled."""


def by_argsort(scores: jax.Array, kept: int) -> jax.Array:
    """Returns the mask of the first `kept` of a descending, stable argsort."""
    order = jnp.argsort(-scores)
    return jnp.zeros(scores.shape, jnp.bool_).at[order[:kept]].set(True)


def by_top_k(scores: jax.Array, kept: int) -> jax.Array:
    """Returns the mask of what reaches the last of the `kept` largest scores."""
    return scores >= jax.lax.top_k(scores, kept)[0][-1]


def programs(size: int, sparsity: float) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Returns every way as a compiled call on the same scores, and the scratch memory of each as a share of them."""
    scores, side = jnp.abs(jax.random.normal(jax.random.key(0), (size,))), math.isqrt(size)
    host, kept = np.asarray(scores), round((1 - sparsity) * size)
    square = scores[: side**2].reshape(side, side)
    ways = {
        OURS: (lambda s: select.leafwise(s, sparsity), scores),
        f"{OURS}, again": (lambda s: select.leafwise(s, sparsity), scores),
        f"{OURS}, per output": (lambda s: select.leafwise(s, sparsity, scope=select.per(-1)), square),
        "argsort": (lambda s: by_argsort(s, kept), scores),
        "top_k": (lambda s: by_top_k(s, kept), scores),
    }
    ready = {name: (jax.jit(way).lower(on).compile(), on) for name, (way, on) in ways.items()}
    scratch = {name: way.memory_analysis().temp_size_in_bytes / on.nbytes for name, (way, on) in ready.items()}
    calls = {name: lambda way=way, on=on: way(on) for name, (way, on) in ready.items()}
    calls["numpy.partition"] = lambda: np.partition(host, size - kept)
    if importlib.util.find_spec("torch"):
        import torch

        tensor = torch.from_numpy(host.copy())
        calls["torch.kthvalue"] = lambda: torch.kthvalue(tensor, size - kept).values.item()
    return calls, scratch


def compile_seconds(leaves: int) -> dict[str, float]:
    """Returns the seconds that it takes to compile a selection over many leaves, by way."""
    rng = np.random.default_rng(0)
    params = {str(i): jnp.zeros(rng.integers(10, 500, 2)) for i in range(leaves)}
    shares = {"one sparsity": dict.fromkeys(params, 0.9), "one each": {n: (int(n) + 1) / (leaves + 2) for n in params}}
    ways = {f"leafwise, {name}": lambda p, s=s: select.leafwise(p, s) for name, s in shares.items()}
    ways["globally"] = lambda p: select.globally(p, 0.9)
    ways["argsort of every leaf"] = lambda p: jax.tree.map(lambda s: by_argsort(s.ravel(), s.size // 10), p)
    return {name: timing.compiled(way, params)[1] for name, way in ways.items()}


def measure(config: Config) -> Found:
    """Runs everything."""
    seconds, scratch = {}, {}
    for size in config.sizes:
        calls, scratch[size] = programs(size, config.sparsity)
        seconds[size] = timing.interleaved(calls, max(2, config.rounds * PATIENCE // max(size, PATIENCE)))
    return Found(seconds, scratch, compile_seconds(config.leaves), config.leaves)


def describe(found: Found) -> str:
    """Returns two tables."""
    rows = []
    for size, seconds in found.seconds.items():
        for name, taken in seconds.items():
            middle, low, high = timing.ratio(taken, seconds[OURS])
            scratch = found.scratch[size].get(name)
            quartiles, milliseconds = f"{low:.2f} to {high:.2f}", f"{1000 * np.median(taken):.2f}"
            share = "-" if scratch is None else f"{scratch:.3f}"
            rows.append([f"{size:,}", name, f"{middle:.2f}", quartiles, milliseconds, share])
    compiling = [[name, f"{seconds:.1f}"] for name, seconds in found.compiling.items()]
    ratios = table(["scores", "way", "ratio", "quartiles", "ms", "scratch / scores"], rows)
    return f"{ratios}\n\n{table([f'{found.leaves} leaves', 'seconds to compile'], compiling)}"


def draw(ax: Axes, found: Found) -> None:
    """Draws the ratio of every way's time to ours against the number of scores."""
    for index, name in enumerate(next(iter(found.seconds.values()))):
        ratios = [timing.ratio(seconds[name], seconds[OURS]) for seconds in found.seconds.values()]
        middle, low, high = np.array(ratios).T
        error = [middle - low, high - middle]
        ax.errorbar(list(found.seconds), middle, error, label=name, capsize=2, markersize=5, **figures.style(index))
    ax.set(xscale="log", yscale="log", xlabel="scores", ylabel=f"time / time of {OURS}")
    ax.set_title("selection of the largest tenth", fontsize=9)
    ax.legend(fontsize=8, frameon=False)


if __name__ == "__main__":
    print(describe(measure(tyro.cli(Config))))
