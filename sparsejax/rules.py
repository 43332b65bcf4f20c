"""How a mask changes while a network is trained: rules, for `sparsejax.sparsify`.

A rule says what the first mask is and what the next one is, given the last, the weights and the signals of the step. It
does not say when: that is the clock's part. `fixed` keeps a mask; `prune_to` takes more and more weights away, and what
is dead stays dead; `drop_and_grow` exchanges weights and keeps their number.

    prune_to(target, ramp=schedules.cubic(1000, 9000))            # gradual magnitude pruning
    prune_to(0.5, scope=select.groups_of(4))                      # 2:4
    drop_and_grow(target, grow=scores.gradient, fraction=0.3)     # RigL
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import _checks, _numbers, allocate, masks, scores, select
from sparsejax._types import Clock, Mask, Params, Scores, Sparsities

__all__ = ["Rule", "drop_and_grow", "fixed", "prune_to", "shares_of"]

Score = Callable[..., Scores]
"""`(params, **signals) -> scores`, one of `sparsejax.scores` or your own."""

Target = float | Sparsities | Callable[[Params], Sparsities]
"""A tree of sparsities, a function of the parameters that makes one, or a number: `allocate.uniform` of it."""


def shares_of(target: Target, params: Params) -> Sparsities:
    """Returns the sparsities that a target means.

    Args:
      target: a tree of Python floats; a function `params -> tree`; or a number, for `allocate.uniform` of it.
      params: the tree of parameters.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: as `sparsejax.allocate.uniform` does.

    >>> shares_of(0.5, {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    {'bias': 0.0, 'kernel': 0.5}
    """
    if callable(target):
        return target(params)
    if jax.tree.structure(target) == jax.tree.structure(0.0) != jax.tree.structure(params):
        return allocate.uniform(params, target)
    return target


class Rule(NamedTuple):
    """A rule: the first mask, the next, and whether anything will ever be pruned.

    >>> fixed({"kernel": jnp.array([True, False])}).prunes(np.array([]))
    True
    """

    init: Callable[[Params, chex.PRNGKey], Mask]
    """`(params, key) -> mask`."""
    update: Callable[..., Mask]
    """`(mask, params, step, **signals) -> mask` of the same shapes; `grads` and `key` are among the signals."""
    prunes: Callable[[np.ndarray], bool]
    """`steps at which the clock strikes -> whether there will be a zero`; known without weights."""


def fixed(mask: Mask) -> Rule:
    """Returns the rule that keeps one mask.

    Args:
      mask: a tree like the parameters, see `sparsejax.masks`.

    Returns:
      A `Rule`.

    Raises:
      ValueError: from `init`, `mask` is not a mask for the parameters.

    >>> mask = {"kernel": jnp.array([True, False])}
    >>> fixed(mask).init({"kernel": jnp.ones(2)}, jax.random.key(0)) == mask
    True
    """

    def init(params: Params, key: chex.PRNGKey) -> Mask:
        del key
        masks.check(mask, params)
        return mask

    def update(mask: Mask, params: Params, step: chex.Numeric, **signals: Any) -> Mask:
        del params, step, signals
        return mask

    def prunes(struck: np.ndarray) -> bool:
        del struck
        leaves = jax.tree.leaves(mask)
        return any(isinstance(leaf, jax.core.Tracer) or not np.all(leaf) for leaf in leaves)

    return Rule(init, update, prunes)


def prune_to(
    target: Target,
    score: Score = scores.magnitude,
    ramp: Clock = lambda step: 1.0,
    grain: select.Grain = select.weight,
    scope: select.Scope = select.leaf,
) -> Rule:
    """Returns the rule that prunes the worst weights until as many are dead as the target says.

    At step `t` a share `ramp(t)` of what the target prunes is dead. The first mask prunes nothing: the pruning begins
    when the clock first strikes. A dead weight stays dead, as long as the ramp does not fall.

    Args:
      target: the sparsities at the end: a tree of Python floats, 0.0 for leaves to leave alone; a function
        `params -> tree`; or one number for all float leaves of rank >= 2.
      score: `(params, **signals) -> scores`.
      ramp: `step -> share of the way`, in [0, 1].
      grain: what lives or dies as one.
      scope: who competes; `select.model` for all leaves together.

    Returns:
      A `Rule`.

    Raises:
      ValueError: an argument is not what it is called; as `sparsejax.select.leafwise`, from `init` already.

    >>> rule, params = prune_to(0.5), {"kernel": jnp.array([[3.0, 1.0, 2.0, 4.0]])}
    >>> mask = rule.init(params, jax.random.key(0))
    >>> rule.update(mask, params, step=0)["kernel"].tolist()
    [[True, False, False, True]]
    """

    _checks.check_function("score", score, "pass one of sparsejax.scores, such as scores.magnitude")
    _checks.check_function("ramp", ramp, "pass one of sparsejax.schedules, such as cubic(0, 1000)")
    select.check_parts(grain, scope)

    def competition(params: Params, scored: Scores, share: chex.Numeric) -> Mask:
        return select.leafwise(scored, shares_of(target, params), grain, scope, share)

    def init(params: Params, key: chex.PRNGKey) -> Mask:
        del key
        like = jax.eval_shape(partial(competition, params), params, 0.0)  # its shapes and errors, without its work
        return jax.tree.map(_all_alive, params, like)

    def update(mask: Mask, params: Params, step: chex.Numeric, **signals: Any) -> Mask:
        return competition(params, _of_the_living(mask, score(params, step=step, **signals)), ramp(step))

    def prunes(struck: np.ndarray) -> bool:
        if not (_is_positive(target) and struck.size):
            return False
        return bool(np.any(jax.lax.map(lambda step: jnp.asarray(ramp(step)), struck, batch_size=4096) > 0))

    return Rule(init, update, prunes)


def drop_and_grow(
    target: Target,
    drop: Score = scores.magnitude,
    grow: Score = scores.random,
    fraction: chex.Numeric | Clock = 0.3,
    grain: select.Grain = select.weight,
    scope: select.Scope = select.leaf,
) -> Rule:
    """Returns the rule that starts at the target at random, and exchanges the worst weights for the most promising.

    Each time, of the living a share `fraction` with the lowest `drop` scores dies, and as many of all the dead (these
    among them) with the highest `grow` scores are born, as zeros. The number of the living never changes.

    Source: Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity, 2018 (SET,
    with random growth); Evci et al., Rigging the Lottery, 2020, Algorithm 1 (RigL, with growth by gradient).

    Args:
      target: the sparsities, as for `prune_to`.
      drop: `(params, **signals) -> scores` of the weights that live.
      grow: `(params, **signals) -> scores` of those that do not.
      fraction: the share of the living to exchange, in [0, 1]; or `step -> share`.
      grain: what lives or dies as one.
      scope: who competes.

    Returns:
      A `Rule`.

    Raises:
      ValueError: an argument is not what it is called, or `fraction` is out of its range; as
        `sparsejax.select.leafwise`, from `init` already.

    >>> rule, params = drop_and_grow(0.5, grow=scores.gradient, fraction=0.5), {"kernel": jnp.array([[3.0, 1.0, 0, 0]])}
    >>> mask, grads = {"kernel": jnp.array([[True, True, False, False]])}, {"kernel": jnp.array([[0.0, 1.0, 2.0, 3.0]])}
    >>> rule.update(mask, params, step=0, grads=grads, key=jax.random.key(0))["kernel"].tolist()
    [[True, False, False, True]]
    """

    for argument, score in (("drop", drop), ("grow", grow)):
        _checks.check_function(argument, score, "pass one of sparsejax.scores, such as scores.magnitude")
    if not callable(fraction):
        _numbers.check_share("fraction", fraction)
    select.check_parts(grain, scope)

    def init(params: Params, key: chex.PRNGKey) -> Mask:
        return select.leafwise(scores.random(params, key=key), shares_of(target, params), grain, scope)

    def update(mask: Mask, params: Params, step: chex.Numeric, *, key: chex.PRNGKey, **signals: Any) -> Mask:
        shares, to_drop, to_grow = shares_of(target, params), *jax.random.split(key)
        exchanged = jnp.asarray(fraction(step) if callable(fraction) else fraction, jnp.float32)
        fewer = jax.tree.map(lambda s: 0.0 if _is_zero(s) else 1 - (1 - s) * (1 - exchanged), shares)
        worth = _of_the_living(mask, drop(params, step=step, key=to_drop, **signals))
        stay = masks.combine(mask, select.leafwise(worth, fewer, grain, scope))
        promise = _of_the_others(stay, grow(params, step=step, key=to_grow, **signals))
        return select.leafwise(promise, shares, grain, scope)

    return Rule(init, update, lambda struck: _is_positive(target))


def _of_the_living(mask: Mask, scored: Scores) -> Scores:
    """Gives the dead a score below all others; what is not of a float dtype does not compete."""

    def below(alive: jax.Array, score: jax.Array) -> jax.Array:
        return jnp.where(alive, score, jnp.asarray(-jnp.inf, score.dtype)) if _is_float(score) else score

    return jax.tree.map(below, mask, scored)


def _of_the_others(stay: Mask, scored: Scores) -> Scores:
    """Gives those that stay a score above all others."""

    def above(stays: jax.Array, score: jax.Array) -> jax.Array:
        if not _is_float(score):
            return score
        most = jnp.asarray(jnp.finfo(score.dtype).max, score.dtype)
        return jnp.where(stays, jnp.asarray(jnp.inf, score.dtype), jnp.minimum(score, most))

    return jax.tree.map(above, stay, scored)


def _all_alive(param: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns the mask of a shape that keeps everything."""
    if not like.shape:
        return jnp.asarray(True)
    # Computed from the weights, though it says nothing about them: so it is sharded as they are.
    pooled = tuple(axis for axis, size in enumerate(like.shape) if size != param.shape[axis])
    return jnp.all((param == param) | (param != param), pooled, keepdims=True)


def _is_zero(share: chex.Numeric) -> bool:
    """Whether a leaf is left alone; a traced share may be anything."""
    return _numbers.as_scalar(share) == 0


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_positive(target: Target) -> bool:
    return callable(target) or any(not _is_zero(share) for share in jax.tree.leaves(target))
