"""What zeros in a matrix gain when it is multiplied: `python -m benchmarks.inference` prints a table, draws pictures.

The product of a batch with a square float32 matrix: the median over rounds of the ratio of the dense product's time to
each way's within a round, with quartiles. The ways store the same number of weights, `1 - sparsity` of all:

- BCOO, BCSR: single weights anywhere, with `jax.experimental.sparse`;
- blocks 32x32 and others: `sparsejax.block_sparse`, equally many blocks in every block column;
- smaller: a dense matrix of fewer inputs and outputs, as `sparsejax.shrink` leaves it.

"ideal" is as much faster as there is less to multiply. The aims: blocks faster than the dense matrix from 80% up, for
batches from 16 at least half of what the smaller matrix gains.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import sparse
from matplotlib.axes import Axes

from experiments import figures, timing
from experiments.results import table
from sparsejax import block_sparse

DENSE, SMALLER = "dense", "smaller"
BY_ENTRY = ("BCOO", "BCSR")


@dataclasses.dataclass(frozen=True)
class Config:
    """Ratios of the time of a dense product to those of ways that store its weights sparsely."""

    sizes: tuple[int, ...] = (1024,)
    """Inputs and outputs of the matrix, which the blocks must divide. 4096 takes a while."""
    blocks: tuple[tuple[int, int], ...] = ((32, 32), (8, 128), (8, 512))
    """Inputs and outputs of a block."""
    batches: tuple[int, ...] = (1, 16, 64, 256)
    """Rows that are multiplied."""
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    """Shares of zeros."""
    by_entry_from: float = 0.8
    """The sparsity from which BCOO and BCSR run; with more weights they take up to a hundred times as long."""
    rounds: int = 25
    """Rounds, each of which runs every way once."""
    results: Path = Path("results/benchmarks")
    """Where the table and a picture for each size go."""


class Found(NamedTuple):
    """What was measured."""

    seconds: dict[tuple[int, int], dict[float, dict[str, np.ndarray]]]
    """Those of every round, by (size, batch), sparsity and way."""
    stored: dict[tuple[int, float], dict[str, float]]
    """The share of the weights that each way stores, by (size, sparsity)."""


def scattered(rng: np.random.Generator, size: int, sparsity: float) -> np.ndarray:
    """Returns a matrix with zeros anywhere."""
    alive = np.zeros(size * size, bool)
    alive[rng.permutation(size * size)[: round((1 - sparsity) * size * size)]] = True
    return np.where(alive.reshape(size, size), rng.standard_normal((size, size)), 0).astype(np.float32)


def balanced(rng: np.random.Generator, size: int, sparsity: float, block: tuple[int, int]) -> np.ndarray:
    """Returns a matrix of which every block column keeps the same number of blocks, at least one."""
    rows, columns = size // block[0], size // block[1]
    alive = rng.random((rows, columns)).argsort(0) < max(1, round((1 - sparsity) * rows))
    return np.where(np.kron(alive, np.ones(block, bool)), rng.standard_normal((size, size)), 0).astype(np.float32)


def matrices(config: Config, size: int, sparsity: float) -> tuple[dict[str, tuple[Callable, object]], dict[str, float]]:
    """Returns `{way: (x, weights -> product, weights)}`, and the share of the weights that each stores."""
    rng = np.random.default_rng(0)
    whole = scattered(rng, size, sparsity)
    side = max(1, round(math.sqrt(1 - sparsity) * size))
    ways = {DENSE: (jnp.matmul, jnp.asarray(whole)), SMALLER: (smaller, jnp.asarray(whole[:side, :side]))}
    stored = {DENSE: 1.0, SMALLER: (side / size) ** 2}
    for length, width in config.blocks:
        compact = block_sparse.compress(balanced(rng, size, sparsity, (length, width)), (length, width))
        name = f"blocks {length}x{width}"
        ways[name], stored[name] = (block_sparse.matmul, compact), compact.stored
    if sparsity >= config.by_entry_from:  # both take the sparse matrix from the left only
        for name, kind in zip(BY_ENTRY, (sparse.BCOO, sparse.BCSR), strict=True):
            ways[name] = (from_the_left, kind.fromdense(jnp.asarray(whole.T)))
            stored[name] = np.count_nonzero(whole) / whole.size
    return ways, stored


def smaller(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns the product of as many inputs as there are left."""
    return x[:, : len(w)] @ w


def from_the_left(x: jax.Array, transposed: object) -> jax.Array:
    """Returns `x @ w` for a sparse `w.T`."""
    return (transposed @ x.T).T


def measure(config: Config) -> Found:
    """Runs everything."""
    found = Found({(size, batch): {} for size in config.sizes for batch in config.batches}, {})
    for size in config.sizes:
        inputs = jax.random.normal(jax.random.key(1), (max(config.batches), size))
        for sparsity in config.sparsities:
            ways, found.stored[size, sparsity] = matrices(config, size, sparsity)
            for batch in config.batches:
                x, runs = inputs[:batch], {}
                for name, (way, weights) in ways.items():
                    program, _ = timing.compiled(way, x, weights)
                    runs[name] = lambda program=program, x=x, weights=weights: program(x, weights)
                found.seconds[size, batch][sparsity] = timing.interleaved(runs, config.rounds)
    return found


def describe(found: Found) -> str:
    """Returns a table."""
    rows = []
    for (size, batch), by_sparsity in found.seconds.items():
        for sparsity, seconds in by_sparsity.items():
            for name, taken in seconds.items():
                stored = found.stored[size, sparsity][name]
                middle, low, high = timing.ratio(seconds[DENSE], taken)
                row = [f"{size:,}", str(batch), f"{sparsity:.0%}", name, f"{stored:.1%}", f"{middle:.2f}"]
                rows.append([*row, f"{low:.2f} to {high:.2f}", f"{1000 * np.median(taken):.3f}"])
    head = ["size", "batch", "sparsity", "way", "stored", "speed-up", "quartiles", "ms"]
    return table(head, rows)


def draw(axes: list[Axes], found: Found, size: int) -> None:
    """Draws the speed-up of every way against the sparsity, one axes for each batch."""
    of_size = {batch: by_sparsity for (own, batch), by_sparsity in found.seconds.items() if own == size}
    names = dict.fromkeys(name for one in of_size.values() for seconds in one.values() for name in seconds)
    names = [name for name in names if name != DENSE]
    for ax, (batch, by_sparsity) in zip(axes, of_size.items(), strict=True):
        for index, name in enumerate(names):
            shares = [sparsity for sparsity, seconds in by_sparsity.items() if name in seconds]
            if not shares:
                continue
            ratios = [timing.ratio(by_sparsity[share][DENSE], by_sparsity[share][name]) for share in shares]
            middle, low, high = np.array(ratios).T
            kept = [1 - share for share in shares]
            style = {"label": name, "capsize": 2, "markersize": 5, "linewidth": 1.2, **figures.style(index)}
            ax.errorbar(kept, middle, [middle - low, high - middle], **style)
        kept = np.array([1 - share for share in by_sparsity])
        ax.plot(kept, 1 / kept, color="black", linewidth=0.8, linestyle=":", label="ideal")
        ax.axhline(1, color="black", linewidth=0.8, label=DENSE)
        ax.set(xscale="log", yscale="log", xlabel="sparsity", ylabel="speed-up over the dense matrix")
        ax.set_xticks(kept, [f"{share:.0%}" for share in by_sparsity])
        ax.set_xticks([], minor=True)
        ax.invert_xaxis()
        ax.set_title(f"{size:,} x {size:,}, batch {batch}", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)


def main(config: Config) -> Path:
    """Prints the table, writes it and the picture, and returns the folder they are in."""
    found = measure(config)
    print(describe(found))
    for size in config.sizes:
        drawn, axes = figures.figure("What zeros gain in a product, medians and quartiles", len(config.batches), 4.2)
        draw(axes, found, size)
        figures.save(drawn, config.results / f"inference-{size}.png")
    (config.results / "inference.md").write_text(f"{describe(found)}\n")
    print(f"table and pictures are in {config.results}")
    return config.results


if __name__ == "__main__":
    main(tyro.cli(Config))
