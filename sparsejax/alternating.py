"""AutoPrune's training rule: weights and auxiliary parameters take turns. Public through `sparsejax.transforms`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import _checks, _integers, _states, surrogates, tree
from sparsejax._numbers import check_not_negative
from sparsejax.gates import Gated, Surrogate


class AutopruneState(NamedTuple):
    """The state of `autoprune`; the three counts are of entries of `aux`, by its names.

    >>> gated = Gated({"kernel": jnp.ones(2)}, {"kernel": jnp.array([0.1, -0.1])})
    >>> autoprune(optax.sgd(0.1), optax.sgd(0.1)).init(gated).pruned["kernel"].item()
    1
    """

    count: jax.Array
    """Calls made, int32."""
    frozen: jax.Array
    """Whether the auxiliary parameters are frozen for good, bool."""
    weights: optax.OptState
    """The state of the weights' optimizer."""
    aux: optax.OptState
    """The state of the auxiliary parameters' optimizer."""
    pruned: dict[str, jax.Array]
    """Entries that are pruned after the last update of aux, uint32."""
    turned: dict[str, jax.Array]
    """Entries that this update has pruned, and those that it has recovered, uint32 (2,)."""
    totals: dict[str, jax.Array]
    """The sums of `turned` over all updates, uint32 (2, 2): the high and the low 32 bits of each."""


def autoprune(
    weights_tx: optax.GradientTransformation,
    aux_tx: optax.GradientTransformation,
    *,
    penalty: optax.ScalarOrSchedule = 1e-3,
    surrogate: Surrogate = surrogates.softplus,
    alternate: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of gated weights: auxiliary parameters and weights each have their own, and take turns.

    Calls 0, 2, 4, ... update the auxiliary parameters, on a batch of one half of the data, with the gradient

        dL/dm + penalty h'(m),

    of which the gates give the first part (`sparsejax.gates.apply`); calls 1, 3, 5, ... update the weights, on a batch
    of the other half. Nothing of the part that rests moves, its optimizer's state included, so that an inner schedule
    counts the updates of its own part. `step`, the number of calls before this one, is given to both as an extra
    argument: `sparsejax.transforms.scale_by_step` follows a schedule of the whole run.

    `tx.update(grads, state, params, freeze=True)` freezes the auxiliary parameters for good: from this call on every
    call updates the weights, on all data. `freeze` may be traced; `freeze_at` gives it when a target is reached.

    Args:
      weights_tx: optimizer of the weights; it sees nothing else. The penalty of the weights is its own:
        `optax.add_decayed_weights`, from which a pruned weight fades but can return, or `proximal_l1`, which makes it 0
        and the pruning final.
      aux_tx: optimizer of the auxiliary parameters; the paper's learning rates are 0.01 to 0.5.
      penalty: mu >= 0, the pull on every auxiliary parameter; or a schedule, called with `step`. May be traced.
      surrogate: `m -> h'(m)`, the one that the gates have.
      alternate: `False` updates both parts in every call.

    Returns:
      A transformation of `Gated`, whose `update` needs `params`; other extra arguments go to both optimizers. Its state
      is an `AutopruneState`.

    Raises:
      ValueError: `penalty` is negative, or another argument not what it is called; from `init` or `update`, `params` is
        no `Gated` or its auxiliary parameters are narrower than float32 or (`init`) NaN; from `update`, `freeze` is no
        bool scalar, or `params`, `updates` and `state` do not belong together.

    Source: Xiao, Wang, Rajasekaran, AutoPrune, NeurIPS 2019, Eq. 7-9 and sections 3.4 and 4.4.

    >>> tx = autoprune(optax.sgd(0.1), optax.sgd(0.1), penalty=0.5, surrogate=surrogates.linear)
    >>> gated = Gated({"kernel": jnp.array([1.0])}, {"kernel": jnp.array([0.01])})
    >>> updates, state = tx.update(gated, tx.init(gated), gated)
    >>> updates.weights["kernel"].tolist(), updates.aux["kernel"].tolist()
    ([0.0], [-0.051])
    """
    if not callable(penalty):
        check_not_negative("penalty", penalty)
    _checks.check_optimizer("weights_tx", weights_tx)
    _checks.check_optimizer("aux_tx", aux_tx)
    _checks.check_function("surrogate", surrogate, "pass one of sparsejax.surrogates, such as softplus")
    weights_tx, aux_tx = (optax.with_extra_args_support(tx) for tx in (weights_tx, aux_tx))

    def init(params: Gated) -> AutopruneState:
        _check_gated(params, "params")
        for name, m in params.aux.items():
            tree.check_no_nan(f"aux[{name!r}]", m)
        pruned = {name: _count(~(m > 0)) for name, m in params.aux.items()}
        return AutopruneState(
            count=jnp.zeros((), jnp.int32),
            frozen=jnp.zeros((), jnp.bool_),
            weights=weights_tx.init(params.weights),
            aux=aux_tx.init(params.aux),
            pruned=pruned,
            turned={name: jnp.zeros(2, jnp.uint32) for name in pruned},
            totals={name: jnp.zeros((2, 2), jnp.uint32) for name in pruned},
        )

    def update(updates: Gated, state: AutopruneState, params: Gated | None = None, *, freeze=False, **extra_args):
        _check_gated(params, "params")
        _check_gated(updates, "updates")
        _states.check(AutopruneState, state)
        tree.check_like(updates, params, "updates")
        frozen, weights_move, aux_move = _turns(state, freeze, alternate)
        extra_args = {"step": state.count, **extra_args}

        def update_weights():
            return weights_tx.update(updates.weights, state.weights, params.weights, **extra_args)

        def update_aux():
            mu = penalty(state.count) if callable(penalty) else penalty
            pulled = {
                name: g + jnp.asarray(mu, g.dtype) * surrogate(params.aux[name]) for name, g in updates.aux.items()
            }
            return aux_tx.update(pulled, state.aux, params.aux, **extra_args)

        weight_updates, weights_state = _in_turn(weights_move, update_weights, state.weights)
        aux_updates, aux_state = _in_turn(aux_move, update_aux, state.aux)
        # Apart from the branch that makes the updates, so that m + u is rounded as in optax.apply_updates.
        counts = jax.lax.cond(
            aux_move,
            lambda: _turnover(params.aux, aux_updates, state.totals),
            lambda: (state.pruned, state.turned, state.totals),
        )
        new = AutopruneState(optax.safe_increment(state.count), frozen, weights_state, aux_state, *counts)
        return Gated(weight_updates, aux_updates), new

    return optax.GradientTransformationExtraArgs(init, update)


class Turnover(NamedTuple):
    """The exact counts that `turnover` returns, NumPy uint64; over seeds if the state is.

    >>> Turnover(3, 1, 0, 5, 2).recovered
    0
    """

    pruned: np.ndarray
    """Entries that are pruned after the last update of aux."""
    newly_pruned: np.ndarray
    """Entries that this update has pruned."""
    recovered: np.ndarray
    """Entries that this update has brought back."""
    total_newly_pruned: np.ndarray
    """The sum of `newly_pruned` over all updates."""
    total_recovered: np.ndarray
    """The sum of `recovered` over all updates."""


def turnover(state: optax.OptState) -> Turnover:
    """Returns how many auxiliary parameters have gone below zero, and come back.

    Units that stay only because a group keeps its last one count as pruned; what `freeze_at` opens does not count.

    Args:
      state: of `autoprune`, or of anything around it; outside `jit`.

    Returns:
      A `Turnover`, sums over all leaves.

    Raises:
      ValueError: there is not exactly one `AutopruneState` in `state`.

    Source: Xiao et al., AutoPrune, 2019, section 3.4.

    >>> gated = Gated({"kernel": jnp.ones(2)}, {"kernel": jnp.array([0.1, -0.1])})
    >>> turnover(autoprune(optax.sgd(0.1), optax.sgd(0.1)).init(gated)).pruned.item()
    1
    """
    found = _states.the(AutopruneState, state)
    pruned = sum(np.asarray(count).astype(np.uint64) for count in found.pruned.values())
    turned = sum(np.asarray(count).astype(np.uint64) for count in found.turned.values())
    totals = sum(_integers.to_numpy(count) for count in found.totals.values())
    return Turnover(pruned, turned[..., 0], turned[..., 1], totals[..., 0], totals[..., 1])


def as_bool(freeze: chex.Numeric) -> jax.Array:
    """Returns `freeze` as an array; raises `ValueError` unless it is a bool scalar, traced or not."""
    if jnp.result_type(freeze) != jnp.bool_ or jnp.ndim(freeze):
        raise ValueError(f"freeze={freeze} must be a bool scalar, which may be traced; to freeze is for good")
    return jnp.asarray(freeze)


def _turns(state: AutopruneState, freeze: chex.Numeric, alternate: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns whether the auxiliary parameters are frozen, whether the weights move, and whether they do."""
    frozen = state.frozen | as_bool(freeze)
    if not alternate:
        return frozen, jnp.ones((), jnp.bool_), ~frozen
    first = state.count % 2 == 0
    return frozen, frozen | ~first, ~frozen & first


def _in_turn(moves: jax.Array, update: Callable, state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
    """Returns the updates and the new state of a part whose turn it is; of one that rests, zeros and the state it had.

    A branch, not a selection: where one is taken, the optimizer of the part that rests costs nothing.
    """
    shapes, _ = jax.eval_shape(update)

    def rest():
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), state

    return jax.lax.cond(moves, update, rest)


def _turnover(aux, updates, totals) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the counts of the state after an update: pruned, turned, totals."""
    after = optax.apply_updates(aux, updates)
    pruned, turned, sums = {}, {}, {}
    for name, m in aux.items():
        was, stays = m > 0, after[name] > 0
        pruned[name] = _count(~stays)
        turned[name] = jnp.stack([_count(was & ~stays), _count(~was & stays)])
        sums[name] = _integers.add_small(totals[name], turned[name])
    return pruned, turned, sums


def _count(entries: jax.Array) -> jax.Array:
    return jnp.sum(entries, dtype=jnp.uint32)


def _check_gated(value: Any, argument: str) -> None:
    """Raises unless a value is a `Gated` whose auxiliary parameters can be trained."""
    if not isinstance(value, Gated):
        raise ValueError(
            f"{argument} is {type(value).__name__}, but autoprune trains a Gated: make one with sparsejax.gates.init, "
            f"and call tx.update(grads, state, params)"
        )
    if not isinstance(value.aux, dict) or not value.aux:
        raise ValueError(f"{argument}.aux must be a dict with an entry for every gated leaf or group of units")
    for name, m in value.aux.items():
        dtype = jnp.result_type(m)
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"{argument}.aux[{name!r}] has dtype {dtype}, in which a small step would be lost: keep auxiliary "
                f"parameters in float32, whatever the dtype of the weights"
            )
        if jnp.size(m) >= 2**32:
            raise ValueError(f"{argument}.aux[{name!r}] has {jnp.size(m)} entries; 2^32 or more are not counted")
