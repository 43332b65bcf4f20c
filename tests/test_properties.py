"""Laws of masks and of competitions, on trees that hypothesis draws: of the same shapes, so that they compile once.

A competition is judged pair by pair: nobody who lost is better than anyone who survived. `tests/test_select.py` holds
the masks against a sort instead.
"""

import functools
import itertools
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsejax import masks, rules, scores, select

SHAPES = {"a": (6, 8), "b": (3, 5), "c": (7,)}
# Few values, so that most scores have equals; -0.0 equals 0.0.
VALUES = [-np.inf, -2.0, -0.5, -0.0, 0.0, 0.25, 0.5, 3.0, np.inf]

drawn = functools.partial(settings, derandomize=True, database=None, deadline=None)
EIGHTHS = [k / 8 for k in range(9)]
shares = st.one_of(st.sampled_from(EIGHTHS), st.floats(0, 1, width=32))  # of eighths, some halves are to be rounded


def arrays(shape, values):
    return hnp.arrays(np.float32, shape, elements=st.sampled_from(np.asarray(values, np.float32)))


def trees(values=(*VALUES, np.nan)):
    return st.fixed_dictionaries({name: arrays(shape, values) for name, shape in SHAPES.items()})


def mask_trees():
    """Whole masks, masks of rows or of columns, and the scalar of an untouched leaf: any that broadcasts."""
    kinds = {"a": [(6, 8), (6, 1), (1, 8), ()], "b": [(3, 5), (1, 5), ()], "c": [(7,), ()]}
    return st.fixed_dictionaries({n: st.one_of(*(hnp.arrays(bool, s) for s in sizes)) for n, sizes in kinds.items()})


def whole_masks():
    return st.fixed_dictionaries({name: hnp.arrays(bool, shape) for name, shape in SHAPES.items()})


apply, combine = jax.jit(masks.apply), jax.jit(masks.combine)
leafwise = jax.jit(select.leafwise, static_argnames=("grain", "scope"))
globally = jax.jit(select.globally)


def everywhere(share):
    """The same share for every leaf, traced."""
    return dict.fromkeys(SHAPES, jnp.float32(share))


def wanted(share, competitors):
    """How many survive of so many, by the rule of `sparsejax.select`, in exact arithmetic."""
    kept = round((1 - Fraction(float(np.float32(share)))) * competitors)
    return kept if share == 1 else max(kept, 1)


def beats(scored):
    """Whether a score is before another: the larger, and of equal ones that of the lower index; (n, n)."""
    place = np.arange(scored.size)
    return (scored[:, None] > scored) | ((scored[:, None] == scored) & (place[:, None] < place))


def fair(scored, mask, kept):
    """Whether the best survived: as many as should, no NaN, and of every pair the better one first."""
    scored, mask = np.ravel(scored), np.ravel(mask)
    unfair = beats(scored) & ~mask[:, None] & mask
    return not unfair.any() and not mask[np.isnan(scored)].any() and mask.sum() == min(kept, (~np.isnan(scored)).sum())


def same_bits(a, b):
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x: np.asarray(x).view(np.uint32), tree) for tree in (a, b)))


@drawn(max_examples=60)
@given(whole_masks(), trees())
def test_applying_twice_is_applying_once(mask, params):
    once = apply(mask, params)
    same_bits(apply(mask, once), once)
    for name, own in mask.items():
        zeroed, passed = np.asarray(once[name])[~own], np.asarray(once[name])[own]
        assert not zeroed.view(np.uint32).any()
        same_bits(passed, params[name][own])


@drawn(max_examples=60)
@given(whole_masks(), whole_masks(), trees())
def test_a_combined_mask_is_one_after_the_other_in_any_order(first, second, params):
    both = combine(first, second)
    same_bits(apply(both, params), apply(first, apply(second, params)))
    chex.assert_trees_all_equal(both, combine(second, first), combine(both, first))


@drawn(max_examples=30)
@given(mask_trees(), mask_trees())
def test_masks_of_any_shape_that_broadcasts_combine(first, second):
    params = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    both = masks.combine(first, second)
    masks.check(both, params)
    chex.assert_trees_all_equal(both, {name: first[name] & second[name] for name in SHAPES})


@drawn(max_examples=30)
@given(mask_trees())
def test_packed_masks_come_back_bit_for_bit(mask):
    packed = masks.pack(mask)
    restored = masks.unpack(packed)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, jax.tree.map(jnp.asarray, mask))
    chex.assert_trees_all_equal(restored, mask)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(packed)) == sum(-(-m.size // 8) for m in mask.values())


@drawn(max_examples=60)
@given(whole_masks(), trees(), trees(values=[-1.5, 0.0, 0.1, 3.0]))
def test_after_projected_updates_zeros_are_zeros_whatever_they_were(mask, updates, params):
    after = optax.apply_updates(params, masks.project(mask, updates, params))
    for name, own in mask.items():
        assert not np.asarray(after[name])[~own].view(np.uint32).any()
        np.testing.assert_array_equal(np.asarray(after[name])[own], (params[name] + updates[name])[own])


@drawn(max_examples=80)
@given(trees(), shares)
def test_every_leaf_keeps_its_best(scored, share):
    mask = leafwise(scored, everywhere(share))
    for name, leaf in scored.items():
        assert fair(leaf, mask[name], wanted(share, leaf.size)), name


@drawn(max_examples=80)
@given(trees(), shares)
def test_the_model_keeps_its_best(scored, share):
    mask = globally(scored, jnp.float32(share))
    flat, flags = (np.concatenate([np.ravel(tree[name]) for name in SHAPES]) for tree in (scored, mask))
    assert fair(flat, flags, wanted(share, flat.size))


@drawn(max_examples=60)
@given(trees(), shares)
def test_those_who_compete_apart_are_judged_apart(scored, share):
    leaf, column, group = scored["a"], select.per(-1), select.groups_of(4, axis=-1)
    by_column = np.asarray(leafwise(leaf, jnp.float32(share), scope=column))
    assert all(fair(leaf[:, i], by_column[:, i], wanted(share, 6)) for i in range(8))
    by_group = np.asarray(leafwise(leaf, jnp.float32(share), scope=group)).reshape(12, 4)
    assert all(fair(own, kept, wanted(share, 4)) for own, kept in zip(leaf.reshape(12, 4), by_group, strict=True))


BLOCK = select.block(2, 4)


@drawn(max_examples=60)
@given(arrays((6, 8), [-1.0, 0.0, 0.5, 2.0]), shares)
def test_a_block_lives_or_dies_as_one_by_its_mean(leaf, share):
    tiles = np.asarray(leafwise(leaf, jnp.float32(share), grain=BLOCK)).reshape(3, 2, 2, 4).swapaxes(1, 2)
    assert (tiles == tiles[:, :, :1, :1]).all()
    means = leaf.reshape(3, 2, 2, 4).mean((1, 3))  # exact: eighths of small numbers
    assert fair(means, tiles[:, :, 0, 0], wanted(share, 6))


@drawn(max_examples=60)
@given(trees(), st.tuples(shares, shares).map(sorted))
def test_more_sparsity_and_more_progress_prune_a_superset(scored, ends):
    low, high = map(jnp.float32, ends)
    for compete in (lambda s: leafwise(scored, everywhere(s)), lambda s: globally(scored, s)):
        chex.assert_trees_all_equal(compete(high), jax.tree.map(jnp.logical_and, compete(low), compete(high)))
    early, late = (leafwise(scored, everywhere(0.75), progress=progress) for progress in (low, high))
    chex.assert_trees_all_equal(late, combine(early, late))


@drawn(max_examples=60)
@given(trees(values=range(-20, 20)), st.permutations(range(48)), shares)
def test_only_the_order_of_scores_counts_and_moves_with_them(scored, order, share):
    """Scores that all differ: shuffled, their mask is shuffled; stretched by a rising function, it stays."""
    distinct = np.argsort(np.argsort(scored["a"].ravel(), kind="stable")).astype(np.float32)
    run = functools.partial(leafwise, sparsities=jnp.float32(share))
    mask = np.asarray(run(distinct.reshape(6, 8))).ravel()
    np.testing.assert_array_equal(np.ravel(run(distinct[np.array(order)].reshape(6, 8))), mask[np.array(order)])
    np.testing.assert_array_equal(np.ravel(run(np.expm1(distinct / 4).reshape(6, 8))), mask)


@jax.jit
def two_in_a_row(scored, first, second):
    among = select.leafwise(scored, dict.fromkeys(SHAPES, first))
    both = select.then(functools.partial(select.leafwise, sparsities=dict.fromkeys(SHAPES, first)), select.globally)
    return among, both(scored, second)


@drawn(max_examples=60)
@given(trees(VALUES), shares, shares)
def test_the_second_of_two_competitions_only_takes_away(scored, first, second):
    among, both = two_in_a_row(scored, jnp.float32(first), jnp.float32(second))
    chex.assert_trees_all_equal(both, combine(among, both))
    size = sum(leaf.size for leaf in scored.values())
    left = sum(int(m.sum()) for m in among.values())
    assert sum(int(m.sum()) for m in both.values()) == min(left, wanted(second, size))


@jax.jit
def next_mask(mask, params, fraction, seed):
    rule = rules.drop_and_grow(dict.fromkeys(SHAPES, 0.5), grow=scores.random, fraction=fraction)
    return rule.update(mask, params, 0, key=jax.random.key(seed))


@drawn(max_examples=60)
@given(
    trees(values=[-3.0, -1.0, -0.5, 0.25, 2.0]), trees(values=range(40)), st.sampled_from(EIGHTHS), st.integers(0, 99)
)
def test_exchanging_weights_keeps_their_number_and_the_best_of_them(params, start, fraction, seed):
    mask = leafwise(start, everywhere(0.5))
    after = next_mask(mask, params, jnp.float32(fraction), seed)
    for name, own in mask.items():
        own, new = np.ravel(own), np.ravel(after[name])
        assert new.sum() == own.sum() == wanted(0.5, own.size)
        # Those that are lost were not among the best of the living, as many as stay.
        beaten = (beats(np.abs(np.ravel(params[name]))) & own[:, None]).sum(0)
        assert (beaten[own & ~new] >= wanted(0.5 + 0.5 * fraction, own.size)).all()


@jax.jit
def along_the_ramp(params, others):
    """The masks of a rule that prunes more at every step, while the weights change."""
    rule = rules.prune_to(dict.fromkeys(SHAPES, 0.8), ramp=lambda step: step / 4)
    mask = rule.init(params, jax.random.key(0))
    found = [mask]
    for step in range(5):
        mask = rule.update(mask, others if step % 2 else params, jnp.float32(step))
        found.append(mask)
    return found


@drawn(max_examples=40)
@given(trees(values=[-3.0, -0.5, 0.25, 2.0]), trees(values=[-1.0, 0.5, 4.0]))
def test_the_dead_stay_dead_until_the_target_is_met(params, others):
    found = along_the_ramp(params, others)
    for before, after in itertools.pairwise(found):
        chex.assert_trees_all_equal(after, combine(before, after))
    assert all(m.all() for m in found[0].values())
    assert {name: int(m.sum()) for name, m in found[-1].items()} == {
        name: wanted(0.8, int(np.prod(shape))) for name, shape in SHAPES.items()
    }
