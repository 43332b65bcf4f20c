"""What AutoPrune's gates add to a training step: `python -m benchmarks.autoprune`.

A run of two steps, one of the auxiliary parameters and one of the weights, against two dense steps with the weights'
optimizer; LeNet-5, batch 128: the median over rounds of the ratio within a round, with quartiles. The dense step stands
in the table twice; its second row is the error of the measurement. The aim is at most 1.15.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import sparsejax as sj
from experiments import timing
from experiments.models import LeNet5
from experiments.results import table
from sparsejax.groups import Group, Member

REFERENCE = "dense"
MODEL = LeNet5(10)


@dataclasses.dataclass(frozen=True)
class Config:
    """Ratios of the training steps of AutoPrune to the dense one."""

    batch_size: int = 128
    """Images in a step."""
    rounds: int = 25
    """Rounds, each of which runs every method once."""
    pairs: int = 2
    """Pairs of steps in a run."""
    allocations: int = 3
    """Times that every method gets new buffers."""


def hidden_units() -> dict[str, Group]:
    """Returns the channels of both convolutions and the neurons of the dense layer."""
    reads = partial(Member, reads=True)
    flat = reads("Dense_0/kernel", 0, units=tuple(range(50)) * 16)
    return {
        "conv 1": Group(20, (Member("Conv_0/kernel", -1), Member("Conv_0/bias", 0), reads("Conv_1/kernel", -2))),
        "conv 2": Group(50, (Member("Conv_1/kernel", -1), Member("Conv_1/bias", 0), flat)),
        "dense": Group(500, (Member("Dense_0/kernel", 1), Member("Dense_0/bias", 0), reads("Dense_1/kernel", 0))),
    }


def methods(params) -> dict[str, tuple]:
    """Returns, by name: what is trained, the parameters that the network runs with, and the optimizer."""
    key, optimizer, groups = jax.random.key(1), optax.sgd(0.01, momentum=0.9), hidden_units()
    rule = partial(sj.autoprune, optimizer, optax.sgd(0.1))
    target = sj.targets.weights(sj.budgets.compression(params, 100.0))
    weights, units = sj.gates.init(key, params), sj.unit_gates.init(key, params, groups)
    return {
        REFERENCE: (params, lambda params: params, optimizer),
        f"{REFERENCE}, again": (params, lambda params: params, optimizer),
        "weights": (weights, sj.gates.apply, rule()),
        "weights, until 100x": (weights, sj.gates.apply, sj.transforms.freeze_at(rule(), target)),
        "weights, not alternating": (weights, sj.gates.apply, rule(alternate=False)),
        "units": (units, lambda gated: sj.unit_gates.apply(gated, groups), rule()),
    }


def step(forward: Callable, tx: optax.GradientTransformation, trained, state, images, labels):
    """Returns what is trained and the optimizer's state after one step."""

    def loss(trained):
        logits = MODEL.apply({"params": forward(trained)}, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = tx.update(jax.grad(loss)(trained), state, trained)
    return optax.apply_updates(trained, updates), state


def in_place(program: Callable, trained, state, data, steps: int) -> Callable[[], object]:
    """Returns a function that goes on from where its last call ended, in the same buffers."""
    held = [trained, state]

    def run():
        for _ in range(steps):
            held[:] = program(*held, *data)
        return held

    return run


def main(config: Config) -> None:
    """Prints a table."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((config.batch_size, 28, 28, 1)), jnp.float32)
    data = images, jnp.arange(config.batch_size) % 10
    params = MODEL.init(jax.random.key(0), data[0])["params"]
    everything = methods(params)
    programs, seconds = {}, {name: [] for name in everything}
    for name, (trained, forward, tx) in everything.items():
        jitted = jax.jit(partial(step, forward, tx), donate_argnums=(0, 1))
        programs[name] = jitted.lower(trained, tx.init(trained), *data).compile()
    for _ in range(config.allocations):
        runs = {}
        for name, (trained, _, tx) in everything.items():
            copies = jax.tree.map(partial(jnp.array, copy=True), trained)
            runs[name] = in_place(programs[name], copies, tx.init(copies), data, 2 * config.pairs)
        for name, taken in timing.interleaved(runs, config.rounds).items():
            seconds[name].extend(taken)
    rows = []
    for name, taken in seconds.items():
        middle, low, high = timing.ratio(np.array(taken), np.array(seconds[REFERENCE]))
        milliseconds = 1000 * np.median(taken) / (2 * config.pairs)
        rows.append([name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{milliseconds:.2f}"])
    print(table(["gates", "ratio to dense", "quartiles", "ms a step"], rows))


if __name__ == "__main__":
    main(tyro.cli(Config))
