"""Competitions: scores and sparsities in, a mask out; the best survive. Exact, and nothing is sorted or gathered.

A competition has two orthogonal parts. Its *grain* is what lives or dies as one: `weight`, `channel(axis)`,
`block(*size)`. Its *scope* is who competes with whom: a `leaf`, the entries at each place `per(*axes)`,
`groups_of(m, axis)` neighbours, or the whole `model`, as with `globally`. N:M sparsity is `groups_of(M)` at sparsity
`1 - N / M`, Wanda's rule is `per(-1)`, and every grain goes with every scope. `then` holds two in a row.

Of `n` grains, `round((1 - sparsity) n)` survive, a half rounded to even, but at least one while the sparsity is below
1. Python numbers are taken for the decimals they stand for; a traced one is the float32 it is. Of equal scores that of
the lower index survives (row-major; `globally`, that of the earlier leaf first). NaN never survives.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from sparsejax import _checks, masks, quotas, tree
from sparsejax._types import Mask, Scores, Sparsities
from sparsejax.grains import Grain, Scope, Shape, block, channel, groups_of, leaf, model, per, weight
from sparsejax.search import best_along, best_of_each

__all__ = [
    "Grain",
    "Scope",
    "block",
    "channel",
    "globally",
    "groups_of",
    "leaf",
    "leafwise",
    "model",
    "per",
    "then",
    "weight",
]

Competition = Callable[..., Mask]
"""`(scores, ..., progress=, among=) -> mask`: `leafwise`, `globally`, or what `then` makes of two."""


def leafwise(
    scores: Scores,
    sparsities: Sparsities,
    grain: Grain = weight,
    scope: Scope = leaf,
    progress: chex.Numeric = 1.0,
    among: Mask | None = None,
) -> Mask:
    """Returns the mask of the best scores of every leaf, as many as its sparsity leaves.

    Args:
      scores: what to compare; float leaves. The larger is kept.
      sparsities: a tree like `scores`; the share of grains to prune in each competition of a leaf, in [0, 1]. Python's
        0.0 leaves a leaf alone. May be traced, and is then clipped to its range.
      grain: what lives or dies as one: `weight`, `channel(axis)`, `block(*size)`.
      scope: who competes: `leaf`, `per(*axes)`, `groups_of(m, axis)`, or the whole `model`.
      progress: the share of what `sparsities` prunes that is pruned now, in [0, 1]: 1 prunes exactly as many as they
        say, where the traced product of both would round to float32. May be traced.
      among: a mask of those that take part, all if left out. The others are pruned already: they do not survive, do not
        count in the score of a grain, and are among those that the sparsity prunes.

    Returns:
      A mask: like each leaf or `(1, ..., C, ..., 1)` for channels, and `True` for leaves that are left alone; with
      `among`, what both keep.

    Raises:
      ValueError: `sparsities` is not like `scores`, a number is out of its range, a leaf that is not left alone is not
        of a float dtype, grain or scope are none or do not fit its shape, or `among` is not a mask for `scores`; it
        names the leaf.

    >>> leafwise({"a": jnp.array([0.3, 0.1, 0.2, 0.4]), "b": jnp.ones(2)}, {"a": 0.5, "b": 0.0})["a"].tolist()
    [True, False, False, True]
    """
    check_parts(grain, scope)
    tree.check_structure(sparsities, scores, "sparsities")
    if scope.joint:
        return globally(scores, sparsities, grain, progress, among)
    shares = tree.named(sparsities)
    entries = _enter(scores, shares, grain, scope, among)
    kept = {}
    for name, entry in entries.items():
        with _naming(name):
            _check_competition(shares[name], entry.competitors, scope)
            kept[name] = quotas.advance(quotas.kept(shares[name], entry.competitors), entry.competitors, progress)
    found = {}
    for name, entry in entries.items():
        if len(entry.axes) < entry.scores.ndim:
            found[name] = best_along(entry.scores, kept[name], entry.axes)
    if whole := [name for name in entries if name not in found]:
        counts = jnp.stack([kept[name] for name in whole])
        best = best_of_each([entries[name].scores for name in whole], counts, tuple(range(len(whole))))
        found |= zip(whole, best, strict=True)
    return _leave(scores, entries, found, grain, among)


def globally(
    scores: Scores,
    sparsity: chex.Numeric | Sparsities,
    grain: Grain = weight,
    progress: chex.Numeric = 1.0,
    among: Mask | None = None,
) -> Mask:
    """Returns the mask of the best scores of the whole model, all leaves in one competition.

    Args:
      scores: what to compare; float leaves, fewer than 2^31 grains in all. The larger is kept; they should be on one
        scale (`sparsejax.scores.normalized`).
      sparsity: the share of all grains to prune, in [0, 1]; or a tree like `scores`, as `sparsejax.allocate` makes it:
        leaves at Python's 0.0 are left alone, and of the others as many grains are pruned in all as their sparsities
        say. May be traced.
      grain: what lives or dies as one: `weight`, `channel(axis)`, `block(*size)`.
      progress: the share of what `sparsity` prunes that is pruned now, in [0, 1]. May be traced.
      among: a mask of those that take part, as for `leafwise`.

    Returns:
      A mask, as from `leafwise`.

    Raises:
      ValueError: as for `leafwise`, or there are too many grains.

    >>> globally({"a": jnp.array([0.3, 0.1]), "b": jnp.array([0.2, 0.4])}, 0.5)["b"].tolist()
    [False, True]
    """
    check_parts(grain, leaf)
    number = jax.tree.structure(sparsity) == jax.tree.structure(0)
    tree_of_shares = jax.tree.map(lambda _: sparsity, scores) if number else sparsity
    tree.check_structure(tree_of_shares, scores, "sparsity")
    shares = tree.named(tree_of_shares)
    entries = _enter(scores, shares, grain, leaf, among)
    if not entries:
        return _leave(scores, entries, {}, grain, among)
    sizes = {name: entry.competitors for name, entry in entries.items()}
    if number:
        kept = quotas.kept(sparsity, sum(sizes.values()))
    elif all(quotas.is_static(shares[name]) for name in entries):  # exact in all, where every leaf may be off by a half
        pruned = sum(quotas.fraction(shares[name]) * size for name, size in sizes.items())
        kept = quotas.kept(pruned / sum(sizes.values()), sum(sizes.values()))
    else:
        kept = sum(quotas.kept(shares[name], size) for name, size in sizes.items())
    kept = quotas.advance(kept, sum(sizes.values()), progress)
    found = best_of_each([entry.scores for entry in entries.values()], kept[None], (0,) * len(entries))
    return _leave(scores, entries, dict(zip(entries, found, strict=True)), grain, among)


def then(first: Competition, second: Competition) -> Competition:
    """Returns two competitions in a row: in the second take part only those that survive the first.

    `second(scores, among=first(scores))`. Every sparsity is a share of all that there are, not of the survivors: what
    the second prunes includes what the first has, so that 90% means 90%. Where the first prunes more, nothing is left
    to the second. `then` is associative; a competition that prunes nothing changes nothing before or after another.

    Args:
      first: `(scores, progress=, among=) -> mask`: `leafwise` or `globally` with its other arguments bound, by
        `functools.partial`, or what `then` returns.
      second: the same; it may take further arguments.

    Returns:
      `(scores, ..., progress=1.0, among=None) -> mask`; what it is given besides goes to the second.

    Raises:
      ValueError: `first` or `second` is no function.

    >>> from functools import partial
    >>> two_of_four = partial(leafwise, sparsities=0.5, scope=groups_of(4, axis=-1))
    >>> both = then(two_of_four, partial(globally, sparsity=5 / 8))
    >>> both(jnp.array([[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 3.0, 4.0]])).tolist()
    [[True, True, False, False], [False, False, False, True]]
    """

    for argument, competition in (("first", first), ("second", second)):
        _checks.check_function(argument, competition, "pass functools.partial(leafwise, sparsities=...), say")

    def both(scores: Scores, *args: Any, progress: chex.Numeric = 1.0, among: Mask | None = None, **options: Any):
        survivors = first(scores, progress=progress, among=among)
        return second(scores, *args, progress=progress, among=survivors, **options)

    return both


def check_parts(grain: Any, scope: Any) -> None:
    """Raises `ValueError` unless the two parts of a competition are what they are called."""
    _checks.check_kind("grain", grain, Grain, "pass sparsejax.select.weight, channel(axis) or block(*size)")
    _checks.check_kind("scope", scope, Scope, "pass sparsejax.select.leaf, per(*axes), groups_of(m, axis) or model")


class _Entry(NamedTuple):
    """The scores of a leaf's grains as its scope looks at them, and how they were shaped before."""

    scores: jax.Array
    axes: Shape
    shape: Shape

    @property
    def competitors(self) -> int:
        return math.prod(self.scores.shape[axis] for axis in self.axes)


def _enter(
    scores: Scores, shares: Mapping[str, chex.Numeric], grain: Grain, scope: Scope, among: Mask | None
) -> dict[str, _Entry]:
    """Returns those leaves that are not left alone, pooled into grains and seen as their scope does."""
    entries, partakers = {}, {}
    if among is not None:
        masks.check(among, scores)
        partakers = tree.named(among)
    for name, scored in tree.named(scores).items():
        if quotas.is_static(shares[name]) and shares[name] == 0:
            continue
        tree.check_prunable(name, scored, "leave it alone with the sparsity 0.0")
        with _naming(name):
            scored = jax.lax.stop_gradient(jnp.asarray(scored))
            pooled = _pool_of(grain, scored, partakers[name]) if partakers else grain.pool(scored)
            entries[name] = _Entry(*scope.view(pooled), pooled.shape)
    return entries


def _pool_of(grain: Grain, scored: jax.Array, taking_part: jax.Array) -> jax.Array:
    """Returns the mean scores of those weights of each grain that take part, and NaN where none does."""
    share = grain.pool(jnp.where(taking_part, jnp.ones_like(scored), jnp.zeros_like(scored)))
    total = grain.pool(jnp.where(taking_part, scored, jnp.zeros_like(scored)))
    some = share > 0
    return jnp.where(some, total / jnp.where(some, share, jnp.ones_like(share)), jnp.asarray(jnp.nan, total.dtype))


def _leave(
    scores: Scores,
    entries: Mapping[str, _Entry],
    found: Mapping[str, jax.Array],
    grain: Grain,
    among: Mask | None,
) -> Mask:
    """Returns the mask of all leaves from those of the entries."""
    leaves = tree.named(scores)
    kept = {name: jnp.asarray(True) for name in leaves}  # not one array for all: a buffer is donated only once
    for name, mask in found.items():
        kept[name] = grain.spread(mask.reshape(entries[name].shape), jnp.shape(leaves[name]))
    mask = tree.replace(scores, kept)
    return mask if among is None else masks.combine(mask, among)


@contextlib.contextmanager
def _naming(name: str):
    try:
        yield
    except ValueError as error:
        raise ValueError(f"leaf {name!r}: {error}") from error


def _check_competition(share: chex.Numeric, competitors: int, scope: Scope) -> None:
    if competitors < 2:
        raise ValueError(
            "every grain competes with itself alone, so that none can lose: leave the leaf alone with the sparsity "
            "0.0, or choose another grain or scope"
        )
    if scope.whole and quotas.is_static(share) and (lost := quotas.fraction(share) * competitors).denominator > 1:
        raise ValueError(
            f"sparsity={share} would prune {float(lost):g} of each group of {competitors}; "
            f"give a multiple of 1/{competitors}, the same for all leaves (sparsejax.allocate.uniform)"
        )
