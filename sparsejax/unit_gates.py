"""Gates of units: a channel, neuron or head is in the network while its auxiliary parameter is positive.

Units are described by `sparsejax.groups`; auxiliary parameters are keyed by group name, one a unit. The gate acts in
one of two places:

    gate(z, m)             in the model's forward pass, on the units' activations; `m = gated.aux["hidden"]`
    apply(gated, groups)   on the parameters that read the activations, for models that know nothing of gates

Both compute the same network, and the same derivative by a unit's gate: a unit acts through what reads it, whatever
norm or activation function comes before. Gates on the parameters that compute a unit are not as good: a batch norm
shifts their zeros away, and a ReLU at 0 has no derivative, so that a pruned unit would never come back.

A group never loses its last unit: where no auxiliary parameter is positive, the unit of the largest one stays.

Xiao, Wang, Rajasekaran, *AutoPrune*, NeurIPS 2019, prunes neurons without saying how; this is our reading.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from sparsejax import gates, ops, surrogates, tree
from sparsejax import groups as grouping
from sparsejax import masks as masking
from sparsejax._types import Mask, Params, wide_dtype
from sparsejax.gates import Gated, Surrogate
from sparsejax.groups import Groups, Member

__all__ = ["apply", "finalize", "gate", "init", "kept", "masks"]


def init(
    key: chex.PRNGKey, params: Params, groups: Groups, mean: chex.Numeric = 0.1, std: chex.Numeric = 0.05
) -> Gated:
    """Returns the parameters with Gaussian auxiliary parameters, one a unit.

    Args:
      key: a PRNG key.
      params: the tree of parameters, trained or fresh.
      groups: `{name: group}`, see `sparsejax.groups`.
      mean: of the auxiliary parameters, > 0.
      std: their standard deviation, >= 0.

    Returns:
      A `Gated`; `aux` is `{group name: (size,)}`, float32.

    Raises:
      ValueError: the groups do not fit the parameters; `mean` or `std` is out of range.

    >>> groups = {"hidden": grouping.Group(2, (grouping.Member("kernel", 0, reads=True),))}
    >>> init(jax.random.key(0), {"kernel": jnp.ones((2, 3))}, groups).aux["hidden"].shape
    (2,)
    """
    grouping.check(groups, params)
    shapes = {name: jax.ShapeDtypeStruct((group.size,), jnp.float32) for name, group in groups.items()}
    return Gated(params, gates.gaussian(key, shapes, mean, std))


def kept(m: chex.Array) -> jax.Array:
    """Returns which units of a group are in the network: those with `m > 0`, and always that with the largest `m`.

    Args:
      m: the auxiliary parameters of one group, (size,).

    Returns:
      A bool array (size,) with at least one `True`; of equal largest ones the first. A NaN is the smallest of all.

    Raises:
      ValueError: `m` is not a vector.

    >>> kept(jnp.array([-0.2, -0.1, -0.3])).tolist()
    [False, True, False]
    """
    return (jnp.asarray(m) > 0) | last(m)


def last(m: chex.Array) -> jax.Array:
    """Returns the unit that a group loses last, as a bool array (size,): the first of the largest `m`."""
    m = jnp.asarray(m)
    if m.ndim != 1 or not m.size:
        raise ValueError(f"m has shape {m.shape}; give the auxiliary parameters of one group, a vector; vmap for more")
    return jnp.arange(m.size) == jnp.argmax(jnp.where(jnp.isnan(m), -jnp.inf, m))


def gate(
    z: chex.Array,
    m: chex.Array,
    surrogate: Surrogate = surrogates.softplus,
    power: float = 0.0,
    axis: int = -1,
) -> jax.Array:
    """Returns the activations of the units that are in the network, and zeros for the others.

    Backward, for the gradient `g` of the result: `g` to the activations of units that are kept, and to unit `c`

        sum(g_c z_c) / RMS(z_c)  RMS(z_c)^power  h'(m_c),

    sums and RMS over all axes but that of the units, batch included. It goes after a norm and an activation function.

    Args:
      z: activations, any shape, a float dtype.
      m: auxiliary parameters of the units, (size,).
      surrogate: `m -> h'(m)`, one of `sparsejax.surrogates`.
      power: 0 is the paper's rule, free of the units' sizes; 1 the exact chain rule; -1 boosts small units, with RMS
        floored at 1e-3. `sparsejax.ops.gate` is the same of a single weight.
      axis: the axis of `z` that holds the units.

    Returns:
      An array of the shape and dtype of `z`.

    Raises:
      ValueError: `z` has not as many units along `axis` as `m`; `z` or `m` is not of a float dtype.

    >>> z, m = jnp.array([[3.0, 1.0], [4.0, 1.0]]), jnp.array([0.1, -0.1])
    >>> gate(z, m).tolist()
    [[3.0, 0.0], [4.0, 0.0]]
    >>> jax.grad(lambda m: gate(z, m, surrogates.linear).sum())(m).tolist()
    [1.9799, 2.0]
    """
    z, alive = jnp.asarray(z), kept(m)
    if not -z.ndim <= axis < z.ndim or z.shape[axis] != alive.size:
        raise ValueError(f"z has shape {z.shape}, which has not the {alive.size} units of m along axis={axis}")
    member = Member("", axis)
    if power == 1:
        size = jnp.ones(alive.shape, wide_dtype(z))
    else:
        others = tuple(i for i in range(z.ndim) if i != axis % z.ndim)
        size = jnp.sqrt(jnp.mean(_wide_square(z), others))
    slope = _slope(size, jax.lax.stop_gradient(m), surrogate, power)
    return ops.gate_units(z, *(grouping.spread(part, member, z, 0) for part in (m, alive, slope)))


def apply(
    gated: Gated,
    groups: Groups,
    surrogate: Surrogate = surrogates.softplus,
    power: float = 0.0,
    of: Callable[[Member], bool] = lambda member: member.reads,
) -> Params:
    """Returns the parameters that the network runs with: those that read a unit are 0 where the unit is not kept.

    Backward, for the gradient `G` of the result, and all the entries `w_c` of the gated leaves that belong to unit `c`:
    `G` to the entries of kept units, and to the auxiliary parameter

        sum(G_c w_c) / |w_c|  |w_c|^power  h'(m_c),

    which for `power=1` is what `gate` gives, and for others differs by how the size of a unit is measured.

    Args:
      gated: weights, and auxiliary parameters keyed by group name; groups without any are left alone.
      groups: `{name: group}`, see `sparsejax.groups`.
      surrogate: `m -> h'(m)`, one of `sparsejax.surrogates`; give `sparsejax.autoprune` the same.
      power: 0 is the paper's rule, 1 the exact chain rule, -1 boosts small units, with |w_c| floored at 1e-3.
      of: which members the gate acts on; those that read the units, unless told otherwise. Every path through a unit
        must pass exactly one of them: two gates in a row would keep a pruned unit from feeling that it is missed.

    Returns:
      A tree like `gated.weights`, same dtypes.

    Raises:
      ValueError: the groups do not fit the weights; an auxiliary parameter has no group, or its group no member to
        gate.

    >>> groups = {"hidden": grouping.Group(2, (grouping.Member("kernel", 0, reads=True),))}
    >>> gated = Gated({"kernel": jnp.array([[3.0, 4.0], [1.0, 2.0]])}, {"hidden": jnp.array([0.1, -0.1])})
    >>> apply(gated, groups)["kernel"].tolist()
    [[3.0, 4.0], [0.0, 0.0]]
    """
    alive = _kept_of(gated, groups)
    leaves = tree.named(gated.weights)
    gated_leaves = {member.leaf for group in groups.values() for member in group.members if of(member)}
    squares = {name: _wide_square(leaves[name]) for name in gated_leaves}
    sizes = grouping.pull(groups, tree.replace(gated.weights, squares), of)
    for name, m in gated.aux.items():
        members = [member for member in groups[name].members if of(member)]
        if not members:
            raise ValueError(
                f"group {name!r} has no member to gate; mark those that read its units with reads=True, or choose "
                f"others with `of`, or gate the activations with sparsejax.unit_gates.gate"
            )
        slope = _slope(jnp.sqrt(sizes[name]), jax.lax.stop_gradient(m), surrogate, power)
        for member in members:
            parts = ((m, 1.0), (alive[name], True), (slope, 0.0))
            w = leaves[member.leaf]
            leaves[member.leaf] = ops.gate_units(w, *(grouping.spread(x, member, w, other) for x, other in parts))
    return tree.replace(gated.weights, leaves)


def masks(gated: Gated, groups: Groups) -> Mask:
    """Returns the mask that removes pruned units from every leaf they are in, what computes them as well.

    Args:
      gated: weights, and auxiliary parameters keyed by group name.
      groups: `{name: group}`, see `sparsejax.groups`.

    Returns:
      A mask for `gated.weights`, from which parameters and multiply-adds can be counted.

    Raises:
      ValueError: the groups do not fit the weights; an auxiliary parameter has no group, or not its size.

    >>> groups = {"hidden": grouping.Group(2, (grouping.Member("bias", 0), grouping.Member("kernel", 0, reads=True)))}
    >>> gated = Gated({"bias": jnp.ones(2), "kernel": jnp.ones((2, 3))}, {"hidden": jnp.array([0.1, -0.1])})
    >>> masks(gated, groups)["bias"].tolist(), masks(gated, groups)["kernel"].tolist()
    ([True, False], [[True], [False]])
    """
    return grouping.push(groups, _kept_of(gated, groups), gated.weights)


def finalize(gated: Gated, groups: Groups) -> Params:
    """Returns the parameters with real zeros in every leaf that a pruned unit is in, for export.

    Args:
      gated: weights, and auxiliary parameters keyed by group name.
      groups: `{name: group}`, see `sparsejax.groups`.

    Returns:
      A tree like `gated.weights`, same dtypes; it computes what `apply` computes.

    Raises:
      ValueError: as `masks` does; or a weight or an auxiliary parameter is NaN (not seen inside `jit`).

    >>> groups = {"hidden": grouping.Group(2, (grouping.Member("bias", 0),))}
    >>> finalize(Gated({"bias": jnp.array([2.0, 3.0])}, {"hidden": jnp.array([0.1, -0.1])}), groups)["bias"].tolist()
    [2.0, 0.0]
    """
    gates.check_finite(gated)
    return masking.apply(masks(gated, groups), gated.weights)


def _kept_of(gated: Gated, groups: Groups) -> dict[str, jax.Array]:
    gates.check_gated(gated)
    alive = {}
    for name, m in gated.aux.items():
        group = grouping.lookup(groups, name, "aux")
        if jnp.shape(m) != (group.size,):
            raise ValueError(
                f"aux[{name!r}] has shape {jnp.shape(m)}, but its group has {group.size} units; make it with "
                f"sparsejax.unit_gates.init of the same groups"
            )
        alive[name] = kept(m)
    return alive


def _wide_square(x: chex.Array) -> jax.Array:
    """Returns squares to measure with, in float32 or wider; no gradient flows through them."""
    x = jax.lax.stop_gradient(jnp.asarray(x))
    return jax.lax.square(x.astype(wide_dtype(x)))


def _slope(size: jax.Array, m: jax.Array, surrogate: Surrogate, power: float) -> jax.Array:
    """Returns `h'(m) size^power / size`, and 0 for a unit of size 0, of which no direction is known."""
    present = size > 0
    safe = jnp.where(present, size, jnp.ones_like(size))
    scale = (jnp.maximum(safe, 1e-3) if power < 0 else safe) ** power / safe
    return surrogate(m).astype(size.dtype) * jnp.where(present, scale, jnp.zeros_like(scale))
