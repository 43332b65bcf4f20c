"""A mask through training, as a transformation around an optimizer. Public through `sparsejax.transforms`."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import _checks, _states, masks, rules, tree
from sparsejax._types import Clock, Mask, Params

__all__ = ["SparsifyState", "find_mask", "sparsify"]

_FORESEEN = 2**20  # steps for which a clock is asked, at `init`, whether it will strike


class SparsifyState(NamedTuple):
    """The state of `sparsify`: the updates made (int32), the mask, and the state of the optimizer inside.

    >>> SparsifyState(jnp.int32(0), {"kernel": jnp.array([True, False])}, optax.EmptyState()).mask["kernel"].tolist()
    [True, False]
    """

    count: jax.Array
    mask: Mask
    inner: optax.OptState


def sparsify(
    inner: optax.GradientTransformation, rule: rules.Rule, when: Clock, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer whose parameters are exactly zero wherever a mask is false, after every update.

    At step `t = 0, 1, ...`, for the gradient `g` and the parameters `p`:

        if when(t): mask <- rule.update(mask, p, t, grads=g, key=fold_in(key(seed), t), **extra_args)
        forget what belongs to weights that are dead, or were until now
        u <- inner.update(where(mask, g, 0), p)
        u <- where(mask, u, -p)

    To forget is to put, wherever the state of `inner` has numbers of single weights, what it has for a new weight that
    is zero. So clipping by norm sees the gradient of the sparse network, and a weight that is born starts afresh.

    It must be the last of a chain: what scales or adds to its updates breaks the zeros (`report.check_sparsity` tells).
    Put the rest of the chain inside. `optax.MultiSteps`, `optax.partition` and `optax.masked` may be around it. Rules
    that begin sparse (`drop_and_grow`, `fixed`) want `params = sparsejax.apply(find_mask(state), params)` before the
    first step, or its forward pass is dense.

    Args:
      inner: any optimizer.
      rule: how the mask changes, one of `sparsejax.rules`.
      when: `step -> bool`, at which steps it does, one of `sparsejax.schedules`.
      seed: for rules that draw; keys are derived from it and from the step.

    Returns:
      A transformation with a `SparsifyState`, whose `update` needs `params` and hands further arguments to the rule's
      scores and to `inner`.

    Raises:
      ValueError: `inner`, `rule` or `when` is not what it is called; from `init`, as the rule does; from `update`,
        `params` is None, or `params`, `updates` and `state` do not belong together.

    Warns:
      UserWarning: from `init`, if nothing will be pruned in a million steps.

    >>> tx = sparsify(optax.sgd(0.5), rules.prune_to(0.5), when=lambda step: step == 0)
    >>> params, grads = {"kernel": jnp.array([[1.0, 2.0]])}, {"kernel": jnp.array([[1.0, 1.0]])}
    >>> updates, state = tx.update(grads, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [[0.0, 1.5]]
    """
    _checks.check_optimizer("inner", inner)
    _checks.check_kind("rule", rule, rules.Rule, "pass one of sparsejax.rules, such as prune_to(0.9) or fixed(mask)")
    _checks.check_function("when", when, "pass one of sparsejax.schedules, such as every(100) or at(0)")
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SparsifyState:
        _warn_if_dense(rule, when)
        mask = rule.init(params, jax.random.key(seed))
        return SparsifyState(jnp.zeros((), jnp.int32), mask, inner.init(params))

    def update(updates: Params, state: SparsifyState, params: Params | None = None, **extra_args: Any):
        if params is None:
            raise ValueError("params=None, but sparsify needs them: call tx.update(grads, state, params)")
        _states.check(SparsifyState, state)
        tree.check_structure(updates, params, "updates")
        masks.check(state.mask, params)
        count, old, memory = state

        def next_mask() -> Mask:
            key = jax.random.fold_in(jax.random.key(seed), count)
            return rule.update(old, params, count, **({"grads": updates, "key": key} | extra_args))

        # Nothing but the mask crosses the condition: it would copy whatever does, struck or not.
        mask = jax.lax.cond(jnp.asarray(when(count)), next_mask, lambda: old)
        # Before the update, not after it: the new parameters are computed from what the state then holds, and XLA would
        # keep a copy of a state that is changed once more. A newborn weight was forgotten when it was last dead.
        newborn = inner.init(jax.tree.map(jnp.zeros_like, params))
        memory = _forget(mask, params, memory, newborn)
        updates, memory = inner.update(masks.apply(mask, updates), memory, params, **extra_args)
        updates = masks.project(mask, updates, params)
        return updates, SparsifyState(optax.safe_increment(count), mask, memory)

    return optax.GradientTransformationExtraArgs(init, update)


def find_mask(opt_state: optax.OptState, params: Params | None = None) -> Mask:
    """Returns the mask that is somewhere inside an optimizer's state.

    Args:
      opt_state: the state of `sparsify`, or of whatever is around it.
      params: if given, the mask has their structure, with `True` for leaves that no mask covers, and all masks that
        there are go into it: for `optax.partition` and `optax.masked`.

    Returns:
      The mask.

    Raises:
      ValueError: there is no mask; or there are several, or one that lacks leaves, and `params` is not given.

    >>> rule = rules.fixed({"kernel": jnp.array([True, False])})
    >>> tx = optax.chain(optax.clip(1.0), sparsify(optax.adam(0.1), rule, when=lambda step: step == 0))
    >>> find_mask(tx.init({"kernel": jnp.ones(2)}))["kernel"].tolist()
    [True, False]
    """
    found = [state.mask for state in _states.instances(SparsifyState, opt_state)]
    if not found:
        raise ValueError("opt_state holds no SparsifyState: is it the state of an optimizer made with sparsify?")
    if params is None:
        if len(found) > 1:
            raise ValueError(f"opt_state holds {len(found)} masks; call find_mask(opt_state, params) to join them")
        return found[0]
    whole = {name: jnp.asarray(True) for name in tree.named(params)}
    for mask in found:
        leaves = tree.named(mask)
        tree.check_names(leaves, params, "the mask")
        whole |= {name: whole[name] & leaf for name, leaf in leaves.items()}
    return tree.replace(params, whole)


def _warn_if_dense(rule: rules.Rule, when: Clock) -> None:
    with jax.ensure_compile_time_eval():  # `init` may be traced, but neither depends on the weights
        strikes = jax.lax.map(lambda step: jnp.asarray(when(step)), jnp.arange(_FORESEEN), batch_size=4096)
        dense = not rule.prunes(np.flatnonzero(np.asarray(strikes)))
    if dense:
        warnings.warn(
            f"sparsify will prune nothing in the first {_FORESEEN:,} steps: `when` never strikes, or the rule's ramp "
            f"is 0 whenever it does, or its target is 0 for every leaf",
            stacklevel=3,
        )


def _forget(mask: Mask, params: Params, state: optax.OptState, newborn: optax.OptState) -> optax.OptState:
    """Returns a state in which what belongs to single weights that are dead is as for newborn ones."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    leaves = dict(zip(paths, zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True), strict=True))

    def forget(path: tuple, memory: Any, fresh: Any) -> Any:
        # Optimizers keep trees like the parameters: a leaf's own path is the end of the path of what belongs to it.
        owners = (leaves[path[start:]] for start in range(len(path) + 1) if path[start:] in leaves)
        param, alive = next(owners, (None, None))
        if param is None or not _is_per_weight(memory, jnp.shape(param)):
            return memory
        alive = alive.reshape((1,) * (memory.ndim - alive.ndim) + alive.shape)
        if any(jax.typeof(alive).sharding.spec) and jax.typeof(memory).sharding != jax.typeof(alive).sharding:
            # On an explicit mesh, a state made under `jit` is not sharded yet, and a sum brings it there.
            memory = memory + 0 * alive.astype(memory.dtype)
        return jnp.where(alive, memory, fresh)

    return jax.tree_util.tree_map_with_path(forget, state, newborn)


def _is_per_weight(memory: Any, shape: tuple[int, ...]) -> bool:
    """Whether an array has a number for each weight, or several (a history); factored statistics have not."""
    own = jnp.shape(memory)
    return jnp.issubdtype(jnp.result_type(memory), jnp.floating) and own[len(own) - len(shape) :] == shape
