"""AutoPrune's gates: a weight is in the network while its auxiliary parameter is positive.

    gated = init(key, params)                   # Gated(weights, aux); aux is {leaf name: one number a weight}
    params = apply(gated)                       # what the network runs with, inside the loss
    tx = sparsejax.autoprune(weights_tx, aux_tx)   # trains the two parts in turn
    sparse = finalize(gated)                    # real zeros, for export

Gates that one unit shares along an axis are `sparsejax.unit_gates`; where to stop is `sparsejax.targets`.

Xiao, Wang, Rajasekaran, *AutoPrune: Automatic Network Pruning by Regularizing Auxiliary Parameters*, NeurIPS 2019.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from sparsejax import _checks, ops, surrogates, tree
from sparsejax import masks as masking
from sparsejax._types import Mask, Params, Where, wide_dtype

__all__ = ["Gated", "apply", "finalize", "from_magnitudes", "init", "masks"]

Surrogate = Callable[[jax.Array], jax.Array]
"""`m -> h'(m) >= 0`, one of `sparsejax.surrogates`."""


class Gated(NamedTuple):
    """A tree of weights, and the auxiliary parameters that gate them; a pytree to differentiate, optimise and save.

    >>> Gated({"kernel": jnp.ones(2)}, {"kernel": jnp.array([0.1, -0.1])}).aux["kernel"].tolist()
    [0.1, -0.1]
    """

    weights: Params
    """The tree of parameters, dense: a pruned weight keeps its value."""
    aux: dict[str, jax.Array]
    """Auxiliary parameters, float32 or wider, in a flat dict: one a weight, keyed by leaf name; or one a unit, keyed by
    the name of its group."""


def init(
    key: chex.PRNGKey, params: Params, where: Where = None, mean: chex.Numeric = 0.1, std: chex.Numeric = 0.05
) -> Gated:
    """Returns the parameters with Gaussian auxiliary parameters, one a weight.

    `m ~ Gaussian(mean, std)`; with the paper's numbers 2.3 per cent of the weights start pruned.

    Args:
      key: a PRNG key.
      params: the tree of parameters, trained or fresh.
      where: which leaves, see `sparsejax.tree.select`.
      mean: of the auxiliary parameters, > 0, so that more than half of the weights start in the network.
      std: their standard deviation, >= 0.

    Returns:
      A `Gated`; auxiliary parameters are float32, or float64 for weights of that dtype.

    Raises:
      ValueError: no leaf is selected; a selected leaf is empty, holds NaN or is not of a float dtype; `mean` or `std`
        is out of range.

    Source: Xiao et al., AutoPrune, 2019, section 4.6; its 0.05 is read as the standard deviation.

    >>> gated = init(jax.random.key(0), {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    >>> {name: m.shape for name, m in gated.aux.items()}
    {'kernel': (2, 3)}
    """
    leaves = tree.named(params)
    names = tree.select(params, where)
    for name in names:
        tree.check_no_nan(name, leaves[name])
    return Gated(params, gaussian(key, {name: leaves[name] for name in names}, mean, std))


def from_magnitudes(params: Params, where: Where = None, mean: float = 0.1) -> Gated:
    """Returns trained parameters with auxiliary parameters in proportion to their weights' magnitudes.

    `m = mean |w| / E|w|`, with one `E|w|` over all selected leaves. The penalty, which pulls all alike, then closes the
    gates of small weights first, as global magnitude pruning does, and gradients only have to tell where that is wrong.
    The paper does not say how auxiliary parameters of a trained network start; with `init` the first gates to close are
    drawn at random.

    Args:
      params: the tree of trained parameters.
      where: which leaves, see `sparsejax.tree.select`.
      mean: of all auxiliary parameters, > 0.

    Returns:
      A `Gated`; auxiliary parameters are float32, or float64 for weights of that dtype. Zeros start pruned.

    Raises:
      ValueError: no leaf is selected; a selected leaf is empty, holds NaN or is not of a float dtype; all selected
        weights are zeros; `mean` is out of range.

    Source: ours, for Xiao et al., AutoPrune, 2019, section 4.6.

    >>> gated = from_magnitudes({"a": jnp.array([[1.0, -3.0]]), "b": jnp.array([[0.0, 4.0]])})
    >>> {name: m.round(3).tolist() for name, m in gated.aux.items()}
    {'a': [[0.05, 0.15]], 'b': [[0.0, 0.2]]}
    """
    _check_mean(mean)
    leaves = tree.named(params)
    sizes = {name: _magnitudes(name, leaves[name]) for name in tree.select(params, where)}
    average = sum(jnp.sum(size) for size in sizes.values()) / sum(size.size for size in sizes.values())
    if not _is_traced(average) and average == 0:
        raise ValueError(f"params has only zeros in {sorted(sizes)}, so that every weight would start out pruned")
    return Gated(params, {name: mean * size / average.astype(size.dtype) for name, size in sizes.items()})


def apply(gated: Gated, surrogate: Surrogate = surrogates.softplus, power: float = 0.0) -> Params:
    """Returns the parameters that the network runs with, `w 1[m > 0]`; differentiable in both parts.

    Backward, for the gradient `g` of the result: `g 1[m > 0]` to a weight and `g sign(w) |w|^power h'(m)` to its
    auxiliary parameter, which tells of the damage that pruning it does; `sparsejax.autoprune` adds the pull down.

    Args:
      gated: weights, and auxiliary parameters keyed by leaf name; leaves without any are passed on as they are.
      surrogate: `m -> h'(m)`, one of `sparsejax.surrogates`; give `sparsejax.autoprune` the same.
      power: 0 is the paper's rule, 1 the exact chain rule (the regular update of binary networks), -1 boosts small
        weights.

    Returns:
      A tree like `gated.weights`, same dtypes.

    Raises:
      ValueError: `gated` is no `Gated`, or the name of an auxiliary parameter no leaf to which its shape broadcasts.

    Source: Xiao et al., AutoPrune, 2019, Eq. 7-9.

    >>> gated = Gated({"kernel": jnp.array([[0.5, -0.2]])}, {"kernel": jnp.array([[0.1, -0.1]])})
    >>> apply(gated)["kernel"].tolist()
    [[0.5, 0.0]]
    >>> jax.grad(lambda gated: apply(gated, surrogates.linear)["kernel"].sum())(gated).aux["kernel"].tolist()
    [[1.0, -1.0]]
    """
    leaves = _leaves(gated)
    return tree.replace(
        gated.weights, {name: ops.gate(leaves[name], m, surrogate, power) for name, m in gated.aux.items()}
    )


def masks(gated: Gated) -> Mask:
    """Returns the mask of the weights that are in the network, `m > 0`.

    Args:
      gated: weights, and auxiliary parameters keyed by leaf name.

    Returns:
      A mask for `gated.weights`; the scalar `True` in leaves without auxiliary parameters. A NaN is pruned.

    Raises:
      ValueError: `gated` is no `Gated`, or the name of an auxiliary parameter no leaf to which its shape broadcasts.

    >>> gated = Gated({"kernel": jnp.ones(3), "bias": jnp.ones(1)}, {"kernel": jnp.array([0.1, 0.0, -0.1])})
    >>> masks(gated)["kernel"].tolist(), masks(gated)["bias"].tolist()
    ([True, False, False], True)
    """
    leaves = _leaves(gated)
    mask = tree.replace(gated.weights, {name: jnp.asarray(True) for name in leaves})
    mask = tree.replace(mask, {name: m > 0 for name, m in gated.aux.items()})
    masking.check(mask, gated.weights)
    return mask


def finalize(gated: Gated) -> Params:
    """Returns the parameters with real zeros, for export: `where(m > 0, w, 0)`.

    Args:
      gated: weights, and auxiliary parameters keyed by leaf name.

    Returns:
      A tree like `gated.weights`, same dtypes.

    Raises:
      ValueError: as `masks` does; or a weight or an auxiliary parameter is NaN (not seen inside `jit`): such a run has
        diverged, and what it pruned means nothing.

    >>> gated = Gated({"kernel": jnp.array([0.5, -0.2])}, {"kernel": jnp.array([0.1, -0.1])})
    >>> finalize(gated)["kernel"].tolist()
    [0.5, 0.0]
    """
    check_finite(gated)
    return masking.apply(masks(gated), gated.weights)


def gaussian(
    key: chex.PRNGKey, shapes: Mapping[str, Any], mean: chex.Numeric, std: chex.Numeric
) -> dict[str, jax.Array]:
    """Returns Gaussian auxiliary parameters for a flat dict of arrays or shapes, float32 or wider."""
    _check_mean(mean)
    if not (_is_traced(std) or 0 <= std < math.inf):
        raise ValueError(f"std={std} must be >= 0 and finite; the paper has 0.05")
    shaped = {name: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for name, leaf in shapes.items()}
    drawn = tree.draw(key, {name: shape.update(dtype=wide_dtype(shape)) for name, shape in shaped.items()})
    return {name: jnp.asarray(mean, z.dtype) + jnp.asarray(std, z.dtype) * z for name, z in drawn.items()}


def _check_mean(mean: chex.Numeric) -> None:
    if not (_is_traced(mean) or 0 < mean < math.inf):
        raise ValueError(f"mean={mean} must be > 0 and finite, or most of the network would start out pruned")


def _magnitudes(name: str, leaf: chex.Array) -> jax.Array:
    tree.check_no_nan(name, leaf)
    return jnp.abs(jnp.asarray(leaf, wide_dtype(leaf)))


def check_finite(gated: Gated) -> None:
    """Raises `ValueError` if a weight or an auxiliary parameter is NaN; says nothing about traced ones."""
    check_gated(gated)
    for name, leaf in tree.named(gated.weights).items():
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            tree.check_no_nan(name, leaf)
    for name, m in gated.aux.items():
        tree.check_no_nan(f"aux[{name!r}]", m)


def check_gated(gated: Any, argument: str = "gated") -> None:
    """Raises `ValueError` unless a value is a `Gated`."""
    _checks.check_kind(argument, gated, Gated, "make one of parameters with sparsejax.gates.init")


def _leaves(gated: Gated) -> dict[str, Any]:
    check_gated(gated)
    tree.check_names(gated.aux, gated.weights, "aux")
    return tree.named(gated.weights)


def _is_traced(value: chex.Numeric) -> bool:
    return isinstance(value, jax.core.Tracer)
