"""Networks pruned at once, by masks of the trained network: cut, and fine-tuned; or its masks on other weights."""

import dataclasses
from collections.abc import Callable, Iterator

import chex
import jax
import jax.numpy as jnp

import sparsejax as sj
from experiments import calibration, pruning, stages, steps
from experiments.bench import Asked, Bench, Contender
from experiments.results import Measured
from experiments.steps import Networks
from sparsejax import recipes

CUT = ", as cut"
OTHER = 1000
"""How far the seeds of a run are from those that draw its weights again."""

Masks = Callable[[Bench, float], tuple[chex.ArrayTree, Asked]]
"""(bench, sparsity of the pruned layers) -> every seed's mask of the trained network, and what was asked."""


def magnitude(bench: Bench, share: float) -> tuple[chex.ArrayTree, Asked]:
    """Returns masks of the largest weights of each layer."""
    wanted = bench.uniform(share)
    choose = jax.vmap(lambda params: sj.select.leafwise(sj.scores.magnitude(params), wanted))
    return jax.jit(choose)(bench.start.params), wanted


def lamp(bench: Bench, share: float) -> tuple[chex.ArrayTree, Asked]:
    """Returns masks of the best weights of all layers together, by LAMP's score."""
    wanted = bench.uniform(share)
    choose = jax.vmap(lambda params: sj.select.globally(sj.scores.lamp(params), wanted))
    return jax.jit(choose)(bench.start.params), share


def wanda(bench: Bench, share: float) -> tuple[chex.ArrayTree, Asked]:
    """Returns Wanda's masks."""
    wanted, data = bench.uniform(share), bench.dataset
    images = steps.normalizer(data.mean, data.std)(data.train.read(range(bench.options.calibration))[0])

    def choose(params, model_state):
        norms = calibration.input_norms(bench.model, params, model_state, images)
        return recipes.wanda(params, norms, wanted)

    return jax.jit(jax.vmap(choose))(*bench.start.networks), wanted


def shuffled_magnitude(bench: Bench, share: float) -> tuple[chex.ArrayTree, Asked]:
    """Returns masks that keep as many weights of each layer as `magnitude`, but others."""
    mask, wanted = magnitude(bench, share)
    return bench.reordered(mask), wanted


def cut(masks: Masks) -> Contender:
    """Returns the contender that cuts the trained network, and fine-tunes it."""

    def networks(bench: Bench, name: str, share: float) -> Iterator[Measured]:
        mask, asked = masks(bench, share)
        start = dataclasses.replace(bench.start, params=jax.vmap(sj.apply)(mask, bench.start.params))
        yield bench.row(name + CUT, start, asked=asked)
        yield stages.tuned_row(bench, name, share, bench.start, start.networks, asked)

    return networks


def on_other_weights(weights: Callable[[Bench], Networks]) -> Contender:
    """Returns the contender that trains the trained network's magnitude mask from scratch, on the weights given."""

    def networks(bench: Bench, name: str, share: float) -> Iterator[Measured]:
        mask, asked = magnitude(bench, share)
        yield under(bench, name, share, mask, weights(bench), asked)

    return networks


def under(bench: Bench, name: str, share: float, mask: chex.ArrayTree, weights: Networks, asked: Asked) -> Measured:
    """Returns networks that are trained from scratch under a mask, on the weights given."""
    params, model_state = weights
    initial = (jax.vmap(sj.apply)(mask, params), model_state)
    run = bench.stage(f"{name} {share:g}", pruning.masked, bench.every, initial=initial)
    return bench.row(name, run, asked=asked)


def drawn_again(bench: Bench) -> Networks:
    """Returns networks of other seeds, untrained."""
    seeds = jnp.arange(bench.recipe.seeds, dtype=jnp.uint32) + jnp.uint32(bench.recipe.seed + OTHER)
    return steps.fresh(bench.model, bench.image)(seeds)


def as_initialised(bench: Bench) -> Networks:
    """Returns the networks that the trained ones were before training."""
    return bench.start.snapshots[0]
