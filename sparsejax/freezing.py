"""Stopping AutoPrune at a target. Public through `sparsejax.transforms`."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import _checks, _states, targets
from sparsejax.alternating import as_bool
from sparsejax.gates import Gated, check_gated
from sparsejax.targets import Target


class FreezeAtState(NamedTuple):
    """The state of `freeze_at`.

    >>> FreezeAtState(jnp.int32(0), jnp.int32(-1), optax.EmptyState()).reached_at.item()
    -1
    """

    count: jax.Array
    """Calls made, int32."""
    reached_at: jax.Array
    """The number of the call, from 0, that found the target reached; -1 as long as none has. int32."""
    inner: optax.OptState
    """The state of the wrapped transformation."""


def freeze_at(tx: optax.GradientTransformationExtraArgs, target: Target) -> optax.GradientTransformationExtraArgs:
    """Returns `autoprune` that stops when it has pruned enough: the target is met exactly and the gates freeze.

    The first call whose `params` have reached the target sets the auxiliary parameters as `sparsejax.targets.settle`
    does, and freezes them from that call on. A step that closes too many gates is thus undone in part. After the last
    call of a run, `settle` does the same for a target that this call has reached.

    Args:
      tx: `autoprune`, or what passes `freeze` on to it.
      target: from `sparsejax.targets`.

    Returns:
      A transformation of `Gated`; its state is a `FreezeAtState`. `freeze=True` still freezes it at once.

    Raises:
      ValueError: `tx` or `target` is none; from `update`, `params` is no `Gated`, the target cannot be reached, or as
        `tx` does.

    Source: Xiao, Wang, Rajasekaran, AutoPrune, NeurIPS 2019, section 4.4: "Once the desired FLOPs is reached, we use
    all training data to fine tune the model."

    >>> tx = freeze_at(optax.with_extra_args_support(optax.sgd(0.1)), targets.weights(targets.Budget({"k": 1}, 2)))
    >>> gated = Gated({"k": jnp.ones(3)}, {"k": jnp.array([-0.1, -0.2, 0.3])})
    >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, gated), tx.init(gated), gated)
    >>> optax.apply_updates(gated, updates).aux["k"].tolist(), state.reached_at.item()
    ([0.1, -0.2, 0.3], 0)
    """

    _checks.check_optimizer("tx", tx)
    _checks.check_kind("target", target, Target, "pass sparsejax.targets.weights(budget) or units(budget, groups)")

    def init(params: Gated) -> FreezeAtState:
        return FreezeAtState(jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32), tx.init(params))

    def update(updates: Gated, state: FreezeAtState, params: Gated | None = None, *, freeze=False, **extra_args):
        if params is None:
            raise ValueError("params=None, but freeze_at needs them: call tx.update(grads, state, params)")
        check_gated(params, "params")
        _states.check(FreezeAtState, state)
        before = state.reached_at >= 0
        now = ~before & target.reached(params)
        updates, inner = tx.update(updates, state.inner, params, freeze=as_bool(freeze) | before | now, **extra_args)
        moves = _only_if(now, lambda gated: targets.moves(gated, target.choose(gated)), params)
        updates = updates._replace(aux=jax.tree.map(lambda u, move: jnp.where(now, move, u), updates.aux, moves))
        reached_at = jnp.where(now, state.count, state.reached_at)
        return updates, FreezeAtState(optax.safe_increment(state.count), reached_at, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def reached_at(state: optax.OptState) -> np.ndarray:
    """Returns in which call a run reached its target, from 0, and -1 if it has not.

    Args:
      state: of `freeze_at`, or of anything around it; outside `jit`.

    Returns:
      NumPy int32, over seeds if the state is.

    Raises:
      ValueError: there is not exactly one `FreezeAtState` in `state`.

    >>> reached_at((optax.EmptyState(), FreezeAtState(jnp.int32(9), jnp.int32(7), optax.EmptyState()))).item()
    7
    """
    return np.asarray(_states.the(FreezeAtState, state).reached_at)


def _only_if(needed: jax.Array, compute: Callable[[Gated], chex.ArrayTree], gated: Gated) -> chex.ArrayTree:
    """Returns `compute(gated)` if needed, else zeros; over seeds, too, nothing is computed while none of them needs it.

    `jax.vmap` would make a selection of the conditional, which always computes both sides.
    """

    @jax.custom_batching.custom_vmap
    def conditional(needed: jax.Array, gated: Gated) -> chex.ArrayTree:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(compute, gated))
        return jax.lax.cond(needed, compute, lambda _: zeros, gated)

    @conditional.def_vmap
    def batched(size: int, has_axis: tuple, needed: jax.Array, gated: Gated):
        def stack(leaf: jax.Array, stacked: bool) -> jax.Array:
            return leaf if stacked else jnp.broadcast_to(leaf, (size, *leaf.shape))

        moves = _only_if(jnp.any(needed), jax.vmap(compute), jax.tree.map(stack, gated, has_axis[1]))
        return moves, jax.tree.map(lambda _: True, moves)

    return conditional(needed, gated)
