"""What a mask adds to a training step: `python -m benchmarks.sparsify`; with a picture, `python -m benchmarks`.

A training step of a multi-layer perceptron with Adam, parameters and state donated, for every recipe against the dense
step: at a step that looks at the mask, at one that does not, and amortised over the period. The median over rounds of
the ratio within a round, with quartiles. Recipes that look once are timed as if they looked as often as the others. The
dense step stands in the table twice; its second row is the error of the
measurement. The aim, for a million parameters and a look every 100 steps: at most 1.05 amortised.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.axes import Axes

from experiments import figures, timing
from experiments.results import table
from sparsejax import recipes

DENSE = "dense"


@dataclasses.dataclass(frozen=True)
class Config:
    """Ratios of the steps of sparse training to the dense one."""

    widths: tuple[int, ...] = (784, 800, 480, 10)
    """Inputs, hidden layers and classes of the network; about a million parameters."""
    batch_size: int = 128
    """Examples in a step."""
    period: int = 100
    """Steps from one look at the mask to the next."""
    rounds: int = 20
    """Rounds, each of which runs every step once."""
    steps: int = 5
    """Steps in a run that does not look at the mask."""


def optimizers(period: int) -> dict[str, optax.GradientTransformation]:
    """Returns every optimizer to time; the first is the reference."""
    adam, ramp = optax.adam(1e-3), {"target": 0.9, "start": 0, "end": 100 * period, "period": period}
    return {
        DENSE: adam,
        f"{DENSE}, again": adam,
        "one_shot_magnitude": recipes.one_shot_magnitude(adam, 0.9, period),
        "random_pruning": recipes.random_pruning(adam, 0.9, period),
        "snip": recipes.snip(adam, 0.9, period),
        "gradual_magnitude": recipes.gradual_magnitude(adam, **ramp),
        "global_magnitude": recipes.global_magnitude(adam, **ramp),
        "channel_magnitude": recipes.channel_magnitude(adam, **ramp),
        "block_magnitude": recipes.block_magnitude(adam, size=(4, 2), **ramp),
        "n_of_m": recipes.n_of_m(adam, 2, 4, 0, 100 * period, period),
        "set_": recipes.set_(adam, 0.9, 100 * period, period),
        "rigl": recipes.rigl(adam, 0.9, 100 * period, period),
    }


def initial(config: Config) -> list[dict[str, jax.Array]]:
    """Returns the parameters of the network."""
    keys = jax.random.split(jax.random.key(0), len(config.widths) - 1)
    pairs = zip(keys, config.widths[:-1], config.widths[1:], strict=True)
    return [{"kernel": jax.random.normal(key, (n, m)) / n**0.5, "bias": jnp.zeros(m)} for key, n, m in pairs]


def loss(params, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross entropy of the network."""
    for layer in params[:-1]:
        images = jax.nn.relu(images @ layer["kernel"] + layer["bias"])
    logits = images @ params[-1]["kernel"] + params[-1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def step(tx: optax.GradientTransformation, params, state, images: jax.Array, labels: jax.Array):
    """Returns the parameters and the state after one step."""
    updates, state = tx.update(jax.grad(loss)(params, images, labels), state, params)
    return optax.apply_updates(params, updates), state


def run(program: Callable, config: Config, tx, batch, count: int, steps: int) -> Callable[[], object]:
    """Returns a function that makes steps, the first of them the one of a given number, in the same buffers."""
    params = initial(config)
    held = [params, tx.init(params)]

    def go():
        if hasattr(held[1], "mask"):
            held[1] = held[1]._replace(count=jnp.asarray(count, jnp.int32))
        for _ in range(steps):
            held[:] = program(*held, *batch)
        return held

    return go


class Found(NamedTuple):
    """What was measured, by optimizer."""

    quiet: dict[str, np.ndarray]
    """Seconds of a step that does not look at the mask, of every round."""
    looking: dict[str, np.ndarray]
    """Seconds of one that does."""
    compiling: dict[str, float]
    """Seconds to compile a step."""
    period: int
    """Steps from one look to the next."""

    def amortised(self, name: str) -> float:
        """Returns the ratio of a step to the dense one over a period."""
        look = timing.ratio(self.looking[name], self.looking[DENSE])[0]  # a run of one step has cold caches
        return (look + (self.period - 1) * timing.ratio(self.quiet[name], self.quiet[DENSE])[0]) / self.period


def measure(config: Config) -> Found:
    """Runs everything."""
    images = jax.random.normal(jax.random.key(1), (config.batch_size, config.widths[0]))
    batch = images, jnp.arange(config.batch_size) % config.widths[-1]
    quiet, looking, compiling = {}, {}, {}
    for name, tx in optimizers(config.period).items():
        params = initial(config)
        jitted = jax.jit(partial(step, tx), donate_argnums=(0, 1))
        start, program = timing.time.perf_counter(), jitted.lower(params, tx.init(params), *batch).compile()
        compiling[name] = timing.time.perf_counter() - start
        quiet[name] = run(program, config, tx, batch, config.period + 1, config.steps)
        looking[name] = run(program, config, tx, batch, config.period, 1)
    quiet = {name: taken / config.steps for name, taken in timing.interleaved(quiet, config.rounds).items()}
    return Found(quiet, timing.interleaved(looking, config.rounds), compiling, config.period)


def describe(found: Found) -> str:
    """Returns a table."""
    rows = []
    for name, taken in found.quiet.items():
        middle, low, high = timing.ratio(taken, found.quiet[DENSE])
        look = timing.ratio(found.looking[name], found.looking[DENSE])[0]
        row = [name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{look:.2f}", f"{found.amortised(name):.3f}"]
        rows.append([*row, f"{1000 * np.median(taken):.2f}", f"{found.compiling[name]:.1f}"])
    head = ["optimizer", "other steps", "quartiles", "looking", "amortised", "ms a step", "compile s"]
    return table(head, rows)


def draw(ax: Axes, compiling: Axes, found: Found) -> None:
    """Draws the amortised ratio of every recipe's step to the dense one, and the seconds to compile it."""
    names = list(found.quiet)
    ratios, places = [found.amortised(name) for name in names], range(len(names))
    quartiles = np.array([timing.ratio(found.quiet[name], found.quiet[DENSE]) for name in names]).T
    error = [quartiles[0] - quartiles[1], quartiles[2] - quartiles[0]]  # of the other steps, which are nearly all
    ax.errorbar(ratios, places, xerr=error, linestyle="", capsize=2, **figures.style(0))
    ax.axvline(1, color="black", linewidth=0.8)
    ax.axvline(1.05, color="black", linewidth=0.8, linestyle=":", label="the aim, 1.05")
    ax.set(xlabel="time of a step / dense step, amortised", yticks=places, yticklabels=names)
    ax.set_title(f"training step, a look every {found.period} steps", fontsize=9)
    ax.legend(fontsize=8, frameon=False)
    compiling.barh(places, [found.compiling[name] for name in names], color=figures.COLOURS[0])
    compiling.set(xlabel="seconds to compile a step", yticks=places, yticklabels=names)
    compiling.set_title("compilation", fontsize=9)
    for axes in (ax, compiling):
        axes.invert_yaxis()


if __name__ == "__main__":
    print(describe(measure(tyro.cli(Config))))
