"""Competitions: scores and sparsities in, a mask out; the best survive. Exact, and nothing is sorted or gathered.

A competition has two orthogonal parts. Its *grain* is what lives or dies as one: `weight`, `channel(axis)`,
`block(*size)`. Its *scope* is who competes with whom: a `leaf`, the entries at each place `per(*axes)`,
`groups_of(m, axis)` neighbours, or the whole `model`, as with `globally`. N:M sparsity is `groups_of(M)` at sparsity
`1 - N / M`, Wanda's rule is `per(-1)`, and every grain goes with every scope.

Of `n` grains, `round((1 - sparsity) n)` survive, a half rounded to even, but at least one while the sparsity is below
1. Python numbers are taken for the decimals they stand for; a traced one is the float32 it is. Of equal scores that of
the lower index survives (row-major; `globally`, that of the earlier leaf first). NaN never survives.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from sparsejax import quotas, tree
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
    "weight",
]


def leafwise(
    scores: Scores, sparsities: Sparsities, grain: Grain = weight, scope: Scope = leaf, progress: chex.Numeric = 1.0
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

    Returns:
      A mask: like each leaf or `(1, ..., C, ..., 1)` for channels, and `True` for leaves that are left alone.

    Raises:
      ValueError: `sparsities` is not like `scores`, a number is out of its range, a leaf that is not left alone is not
        of a float dtype, or grain or scope do not fit its shape; it names the leaf.

    >>> leafwise({"a": jnp.array([0.3, 0.1, 0.2, 0.4]), "b": jnp.ones(2)}, {"a": 0.5, "b": 0.0})["a"].tolist()
    [True, False, False, True]
    """
    tree.check_structure(sparsities, scores, "sparsities")
    if scope.joint:
        return globally(scores, sparsities, grain, progress)
    shares = tree.named(sparsities)
    entries = _enter(scores, shares, grain, scope)
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
        masks = best_of_each([entries[name].scores for name in whole], counts, range(len(whole)))
        found |= zip(whole, masks, strict=True)
    return _leave(scores, entries, found, grain)


def globally(
    scores: Scores, sparsity: chex.Numeric | Sparsities, grain: Grain = weight, progress: chex.Numeric = 1.0
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

    Returns:
      A mask, as from `leafwise`.

    Raises:
      ValueError: as for `leafwise`, or there are too many grains.

    >>> globally({"a": jnp.array([0.3, 0.1]), "b": jnp.array([0.2, 0.4])}, 0.5)["b"].tolist()
    [False, True]
    """
    number = jax.tree.structure(sparsity) == jax.tree.structure(0)
    tree_of_shares = jax.tree.map(lambda _: sparsity, scores) if number else sparsity
    tree.check_structure(tree_of_shares, scores, "sparsity")
    shares = tree.named(tree_of_shares)
    entries = _enter(scores, shares, grain, leaf)
    if not entries:
        return _leave(scores, entries, {}, grain)
    sizes = {name: entry.competitors for name, entry in entries.items()}
    if number:
        kept = quotas.kept(sparsity, sum(sizes.values()))
    elif all(quotas.is_static(shares[name]) for name in entries):  # exact in all, where every leaf may be off by a half
        pruned = sum(quotas.fraction(shares[name]) * size for name, size in sizes.items())
        kept = quotas.kept(pruned / sum(sizes.values()), sum(sizes.values()))
    else:
        kept = sum(quotas.kept(shares[name], size) for name, size in sizes.items())
    kept = quotas.advance(kept, sum(sizes.values()), progress)
    found = best_of_each([entry.scores for entry in entries.values()], kept[None], [0] * len(entries))
    return _leave(scores, entries, dict(zip(entries, found, strict=True)), grain)


class _Entry(NamedTuple):
    """The scores of a leaf's grains as its scope looks at them, and how they were shaped before."""

    scores: jax.Array
    axes: Shape
    shape: Shape

    @property
    def competitors(self) -> int:
        return math.prod(self.scores.shape[axis] for axis in self.axes)


def _enter(scores: Scores, shares: Mapping[str, chex.Numeric], grain: Grain, scope: Scope) -> dict[str, _Entry]:
    """Returns those leaves that are not left alone, pooled into grains and seen as their scope does."""
    entries = {}
    for name, scored in tree.named(scores).items():
        if quotas.is_static(shares[name]) and shares[name] == 0:
            continue
        tree.check_prunable(name, scored, "leave it alone with the sparsity 0.0")
        with _naming(name):
            pooled = grain.pool(jax.lax.stop_gradient(jnp.asarray(scored)))
            entries[name] = _Entry(*scope.view(pooled), pooled.shape)
    return entries


def _leave(scores: Scores, entries: Mapping[str, _Entry], found: Mapping[str, jax.Array], grain: Grain) -> Mask:
    """Returns the mask of all leaves from those of the entries."""
    leaves = tree.named(scores)
    masks = {name: jnp.asarray(True) for name in leaves}  # not one array for all: a buffer is donated only once
    for name, mask in found.items():
        masks[name] = grain.spread(mask.reshape(entries[name].shape), jnp.shape(leaves[name]))
    return tree.replace(scores, masks)


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
