"""What a step of gRDA costs against SGD with momentum, which moves the same bytes: `python -m benchmarks.grda`.

The optimizer's step alone, `update` and `apply_updates` in one program with parameters and state donated, from the same
gradients: the median over rounds of the ratio within a round, with quartiles. The reference stands in the table twice;
its second row is the error of the measurement. The aim is at most 1.10.

Programs work in place, so where their buffers happen to lie stays with them: every one is given new ones a few times.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import timing
from experiments.results import table
from sparsejax.transforms import grda, sum_of_rates

REFERENCE = "sgd, momentum 0.9"


@dataclasses.dataclass(frozen=True)
class Config:
    """Ratios of the steps of gRDA to those of SGD with momentum."""

    parameters: int = 10_000_000
    """Parameters in all."""
    leaves: int = 10
    """Arrays that they are spread over."""
    allocations: int = 20
    """Times that every optimizer gets new buffers."""
    rounds: int = 20
    """Rounds with the same buffers, in which every optimizer runs once."""
    steps: int = 1
    """Steps in a run: few, so that a round is short and what else the machine does falls on all of it."""


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Returns every optimizer to time; the first is the reference."""
    schedule = optax.cosine_decay_schedule(0.1, 1_000_000)
    return {
        REFERENCE: optax.sgd(0.1, momentum=0.9),
        f"{REFERENCE}, again": optax.sgd(0.1, momentum=0.9),
        "grda": grda(0.1),
        "grda, schedule": grda(schedule),
        "grda, schedule, sum of rates": grda(schedule, time=sum_of_rates),
        "sgd": optax.sgd(0.1),
    }


def step(tx: optax.GradientTransformation, params, state, grads):
    """Returns the parameters and the state after one update."""
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def normal(key: jax.Array, config: Config) -> list[jax.Array]:
    """Returns small Gaussian arrays of one size."""
    size = config.parameters // config.leaves
    return [0.01 * jax.random.normal(key, (size,)) for key in jax.random.split(key, config.leaves)]


def in_place(program: Callable, params, state, grads, steps: int) -> Callable[[], object]:
    """Returns a function that goes on from where its last call ended, in the same buffers."""
    held = [params, state]

    def run():
        for _ in range(steps):
            held[:] = program(*held, grads)
        return held

    return run


def main(config: Config) -> None:
    """Prints a table."""
    params, grads = (normal(key, config) for key in jax.random.split(jax.random.key(0)))
    programs = {}
    for name, tx in optimizers().items():
        jitted = jax.jit(partial(step, tx), donate_argnums=(0, 1))
        programs[name] = jitted.lower(params, tx.init(params), grads).compile()
    seconds = {name: [] for name in programs}
    for _ in range(config.allocations):
        runs = {}
        for name, tx in optimizers().items():
            copies = jax.tree.map(partial(jnp.array, copy=True), params)
            runs[name] = in_place(programs[name], copies, tx.init(params), grads, config.steps)
        for name, taken in timing.interleaved(runs, config.rounds).items():
            seconds[name].extend(taken)
    rows = []
    for name, taken in seconds.items():
        middle, low, high = timing.ratio(np.array(taken), np.array(seconds[REFERENCE]))
        milliseconds = 1000 * np.median(taken) / config.steps
        scratch = programs[name].memory_analysis().temp_size_in_bytes
        rows.append([name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{milliseconds:.2f}", str(scratch)])
    print(table(["optimizer", "ratio", "quartiles", "ms a step", "scratch bytes"], rows))


if __name__ == "__main__":
    main(tyro.cli(Config))
