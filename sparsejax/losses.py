"""Scalars to add to the task loss: how dense the learned bounds leave the network, and how far that is from a budget.

The losses of the paper are sums of these parts (`L` is the task loss, `d` a density, `B` a budget, all kept shares):

    unconstrained, Eq. 7     L + lam * density(bounds)                                            avg, Eq. 6
    weighted, Eq. 8, 9       L + lam * density(bounds, sizes)                                     wavg
    budgets, Eq. 10          L + lam_p * squared_budget(d_p, B_p) + lam_f * squared_budget(d_f, B_f)
    budgets, Eq. 11          L + lam_p * hinge_budget(d_p, B_p) + lam_f * hinge_budget(d_f, B_f)
    extremes, 3.4.4          L + squared_budget(d, B) + kappa * layer_gap(sparsities, low, high)

Retsinas et al., *Weight Pruning via Adaptive Sparsity Loss*, 2020. Eq. 8 as printed divides twice, by N and by the sum
of the weights; like the authors' code we divide once, so that a density is a share.
"""

import math
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp

from sparsejax._numbers import as_scalar
from sparsejax._types import Bounds


def density(
    bounds: Bounds,
    weights: Mapping[str, chex.Numeric] | None = None,
    kept: Mapping[str, chex.Numeric] | None = None,
) -> jax.Array:
    """Returns the share of weights that Gaussian layers keep under their bounds.

    `mean_i d_i` or `sum c_i d_i / sum c_i`, with `d_i = 1 - erf(b_i / sqrt(2))`, whose gradient is
    `dd_i/db_i = -sqrt(2 / pi) exp(-b_i^2 / 2)`.

    Args:
      bounds: `{name: b}`, relative bounds (in standard deviations), at least one.
      weights: `None` for the mean over layers (Eq. 6), or `{name: c}` for the weighted mean (Eq. 8): sizes for the
        density of the parameters, multiply-adds for that of the operations. Only the ratios matter; entries of
        leaves without a bound are ignored, so that the counts of a whole network can be passed as they are.
      kept: `None` for the Gaussian model, or `{name: share}` from `sparsejax.bounds.kept`. Then the value is the
        share that is really kept, and the gradient still the model's: a budget is met whatever the weights' shape.

    Returns:
      A scalar in [0, 1], of the bounds' dtype.

    Raises:
      ValueError: there is no bound, a bound has no weight or no kept share, a weight is negative, or all of them are 0.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 5, 6, 8, 9 and 19. `kept` is ours.

    >>> bounds = {"conv": jnp.float32(0.5), "dense": jnp.float32(1.5)}
    >>> density(bounds).item(), density(bounds, {"conv": 1000, "dense": 9000}).item()
    (0.3753, 0.18196)
    """
    if not bounds:
        raise ValueError("bounds is empty, so there is no density to compute; make it with sparsejax.bounds.init")
    shares = _shares(list(bounds), weights)
    # erfc, not 1 - erf: the density of a very sparse layer keeps its digits.
    model = {name: jax.scipy.special.erfc(jnp.asarray(b) / math.sqrt(2)) for name, b in bounds.items()}
    if kept is not None:
        _check_entries(kept, list(bounds), "kept", "make it with sparsejax.bounds.kept from the same bounds")
        model = {name: d + jax.lax.stop_gradient(kept[name] - d) for name, d in model.items()}
    parts = [shares[name] * d for name, d in model.items()]
    return sum(parts[1:], start=parts[0])


def squared_budget(density: chex.Numeric, budget: chex.Numeric) -> jax.Array:
    """Returns `(density - budget)^2`: hit the budget from either side.

    Args:
      density: kept share, scalar.
      budget: kept share wanted, in [0, 1]: a sparsity target `s` is a budget of `1 - s`. May be traced.

    Returns:
      A scalar, in squared shares: multiply it by about 10 next to a cross entropy.

    Raises:
      ValueError: `budget` is outside [0, 1].

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 10.

    >>> squared_budget(0.25, 0.75).item()
    0.25
    """
    _check_share(budget, "budget")
    return jnp.square(jnp.asarray(density) - budget)


def hinge_budget(density: chex.Numeric, budget: chex.Numeric) -> jax.Array:
    """Returns `max(density - budget, 0)`: do not exceed the budget; sparser is welcome.

    Args:
      density: kept share, scalar.
      budget: kept share allowed, in [0, 1]. May be traced.

    Returns:
      A scalar share; its gradient is 0 within the budget, at equality too.

    Raises:
      ValueError: `budget` is outside [0, 1].

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, Eq. 11.

    >>> hinge_budget(0.75, 0.5).item(), hinge_budget(0.25, 0.5).item()
    (0.25, 0.0)
    """
    _check_share(budget, "budget")
    return jax.nn.relu(jnp.asarray(density) - budget)


def layer_gap(sparsities: Mapping[str, chex.Numeric], low: float, high: float) -> jax.Array:
    """Returns the mean distance of the layers from "sparser than `high` or denser than `low`".

    `mean_i min(max(s_i - low, 0), max(high - s_i, 0))`: 0 for a layer outside the gap, and a pull of 1 / N towards
    the nearer edge inside it. Add it to a budget so that layers become very sparse or stay nearly dense.

    Args:
      sparsities: `{name: share of zeros}`, as `sparsejax.bounds.sparsities` gives it; at least one.
      low: the lower edge of the gap, in [0, 1].
      high: the upper edge, in [low, 1].

    Returns:
      A scalar share.

    Raises:
      ValueError: there is no layer, or not `0 <= low <= high <= 1`.

    Source: Retsinas et al., Weight Pruning via Adaptive Sparsity Loss, 2020, section 3.4.4, which states the wish
    only; this loss for it is ours.

    >>> layer_gap({"a": jnp.float32(0.25), "b": jnp.float32(0.75)}, low=0.5, high=1.0).item()
    0.125
    """
    _check_share(low, "low")
    _check_share(high, "high")
    if not isinstance(low, jax.core.Tracer) and not isinstance(high, jax.core.Tracer) and float(low) > float(high):
        raise ValueError(f"low={low} is above high={high}; the gap that layers must leave lies between low and high")
    if not sparsities:
        raise ValueError("sparsities is empty; make it with sparsejax.bounds.sparsities(bounds)")
    gaps = [jnp.minimum(jax.nn.relu(s - low), jax.nn.relu(high - s)) for s in map(jnp.asarray, sparsities.values())]
    return sum(gaps[1:], start=gaps[0]) / len(gaps)


def _shares(names: list[str], weights: Mapping[str, chex.Numeric] | None) -> dict[str, chex.Numeric]:
    """Returns what each layer contributes to the mean; the shares sum to 1."""
    if weights is None:
        return dict.fromkeys(names, 1 / len(names))
    _check_entries(weights, names, "weights", "pass the size or the multiply-adds of every leaf that has a bound")
    chosen = {name: weights[name] for name in names}
    if any(isinstance(c, jax.core.Tracer) for c in chosen.values()):
        total = sum(map(jnp.asarray, chosen.values()), start=jnp.zeros(()))
        return {name: c / total for name, c in chosen.items()}
    # Python numbers: counts beyond 2^24 are exact, and the shares are rounded once.
    counts = {name: float(c) for name, c in chosen.items()}
    if min(counts.values()) < 0 or not sum(counts.values()) > 0:
        raise ValueError(f"weights={counts} must be >= 0 and not all 0: they are each layer's part of the density")
    return {name: c / sum(counts.values()) for name, c in counts.items()}


def _check_entries(entries: Mapping[str, chex.Numeric], names: list[str], argument: str, way_out: str) -> None:
    missing = [name for name in names if name not in entries]
    if missing:
        raise ValueError(
            f"{argument} has no entry for the bounds of {missing}; its entries are {list(entries)}: {way_out}"
        )


def _check_share(value: chex.Numeric, argument: str) -> None:
    if not isinstance(value, jax.core.Tracer) and not 0 <= as_scalar(value) <= 1:
        raise ValueError(
            f"{argument}={value!s:.80} is outside [0, 1]; it is a share, not a percentage: 85% sparse keeps 0.15"
        )
