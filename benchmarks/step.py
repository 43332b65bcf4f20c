"""What pruning adds to a training step: `python -m benchmarks.step`.

A step of every method against the dense step, on LeNet-5 and WRN-16-2, batch 128: the median over rounds of the ratio
within a round, with quartiles; the seconds to compile apart. The aim is a
learned-bounds step of at most 1.10 dense steps.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import sparsejax as sj
from experiments import models, pruning, steps, timing
from experiments.methods import Recipe, dense
from experiments.rates import cosine_cycles
from experiments.results import table

NETWORKS = {
    "lenet5": (models.LeNet5(10), (28, 28, 1)),
    "wrn-16-2": (models.WideResNet(10, 16, (16, 32, 64, 128)), (32, 32, 3)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Ratios of the training steps of the pruning methods to the dense one."""

    networks: tuple[Literal["lenet5", "wrn-16-2"], ...] = ("lenet5", "wrn-16-2")
    """Networks to time."""
    rounds: int = 15
    """Rounds, each of which runs every method once."""
    steps: int = 1
    """Training steps in a run."""
    batch_size: int = 128
    """Images in a step."""


def methods(recipe: Recipe) -> dict:
    """Returns every method to time; the first is the reference."""
    return {
        "dense": dense(recipe),
        "budget-wavg": pruning.budget(recipe, 0.85),
        "budget-counted": pruning.counted_budget(recipe, 0.85),
        "fixed-GA": pruning.fixed(recipe, partial(sj.bounds.init, sparsity=0.85)),
        "fixed-BS": pruning.fixed(recipe, partial(sj.bounds.search, sparsity=0.85)),
    }


def epochs(config: Config, name: str) -> tuple[dict, dict[str, float]]:
    """Returns, for one network, a compiled run of a few steps of every method, and the seconds to compile it."""
    model, image = NETWORKS[name]
    recipe = Recipe(batch_size=config.batch_size, seeds=1)
    count = config.steps * config.batch_size
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (count, *image), dtype=np.uint8))
    labels = jnp.asarray(rng.integers(0, 10, count, dtype=np.int32))
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    runs, seconds = {}, {}
    for method_name, method in methods(recipe).items():
        programs = steps.make_programs(
            model,
            method,
            optimizer=method.optimizer(cosine_cycles(recipe, config.steps)),
            normalize=steps.normalizer((0.5,) * image[-1], (0.25,) * image[-1]),
            augment=lambda key, images: images,
            batch_size=config.batch_size,
            sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")),
        )
        seeds = jnp.arange(1, dtype=jnp.uint32)
        state = jax.jit(programs.begin)(seeds, *steps.fresh(model, image)(seeds))
        ready, seconds[method_name] = timing.compiled(programs.epoch, state, images, labels)
        runs[method_name] = partial(ready, state, images, labels)
    return runs, seconds


def main(config: Config) -> None:
    """Prints a table."""
    rows = []
    for name in config.networks:
        runs, compiling = epochs(config, name)
        seconds = timing.interleaved(runs, config.rounds)
        reference = seconds["dense"]
        for method, taken in seconds.items():
            middle, low, high = timing.ratio(taken, reference)
            milliseconds = 1000 * np.median(taken) / config.steps
            rows.append(
                [
                    name,
                    method,
                    f"{middle:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    f"{milliseconds:.1f}",
                    f"{compiling[method]:.1f}",
                ]
            )
    print(table(["network", "method", "ratio to dense", "quartiles", "ms a step", "compile s"], rows))


if __name__ == "__main__":
    main(tyro.cli(Config))
