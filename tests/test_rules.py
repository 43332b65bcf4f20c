"""How masks change: against loops, step by step."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import laws
import numpy as np
import oracles
import pytest

from sparsejax import allocate, rules, schedules, scores, select, tree

KEY = jax.random.key(5)
PARAMS = {"a": laws.weights((8, 12), 60), "b": {"kernel": laws.weights((4, 6, 10), 61), "bias": laws.weights(10, 62)}}
GRADS = jax.tree.map(lambda p: laws.weights(p.shape, 63), PARAMS)
PRUNABLE = ("a", "b/kernel")


def run(rule, steps, params=PARAMS):
    """The masks of a rule that is asked at every step, with the weights masked in between."""
    update = jax.jit(lambda mask, params, step, key: rule.update(mask, params, step, grads=GRADS, key=key))
    mask = rule.init(params, KEY)
    found = [mask]
    for step in range(steps):
        mask = update(mask, params, step, jax.random.fold_in(KEY, step))
        found.append(mask)
        params = jax.tree.map(lambda m, p: jnp.where(m, p, 0), mask, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(*found)
    return found


def counts(mask):
    masks = tree.named(mask)
    return [int(masks[name].sum()) for name in PRUNABLE]


RULES = {
    "prune_to": rules.prune_to(0.75),
    "prune_to, random": rules.prune_to(0.75, scores.random),
    "prune_to, saliency, model": rules.prune_to(0.75, scores.saliency, scope=select.model),
    "prune_to, lamp, model": rules.prune_to(0.75, scores.lamp, scope=select.model),
    "prune_to, own": rules.prune_to(0.75, lambda params, **_: jax.tree.map(lambda w: -jnp.abs(w - 0.1), params)),
    "drop_and_grow": rules.drop_and_grow(0.75),
    "drop_and_grow, gradient": rules.drop_and_grow(0.75, grow=scores.gradient, fraction=lambda step: 0.3 / (step + 1)),
    "drop_and_grow, model": rules.drop_and_grow(0.75, scope=select.model),
    "drop_and_grow, ERK": rules.drop_and_grow(partial(allocate.erdos_renyi, sparsity=0.75)),
}


@pytest.mark.parametrize("name", RULES)
def test_counts_are_exact_and_shapes_stay(name):
    found = run(RULES[name], 4)
    shares = allocate.erdos_renyi(PARAMS, 0.75) if "ERK" in name else {"a": 0.75, "b": {"kernel": 0.75}}
    expected = [oracles.kept(tree.named(shares)[leaf], tree.named(PARAMS)[leaf].size) for leaf in PRUNABLE]
    for mask in found[1:] if name.startswith("prune") else found:
        assert sum(counts(mask)) == sum(expected)
        assert "model" in name or counts(mask) == expected
        assert mask["b"]["bias"].shape == ()
        assert mask["b"]["bias"]


@pytest.mark.parametrize("grain", ["weight", "channel", "block"])
@pytest.mark.parametrize("scope", ["leaf", "per", "groups_of"])
@pytest.mark.parametrize("kind", ["prune_to", "drop_and_grow"])
def test_every_grain_with_every_scope(kind, grain, scope):
    grains = {"weight": select.weight, "channel": select.channel(-2), "block": select.block(2, 1)}
    scopes = {"leaf": select.leaf, "per": select.per(-1), "groups_of": select.groups_of(2)}
    params = {"kernel": laws.weights((8, 4), 64)}
    make = {"prune_to": rules.prune_to, "drop_and_grow": partial(rules.drop_and_grow, fraction=0.5)}[kind]
    rule = make(0.5, grain=grains[grain], scope=scopes[scope])
    if (grain, scope) == ("channel", "per"):
        rule = make(0.5, grain=grains[grain], scope=select.per(0, -1))
        with pytest.raises(ValueError, match="every grain competes with itself"):
            rule.init(params, KEY)
        return
    mask = rule.init(params, KEY)
    mask = rule.update(mask, params, 0, grads=params, key=KEY)
    assert np.broadcast_to(mask["kernel"], (8, 4)).mean() == 0.5


def test_pruning_follows_its_ramp_and_what_is_dead_stays_dead():
    ramp = schedules.cubic(1, 6)
    found = run(rules.prune_to(0.9, scores.random, ramp), 8)
    assert found[0]["a"].all()
    for step, (before, after) in enumerate(itertools.pairwise(found)):
        for name, kept in zip(PRUNABLE, counts(after), strict=True):
            size = tree.named(PARAMS)[name].size
            assert kept == size - round(oracles.zhu_gupta(step, 1, 6, 0, 1) * (size - oracles.kept(0.9, size)))
            assert (tree.named(after)[name] <= tree.named(before)[name]).all()


def test_what_is_alive_has_the_larger_magnitude():
    mask = run(rules.prune_to(0.8), 1)[-1]
    for name in PRUNABLE:
        np.testing.assert_array_equal(
            tree.named(mask)[name], oracles.best(np.abs(tree.named(PARAMS)[name]), counts(mask)[PRUNABLE.index(name)])
        )


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_drop_and_grow_is_the_published_loop(fraction):
    rule = rules.drop_and_grow(0.75, grow=scores.gradient, fraction=fraction)
    mask = rule.init(PARAMS, KEY)
    params = jax.tree.map(lambda m, p: jnp.where(m, p, 0), mask, PARAMS)
    got = jax.jit(lambda m, p: rule.update(m, p, 0, grads=GRADS, key=KEY))(mask, params)
    for name in PRUNABLE:
        before, w, g = (np.asarray(tree.named(t)[name]) for t in (mask, params, GRADS))
        np.testing.assert_array_equal(tree.named(got)[name], oracles.drop_and_grow(before, w, g, fraction))


def test_random_rules_depend_on_the_key_alone():
    rule = rules.drop_and_grow(0.5)
    first, same, other = (rule.init(PARAMS, jax.random.key(seed))["a"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    moved = [rule.update(rule.init(PARAMS, KEY), PARAMS, 0, grads=GRADS, key=jax.random.key(s))["a"] for s in (1, 1, 2)]
    np.testing.assert_array_equal(moved[0], moved[1])
    assert (moved[0] != moved[2]).any()


@pytest.mark.parametrize("make", [rules.prune_to, rules.drop_and_grow])
def test_a_traced_target_gives_the_masks_of_the_static_one(make):
    """So one program trains networks of several sparsities."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def masks(share):
        shares = {"a": share, "b": {"kernel": share, "bias": 0.0}}
        rule = make(lambda params: shares)
        first = rule.init(PARAMS, KEY)
        return first, rule.update(first, PARAMS, 0, grads=GRADS, key=KEY)

    for share in (0.25, 0.75):
        static = make({"a": share, "b": {"kernel": share, "bias": 0.0}})
        first = static.init(PARAMS, KEY)
        chex.assert_trees_all_equal(masks(share), (first, static.update(first, PARAMS, 0, grads=GRADS, key=KEY)))


def test_a_fixed_mask_stays():
    mask = {"a": PARAMS["a"] > 0, "b": {"kernel": jnp.asarray(True), "bias": jnp.asarray(True)}}
    for later in run(rules.fixed(mask), 3):
        chex.assert_trees_all_equal(later, mask)


TARGETS = {
    "a number": 0.75,
    "a tree": {"a": 0.75, "b": {"kernel": 0.75, "bias": 0.0}},
    "a function": partial(allocate.uniform, sparsity=0.75),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_numbers_trees_or_functions(name):
    assert rules.shares_of(TARGETS[name], PARAMS) == TARGETS["a tree"]


PRUNES = {
    "a mask": (rules.fixed({"a": jnp.array([True, False])}), [], True),
    "no mask": (rules.fixed({"a": jnp.array(True)}), [3], False),
    "never": (rules.prune_to(0.5), [], False),
    "once": (rules.prune_to(0.5), [7], True),
    "before the ramp": (rules.prune_to(0.5, ramp=schedules.linear(10, 20)), [0, 10], False),
    "on the ramp": (rules.prune_to(0.5, ramp=schedules.linear(10, 20)), [0, 11], True),
    "to nothing": (rules.prune_to({"a": 0.0}), [7], False),
    "sparse from the start": (rules.drop_and_grow(0.5), [], True),
}


@pytest.mark.parametrize("name", PRUNES)
def test_it_is_known_whether_a_rule_will_prune(name):
    rule, struck, expected = PRUNES[name]
    assert rule.prunes(np.array(struck, np.int32)) is expected


WRONG = {
    "a number out of range": (lambda: rules.prune_to(1.5).init(PARAMS, KEY), "sparsity=1.5 must be"),
    "a target of another tree": (
        lambda: rules.prune_to({"a": 0.5}).init(PARAMS, KEY),
        "sparsities must have the struct",
    ),
    "a mask of another tree": (
        lambda: rules.fixed({"a": jnp.array(True)}).init(PARAMS, KEY),
        "mask must have the struct",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
