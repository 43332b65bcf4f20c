"""Methods that train gates, of weights and of units: *AutoPrune*, up to a target and on from it."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

import sparsejax as sj
from experiments import names
from experiments.methods import Method, Recipe, clipping, dense
from experiments.models import one_by_one
from experiments.orders import alternating_halves
from sparsejax.gates import Gated
from sparsejax.groups import Groups
from sparsejax.targets import Target
from sparsejax.transforms import AutopruneState, FreezeAtState

Descent = Callable[[Recipe], optax.GradientTransformation]
"""What makes a direction of the gradient of the weights; the learning rate comes after it."""
Start = Callable[[chex.PRNGKey, chex.ArrayTree], Gated]
"""What makes gated weights of weights."""


def magnitudes(key: chex.PRNGKey, params: chex.ArrayTree) -> Gated:
    """Returns gates in proportion to the magnitudes of trained weights; `key` is not read."""
    return sj.gates.from_magnitudes(params)


def momentum(recipe: Recipe) -> optax.GradientTransformation:
    """Returns SGD with the recipe's momentum and coupled weight decay, as the dense method has it."""
    return optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.trace(recipe.momentum))


def adam(recipe: Recipe) -> optax.GradientTransformation:
    """Returns Adam with the recipe's coupled weight decay: what rates of 1e-3 to 1e-6 are for."""
    return optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.scale_by_adam())


@dataclasses.dataclass(frozen=True)
class Rule:
    """How gates are trained; the defaults are the paper's where it has any."""

    rate: float = 0.1
    """Learning rate of the auxiliary parameters, constant; the paper has 0.01, 0.1 and 0.5."""
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What that rate is multiplied with in some layers, by leaf name. Layers whose gradients are large and noisy, the
    first ones of a plain network, would lose nearly all of their weights without."""
    penalty: float = 1e-3
    """The pull on every auxiliary parameter."""
    surrogate: Callable[[jax.Array], jax.Array] = sj.surrogates.softplus
    """Derivative of the step function."""
    power: float = 0.0
    """0 is the paper's update, 1 the regular one of binary networks."""
    descent: Descent = momentum
    """How the weights are trained."""
    l1: float = 0.0
    """Strength of an L1 penalty of the weights, by proximal steps, in the place of weight decay."""
    start: Start = sj.gates.init
    """The auxiliary parameters of weights at the start."""

    def settings(self) -> dict[str, Any]:
        """Returns the rule as JSON-serialisable values."""
        functions = {name: names.of(getattr(self, name)) for name in ("surrogate", "descent", "start")}
        return {**dataclasses.asdict(self), **functions}


def weights(recipe: Recipe, rule: Rule, target: Target | None = None) -> Method:
    """Returns AutoPrune of single weights, in every leaf of rank 2 or more.

    Args:
      recipe: how to train; weights have its momentum, if any, and weight decay.
      rule: how gates are trained.
      target: where they freeze, from `sparsejax.targets.weights`; `None` goes on pruning.

    Returns:
      A method whose trainable is a `Gated`. The history has the number of `closed` gates, of `closings` and `openings`
      so far, and, with a target, the step that `reached_at` it (-1 if none has).
    """
    return _method(
        recipe,
        rule,
        target,
        init=rule.start,
        forward=lambda gated: sj.gates.apply(gated, rule.surrogate, rule.power),
        finalize=sj.gates.finalize,
    )


def units(recipe: Recipe, rule: Rule, groups: Groups, target: Target | None = None) -> Method:
    """Returns AutoPrune of units: channels and neurons.

    Args:
      recipe: how to train; weights have its momentum, if any, and weight decay.
      rule: how gates are trained.
      groups: the units, from `experiments.unit_groups`.
      target: where they freeze, from `sparsejax.targets.units`; `None` goes on pruning.

    Returns:
      A method whose trainable is a `Gated`, as `weights` returns it.
    """
    return _method(
        recipe,
        rule,
        target,
        init=lambda key, params: sj.unit_gates.init(key, params, groups),
        forward=lambda gated: sj.unit_gates.apply(gated, groups, rule.surrogate, rule.power),
        finalize=lambda gated: sj.unit_gates.finalize(gated, groups),
    )


def _method(recipe: Recipe, rule: Rule, target: Target | None, init, forward, finalize) -> Method:
    def optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
        # A step of the gates is a step of the run: the weights' learning rate goes on while they rest.
        decayed = dataclasses.replace(recipe, weight_decay=0.0) if rule.l1 else recipe
        descent = optax.chain(
            clipping(recipe),
            rule.descent(decayed),
            sj.transforms.scale_by_step(lambda step: -schedule(step)),
            sj.transforms.proximal_l1(schedule, rule.l1) if rule.l1 else optax.identity(),
        )
        gates = optax.chain(sj.transforms.scale_by_name(rule.factors), optax.sgd(rule.rate))
        tx = sj.autoprune(descent, gates, penalty=rule.penalty, surrogate=rule.surrogate)
        return tx if target is None else sj.transforms.freeze_at(tx, target)

    return dataclasses.replace(
        dense(recipe),
        name="autoprune",
        init=init,
        forward=forward,
        optimizer=optimizer,
        finalize=finalize,
        observe=_observe,
        order=alternating_halves,
        over_seeds=one_by_one,  # side by side, every step would compute both turns, and take longer to compile
    )


def _observe(gated: Gated, state: AutopruneState | FreezeAtState) -> dict[str, jax.Array]:
    """Returns counts of gates, and the step in which they froze."""
    stopped = isinstance(state, FreezeAtState)
    inner = state.inner if stopped else state
    closed = reduce(jnp.add, [jnp.sum(~(m > 0), dtype=jnp.uint32) for m in gated.aux.values()])
    # Rounded where they are beyond 2^24; sparsejax.transforms.turnover has them exactly, outside of jit.
    high, low = (reduce(jnp.add, [total[:, i].astype(jnp.float32) for total in inner.totals.values()]) for i in (0, 1))
    closings, openings = high * 2.0**32 + low
    reached = {"reached_at": state.reached_at} if stopped else {}
    return {"closed": closed, "closings": closings, "openings": openings, **reached}
