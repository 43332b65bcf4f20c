"""Learning rates of a part of the parameters: by name, by step. Public through `sparsejax.transforms`."""

import re
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import optax

from sparsejax import tree
from sparsejax._numbers import check_not_negative
from sparsejax._types import Params


def scale_by_name(factors: Mapping[str, chex.Numeric]) -> optax.GradientTransformation:
    """Returns the transformation that multiplies the updates of some leaves: a learning rate for each layer.

    AutoPrune needs them for the auxiliary parameters of plain networks, whose first layers get weak gradients; networks
    with shortcuts do without, and so does an optimizer that normalises each entry (Adam). `balanced` makes factors.

    Args:
      factors: `{name: factor}`; a name is a leaf's, or else a regular expression searched in the names of the leaves.
        Factors are >= 0 and may be traced; leaves without one keep their updates.

    Returns:
      A stateless transformation.

    Raises:
      ValueError: a factor is negative; from `init` or `update`, a name matches no leaf, or two match the same.

    Source: Xiao, Wang, Rajasekaran, AutoPrune, NeurIPS 2019, section 4.4 ("layer-wise learning rate").

    >>> tx, aux = scale_by_name({"Conv": 10.0}), {"Conv_0/kernel": jnp.ones(1), "Dense_0/kernel": jnp.ones(1)}
    >>> {name: u.tolist() for name, u in tx.update(aux, tx.init(aux))[0].items()}
    {'Conv_0/kernel': [10.0], 'Dense_0/kernel': [1.0]}
    """
    for name, factor in factors.items():
        check_not_negative(f"factors[{name!r}]", factor)

    def init(params: Params) -> optax.EmptyState:
        _assign(factors, params)
        return optax.EmptyState()

    def update(updates: Params, state: optax.EmptyState, params: Params | None = None):
        del params
        leaves = tree.named(updates)
        assigned = _assign(factors, updates)
        scaled = {name: jnp.asarray(factor, leaves[name].dtype) * leaves[name] for name, factor in assigned.items()}
        return tree.replace(updates, scaled), state

    return optax.GradientTransformation(init, update)


def balanced(grads: Params) -> dict[str, jax.Array]:
    """Returns the factors for `scale_by_name` that make all leaves move equally fast under plain SGD.

    A leaf's factor is `g / RMS(its gradient)`, where `g` is the geometric mean of all RMS, so that the learning rate
    keeps its meaning. Take the mean of the gradients' squares over the first batches, or just the first batch, of the
    auxiliary parameters: `balanced(jax.grad(loss)(gated).aux)`.

    Args:
      grads: gradients, a tree of float leaves; concrete or traced.

    Returns:
      `{leaf name: float32 scalar}`; 1 for a leaf without any gradient.

    >>> {name: factor.item() for name, factor in balanced({"a": jnp.full(2, 0.5), "b": jnp.full(3, -8.0)}).items()}
    {'a': 4.0, 'b': 0.25}
    """
    sizes = {name: jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(g, jnp.float32)))) for name, g in tree.named(grads).items()}
    logs = {name: jnp.where(size > 0, jnp.log(jnp.where(size > 0, size, 1.0)), 0.0) for name, size in sizes.items()}
    present = sum(((size > 0).astype(jnp.float32) for size in sizes.values()), start=jnp.float32(0))
    middle = sum(logs.values(), start=jnp.float32(0)) / jnp.maximum(present, 1.0)
    return {name: jnp.where(size > 0, jnp.exp(middle - logs[name]), 1.0) for name, size in sizes.items()}


def scale_by_step(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that multiplies updates by a schedule of the extra argument `step`.

    Inside `autoprune`, `step` counts all calls, those in which the part rests included, so that a learning rate keeps
    to the schedule of the run; `optax.scale_by_schedule` would count the updates of the part.

    Args:
      schedule: `step -> factor`; for descent with a learning rate, `lambda step: -rate(step)`.

    Returns:
      A stateless transformation.

    Raises:
      ValueError: from `update`, no `step` is given.

    >>> tx = scale_by_step(lambda step: -0.1 * step)
    >>> tx.update(jnp.array([1.0, 2.0]), tx.init(None), step=jnp.float32(3.0))[0].tolist()
    [-0.3, -0.6]
    """

    def update(updates: Params, state: optax.EmptyState, params: Params | None = None, *, step=None, **extra_args):
        del params, extra_args
        if step is None:
            raise ValueError(
                "step=None, but scale_by_step needs it: put it inside autoprune, or pass update(..., step=n)"
            )
        factor = schedule(step)
        return jax.tree.map(lambda u: jnp.asarray(factor, u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _assign(factors: Mapping[str, chex.Numeric], params: Params) -> dict[str, chex.Numeric]:
    """Returns `{leaf name: factor}`."""
    names = list(tree.named(params))
    assigned: dict[str, chex.Numeric] = {}
    for pattern, factor in factors.items():
        matching = [pattern] if pattern in names else _search(pattern, names)
        if not matching:
            raise ValueError(f"factors has an entry {pattern!r} that matches no leaf; the leaves are {names}")
        if twice := [name for name in matching if name in assigned]:
            raise ValueError(f"factors has two entries, {pattern!r} and another, for {twice[0]!r}; narrow one of them")
        assigned |= dict.fromkeys(matching, factor)
    return assigned


def _search(pattern: str, names: list[str]) -> list[str]:
    try:
        return [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise ValueError(f"factors has an entry {pattern!r}, no leaf and no regular expression: {error}") from error
