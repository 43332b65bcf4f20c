"""Competitions against a stable sort in NumPy: every grain with every scope, on many devices, and exact counts."""

import functools
import itertools
import math
import re
from fractions import Fraction
from functools import partial

import chex
import jax
import jax.numpy as jnp
import laws
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sparsejax import quotas, search, select, tree


def spread(kind, shape, dtype=np.float32, seed=0):
    """Scores of a shape that are spread in one of many ways."""
    rng, size = np.random.default_rng(seed), math.prod(shape)
    values = {
        "gaussian": lambda: rng.standard_normal(size),
        "magnitudes": lambda: np.abs(rng.standard_normal(size)),
        "long tails": lambda: np.exp(9 * rng.standard_normal(size)),
        "three values": lambda: rng.integers(-1, 2, size),
        "all equal": lambda: np.full(size, 0.25),
        "zeros of both signs": lambda: np.where(rng.random(size) < 0.5, 0.0, -0.0),
        "mostly zero": lambda: np.where(rng.random(size) < 0.8, 0.0, rng.standard_normal(size)),
        "one outlier": lambda: np.where(np.arange(size) == size // 3, 1e30, rng.random(size)),
        "infinities": lambda: rng.choice([-np.inf, np.inf, 1.0, -2.0], size),
        "some nan": lambda: np.where(rng.random(size) < 0.3, np.nan, rng.standard_normal(size)),
        "nan of both signs": lambda: np.copysign(np.where(rng.random(size) < 0.7, np.nan, 1.0), rng.random(size) - 0.5),
        "all nan": lambda: np.full(size, np.nan),
        "smallest and largest": lambda: rng.choice([np.finfo("f").max, -np.finfo("f").max, np.finfo("f").tiny], size),
    }[kind]()
    with np.errstate(over="ignore"):
        return jnp.asarray(values.reshape(shape), dtype)


KINDS = ["gaussian", "magnitudes", "long tails", "three values", "all equal", "zeros of both signs", "mostly zero"]
KINDS += ["one outlier", "infinities", "some nan", "nan of both signs", "all nan", "smallest and largest"]
SHARES = [0.1, 1 / 3, 0.5, 0.9, 0.97, 1.0]

leafwise = jax.jit(select.leafwise, static_argnames=("grain", "scope"))


@pytest.fixture(scope="module")
def best_of_960():
    return jax.jit(lambda scores, kept: search.best_of_each([scores], kept[None], (0,))[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_a_leaf_keeps_the_best_as_a_stable_sort_does(kind, dtype, best_of_960):
    scores = spread(kind, (24, 40), dtype)
    for kept in (0, 1, 2, 95, 96, 480, 959, 960):
        got = best_of_960(scores, jnp.int32(kept))
        np.testing.assert_array_equal(got, oracles.best(scores, kept), err_msg=f"{kept} kept")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_count_of_small_leaves(size):
    run = jax.jit(lambda scores, kept: search.best_of_each([scores], kept[None], (0,))[0])
    for seed in range(20):
        scores = jnp.asarray(np.random.default_rng(seed).integers(0, 4, size), jnp.float32)
        for kept in range(size + 1):
            np.testing.assert_array_equal(run(scores, jnp.int32(kept)), oracles.best(scores, kept))


def first_index(shape):
    return np.broadcast_to(np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)), shape)


# name: (grain, the oracle's (shape -> grain of each entry)), and the same for scopes.
GRAINS = {
    "weight": (select.weight, lambda shape: np.arange(math.prod(shape)).reshape(shape)),
    "channel": (select.channel(-1), lambda shape: np.broadcast_to(np.arange(shape[-1]), shape)),
    "first channel": (select.channel(0), lambda shape: first_index(shape)),
    "block": (select.block(2, 4), lambda shape: oracles.blocks(shape, (2, 4))),
    "row block": (select.block(8), lambda shape: oracles.blocks(shape, (8,))),
}


@pytest.mark.parametrize("shape", [(16, 24), (3, 8, 16), (3, 2, 4, 8)])
@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_grains_live_or_die_as_one(shape, grain, sparsity):
    scores = jnp.round(spread("gaussian", shape) * 64) / 64  # sums that round nowhere
    own, of = GRAINS[grain]
    mask = leafwise(scores, sparsity, grain=own)
    np.testing.assert_array_equal(np.broadcast_to(mask, shape), oracles.best_grains(scores, of(shape), sparsity))


def test_the_mask_of_channels_is_small():
    mask = select.leafwise(jnp.ones((3, 3, 4, 8)), 0.5, grain=select.channel(-1))
    assert mask.shape == (1, 1, 1, 8)
    assert mask.sum() == 4


SCOPES = {
    "per output": (select.per(-1), lambda shape: np.broadcast_to(np.arange(shape[-1]), shape)),
    "per layer": (select.per(0), lambda shape: first_index(shape)),
    "per layer and output": (select.per(0, -1), lambda shape: first_index(shape) * shape[-1] + np.arange(shape[-1])),
    "groups of inputs": (select.groups_of(4), lambda shape: oracles.groups(shape, 4, -2)),
    "groups of outputs": (select.groups_of(8, axis=-1), lambda shape: oracles.groups(shape, 8, -1)),
    "large groups": (select.groups_of(24, axis=-1), lambda shape: oracles.groups(shape, 24, -1)),
}


@pytest.mark.parametrize("shape", [(5, 8, 24), (3, 2, 4, 24)])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", ["gaussian", "three values", "some nan"])
def test_scopes_compete_apart(shape, scope, kind):
    scores, (own, of) = spread(kind, shape, seed=5), SCOPES[scope]
    mask = leafwise(scores, 0.5, scope=own)
    assert mask.shape == shape
    np.testing.assert_array_equal(mask, oracles.best_within(scores, np.broadcast_to(of(shape), shape), 0.5))


def test_grains_and_scopes_compose():
    """Blocks of four inputs, two of which survive of every four neighbours; and channels that compete per layer."""
    scores = jnp.round(spread("gaussian", (64, 8)) * 64) / 64
    mask = leafwise(scores, 0.5, grain=select.block(4, 1), scope=select.groups_of(4))
    of_blocks = np.asarray(scores).reshape(16, 4, 8).mean(1)
    expected = oracles.best_within(of_blocks, oracles.groups((16, 8), 4, -2), 0.5)
    np.testing.assert_array_equal(mask, np.repeat(expected, 4, 0))
    stacked = jnp.round(spread("gaussian", (6, 5, 10)) * 64) / 64

    channels = partial(leafwise, sparsities=0.3, grain=select.channel(-1))
    one_by_one = jnp.stack([channels(layer) for layer in stacked])
    np.testing.assert_array_equal(jax.vmap(channels)(stacked), one_by_one)


PARAMS = {
    "a": {"kernel": spread("gaussian", (30, 40)), "bias": jnp.ones(40)},
    "b": [spread("magnitudes", (5, 5, 8, 10), seed=1), spread("three values", (40, 3), seed=2)],
}
OPEN = {"a": {"kernel": 0.7, "bias": 0.0}, "b": [0.7, 0.7]}


@pytest.mark.parametrize("sparsity", SHARES)
def test_globally_is_one_competition_of_all_leaves(sparsity):
    shares = jax.tree.map(lambda s: sparsity if s else 0.0, OPEN)
    mask = jax.jit(lambda p: select.globally(p, shares))(PARAMS)
    assert mask["a"]["bias"].shape == ()
    kernels = [PARAMS["a"]["kernel"], *PARAMS["b"]]
    flat = np.concatenate([np.ravel(k) for k in kernels])
    got = np.concatenate([np.ravel(m) for m in (mask["a"]["kernel"], *mask["b"])])
    np.testing.assert_array_equal(got, oracles.best(flat, oracles.kept(sparsity, flat.size)))
    everything = jax.jit(select.globally)(kernels, sparsity)
    chex.assert_trees_all_equal(select.leafwise(PARAMS, shares, scope=select.model), mask)
    chex.assert_trees_all_equal(everything, [mask["a"]["kernel"], *mask["b"]])


def test_a_global_budget_is_what_the_leaves_ask_for_together():
    shares = {"a": {"kernel": 0.21, "bias": 0.0}, "b": [0.77, 0.13]}
    mask = jax.jit(lambda p: select.globally(p, shares))(PARAMS)
    kept = sum(int(m.sum()) for m in (mask["a"]["kernel"], *mask["b"]))
    assert kept == round(0.79 * 1200 + 0.23 * 2000 + 0.87 * 120)


def test_channels_of_all_layers_compete():
    params = [jnp.full((3, 4), 1.0).at[:, 2].set(9.0), jnp.full((6, 2), 2.0).at[:, 0].set(0.5)]
    mask = select.globally(params, 0.5, grain=select.channel(-1))
    assert [m.tolist() for m in mask] == [[[True, False, True, False]], [[False, True]]]


@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("rule", [select.leafwise, select.globally])
def test_a_mask_has_the_structure_and_counts_are_exact(view, rule):
    make, prunable = laws.TREES[view]
    params = make(jnp.bfloat16)
    shares = tree.replace(jax.tree.map(lambda _: 0.0, params), dict.fromkeys(prunable, 0.9))
    mask = jax.jit(lambda p: rule(p, shares))(params)
    chex.assert_trees_all_equal_structs(mask, params)
    sizes = {name: leaf.size for name, leaf in tree.named(params).items() if name in prunable}
    counts = {name: int(m.sum()) for name, m in tree.named(mask).items() if name in prunable}
    assert all(m.dtype == bool and (name in prunable or m.shape == ()) for name, m in tree.named(mask).items())
    if rule is select.leafwise:
        assert counts == {name: oracles.kept(0.9, size) for name, size in sizes.items()}
    assert sum(counts.values()) == oracles.kept(0.9, sum(sizes.values()))


@pytest.mark.parametrize("scope", [select.leaf, select.per(-1), select.groups_of(6)])
@pytest.mark.parametrize("grain", [select.weight, select.block(2, 1)])
@pytest.mark.parametrize("kind", ["three values", "gaussian"])
def test_more_sparsity_prunes_a_superset_and_progress_too(grain, scope, kind):
    scores = spread(kind, (24, 40))
    run = jax.jit(partial(select.leafwise, grain=grain, scope=scope))
    for masks in (
        [run(scores, jnp.float32(s)) for s in np.linspace(0, 1, 9)],
        [run(scores, jnp.float32(0.5), progress=p) for p in np.linspace(0, 1, 9)],
    ):
        assert masks[0].all()
        assert all((a >= b).all() for a, b in itertools.pairwise(masks))
        assert not masks[-1].all()


def bound(rule, share, **options):
    """A competition over PARAMS with everything but the scores bound."""
    return partial(rule, **{"sparsity" if rule is select.globally else "sparsities": shares_like(share)}, **options)


def shares_like(share):
    return jax.tree.map(lambda s: share if s else 0.0, OPEN)


CONTESTS = {
    "1:2": bound(select.leafwise, 0.5, scope=select.groups_of(2, axis=-2)),
    "of a leaf": bound(select.leafwise, 0.75),
    "of the model": bound(select.globally, 0.9),
    "of channels": bound(select.leafwise, 0.6, grain=select.channel(-1)),
    "of nothing": bound(select.leafwise, 0.0),
}


@functools.cache
def held(name):
    """The mask of one competition."""
    return jax.jit(CONTESTS[name])(PARAMS)


def among(scores, mask):
    """The survivors' scores in float64, NaN for the others, by leaf name."""
    kept = tree.named(mask)
    return {n: np.where(kept[n], np.asarray(s, np.float64), np.nan) for n, s in tree.named(scores).items()}


def test_then_is_the_second_competition_of_those_that_survive_the_first():
    left = among(PARAMS, held("1:2"))
    kernels = [name for name, share in tree.named(OPEN).items() if share]
    got = tree.named(jax.jit(select.then(CONTESTS["1:2"], CONTESTS["of a leaf"]))(PARAMS))
    for name in kernels:
        expected = oracles.best(left[name], oracles.kept(0.75, left[name].size))
        np.testing.assert_array_equal(got[name], expected, err_msg=name)
    got = tree.named(jax.jit(select.then(CONTESTS["1:2"], CONTESTS["of the model"]))(PARAMS))
    flat = np.concatenate([left[name].ravel() for name in kernels])
    expected = oracles.best(flat, oracles.kept(0.9, flat.size))
    np.testing.assert_array_equal(np.concatenate([np.ravel(got[name]) for name in kernels]), expected)
    assert all(got[name].shape == () for name in got if name not in kernels)


def test_a_coarse_grain_is_scored_by_those_of_its_weights_that_take_part():
    scores = jnp.round(spread("gaussian", (16, 12), seed=4) * 64) / 64
    first = partial(select.leafwise, sparsities=0.5, scope=select.groups_of(4))
    second = partial(select.leafwise, sparsities=0.75, grain=select.channel(-1))
    alive = np.asarray(first(scores))
    means = [np.asarray(scores)[alive[:, i], i].mean() for i in range(12)]
    expected = alive & oracles.best(means, 3)
    np.testing.assert_array_equal(jax.jit(select.then(first, second))(scores), expected)
    assert expected.sum() == 3 * 8
    # The other way round: a channel that is gone has nothing left to compete with.
    both = jax.jit(select.then(second, first))(scores)
    np.testing.assert_array_equal(both, np.asarray(second(scores)) & alive)
    # A grain of which nothing takes part never survives, though there be room for it.
    nothing = jnp.zeros((1, 12), bool).at[0, 5].set(True)
    assert np.flatnonzero(select.leafwise(scores, 0.5, grain=select.channel(-1), among=nothing)).tolist() == [5]


def whole(mask):
    return jax.tree.map(lambda m, p: np.broadcast_to(m, p.shape), mask, PARAMS)


@pytest.mark.parametrize("first", CONTESTS)
@pytest.mark.parametrize("second", CONTESTS)
def test_laws_of_then(first, second):
    mask, alone, after = jax.jit(select.then(CONTESTS[first], CONTESTS[second]))(PARAMS), held(first), held(second)
    chex.assert_trees_all_equal_structs(mask, PARAMS)
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(mask))
    counts = {}
    for name, kept in tree.named(whole(mask)).items():
        survivors, rivals = (tree.named(whole(m))[name] for m in (alone, after))
        assert not (kept & ~survivors).any(), "what the first prunes stays pruned"
        counts[name] = (int(kept.sum()), int(survivors.sum()), int(rivals.sum()))
    if second in ("of a leaf", "of nothing"):  # a leaf keeps what it was asked, or what the first left it
        assert all(got == min(left, quota) for got, left, quota in counts.values())
    if second == "of the model":
        kernels = [counts[name] for name, share in tree.named(OPEN).items() if share]
        got, left, quota = map(sum, zip(*kernels, strict=True))
        assert got == min(left, quota)
    if first == second or second == "of nothing":
        chex.assert_trees_all_equal(whole(mask), whole(alone))
    if first == "of nothing":
        chex.assert_trees_all_equal(whole(mask), whole(after))


def test_then_is_associative_and_takes_traced_progress():
    a, b, c = (CONTESTS[name] for name in ("1:2", "of channels", "of the model"))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(params, progress):
        left, right = select.then(select.then(a, b), c), select.then(a, select.then(b, c))
        return left(params, progress=progress), right(params, progress=progress)

    for progress in (0.0, 0.4, 1.0):
        left, right = run(PARAMS, jnp.float32(progress))
        chex.assert_trees_all_equal(left, right)
        assert all(m.all() for m in jax.tree.leaves(left)) == (progress == 0)


def test_a_higher_second_sparsity_prunes_a_superset():
    masks = []
    for share in (0.1, 0.5, 0.6, 0.9, 1.0):
        second = partial(select.globally, sparsity=shares_like(share))
        masks.append(jax.jit(select.then(CONTESTS["1:2"], second))(PARAMS))
    for more, fewer in itertools.pairwise(masks):
        assert all((m >= f).all() for m, f in zip(*map(jax.tree.leaves, (more, fewer)), strict=True))


@pytest.mark.parametrize("sparsity", [0.1, 0.9])
@pytest.mark.parametrize("rule", [select.leafwise, select.globally])
def test_a_traced_budget_gives_the_mask_of_the_static_one(rule, sparsity):
    def run(params, sparsity):
        return rule(params, jax.tree.map(lambda s: sparsity if s else 0.0, OPEN))

    static = jax.jit(run, static_argnums=1)
    chex.assert_trees_all_equal(
        jax.jit(run)(PARAMS, jnp.float32(sparsity)), static(PARAMS, float(np.float32(sparsity)))
    )


def test_a_schedule_is_traced_once_and_ends_exactly():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(params, progress):
        return select.leafwise(params, OPEN, progress=progress), select.globally(params, OPEN, progress=progress)

    for progress in (0.0, 0.3, 1.0):
        for mask in run(PARAMS, jnp.float32(progress)):
            pruned = sum(int((~m).sum()) for m in jax.tree.leaves(mask))
            assert pruned == round(progress * 0.7 * 3320)


def test_counts_are_exact_beyond_float32():
    counts = jax.jit(lambda s, p, n: quotas.advance(quotas.kept(s, n), n, p), static_argnums=2)
    rng = np.random.default_rng(7)
    for n in (1, 2, 3, 10, 2**24 + 1, 10**8 + 1, 2**31 - 1):
        for s, p in [(0.5, 1.0), (0.9, 1.0), (0.25, 0.5), *rng.random((20, 2))]:
            s, p = np.float32(s), np.float32(p)
            kept = oracles.kept(Fraction(float(s)), n)
            # Below 2^-8 a float32 has bits that a fixed point with 32 of them has not.
            tolerance = 0 if min(s, p) > 2**-8 else 1
            assert abs(int(counts(s, np.float32(1), n)) - kept) <= tolerance, (s, n)
            part = round(Fraction(float(p)) * (n - kept))
            assert abs(int(counts(s, p, n)) - (n - part)) <= tolerance, (s, p, n)
    assert int(quotas.kept(0.9, 10**8)) == 10**7
    assert int(quotas.kept(0.999999, 10**9)) == 1000


def test_budgets_out_of_range_when_traced_are_clipped_and_nan_cannot_be_missed():
    got = jax.vmap(lambda s: quotas.kept(s, 10))(jnp.array([-1.0, 0.0, 1e-30, 0.5, 0.999, 1.0, 7.0, jnp.nan]))
    assert got.tolist() == [10, 10, 10, 5, 1, 0, 0, 0]


def test_it_works_under_grad_and_vmap():
    w = spread("gaussian", (4, 6, 10))

    def kept_sum(w):
        return jnp.where(select.leafwise(jnp.abs(w), 0.5), w, 0).sum()

    gradient = jax.jit(jax.vmap(jax.grad(kept_sum)))(w)
    expected = np.stack([oracles.best(np.abs(layer), 30) for layer in np.asarray(w)])
    np.testing.assert_array_equal(gradient, expected.astype(np.float32))


def test_float64_scores_are_told_apart():
    with jax.enable_x64(True):
        scores = 1 + np.random.default_rng(0).permutation(64) * 1e-15
        mask = select.leafwise(jnp.asarray(scores), 0.5)
        np.testing.assert_array_equal(mask, oracles.best(scores, 32))


def test_many_leaves_share_one_search():
    """A loop a leaf would compile in time; here leaves add reductions to the body of one."""
    params = {str(i): jnp.ones((3, 4 + i)) for i in range(20)}
    shares = {str(i): 0.05 * i for i in range(20)}
    text = jax.jit(lambda p: select.leafwise(p, shares)).lower(params).as_text()
    assert text.count("stablehlo.while") == 2  # thresholds, and places of equal scores


MESHES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
SHARDED = {"a": ((32, 48), P("x", "y")), "b": ((64, 16), P(None, "x")), "c": ((3, 3, 16, 8), P(None, None, "y", "x"))}
COMPETITIONS = {
    "leafwise": lambda s: select.leafwise(s, dict.fromkeys(SHARDED, 0.75)),
    "globally": lambda s: select.globally(s, 0.75),
    "per output": lambda s: select.leafwise(s, dict.fromkeys(SHARDED, 0.75), scope=select.per(-1)),
    "2:4": lambda s: select.leafwise(s, dict.fromkeys(SHARDED, 0.5), scope=select.groups_of(4)),
    "block": lambda s: select.leafwise(s, dict.fromkeys(SHARDED, 0.5), grain=select.block(2, 2)),
    "balanced blocks": lambda s: select.leafwise(
        s, dict.fromkeys(SHARDED, 0.5), grain=select.block(1, 2), scope=select.per(-1)
    ),
    "channel": lambda s: select.leafwise(s, dict.fromkeys(SHARDED, 0.5), grain=select.channel(-1)),
    "2:4, then globally": select.then(
        partial(select.leafwise, sparsities=dict.fromkeys(SHARDED, 0.5), scope=select.groups_of(4)),
        partial(select.globally, sparsity=0.75),
    ),
}


def moved(program: str) -> list[int]:
    """The numbers of entries that the collectives of a compiled program move."""
    found = re.findall(r"= (.*?) (?:all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\(", program)
    shapes = [shape for result in found for shape in re.findall(r"\w+\[([\d,]*)\]", result)]
    return [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]


@pytest.mark.parametrize("competition", COMPETITIONS)
@pytest.mark.parametrize("axes", MESHES)
def test_eight_devices_give_the_mask_of_one_without_gathering(competition, axes):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(MESHES[axes],) * 2)
    # With many equal scores, so that places decide too, and with sums that round nowhere.
    scores = {name: jnp.round(spread("gaussian", shape, seed=8) * 16) / 16 for name, (shape, _) in SHARDED.items()}
    shardings = {name: NamedSharding(mesh, spec) for name, (_, spec) in SHARDED.items()}
    run = jax.jit(COMPETITIONS[competition])
    alone, placed = run(scores), jax.device_put(scores, shardings)
    program = run.lower(placed).compile()
    masks = program(placed)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, masks), jax.tree.map(np.asarray, alone))
    # What devices tell each other is counts: fewer numbers than there are scores in the smallest part of a leaf.
    smallest = min(math.prod(shape) // 8 for shape, _ in SHARDED.values())
    assert max(moved(program.as_text()), default=0) < smallest
    for name, mask in masks.items():
        if mask.shape == scores[name].shape:
            assert mask.sharding.is_equivalent_to(shardings[name], mask.ndim), name


@pytest.mark.parametrize("axes", MESHES)
def test_few_competitors_may_lie_on_several_devices(axes):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(MESHES[axes],) * 2)
    scores = jnp.round(spread("gaussian", (16, 6), seed=9) * 4) / 4
    run = jax.jit(lambda s: select.leafwise(s, 0.75, scope=select.per(-1)))
    placed = jax.device_put(scores, NamedSharding(mesh, P("x", "y")))
    np.testing.assert_array_equal(run(placed), run(scores))


A = {"a": jnp.ones((6, 8)), "n": jnp.ones(3, jnp.int32)}


def call(sparsity=0.5, shape=(6, 8), **options):
    return lambda: select.leafwise({"a": jnp.ones(shape)}, {"a": sparsity}, **options)


WRONG = {
    "another structure": (lambda: select.leafwise(A, {"a": 0.5}), r"sparsities must have the structure.*lacks \['n'\]"),
    "one number for leaves": (lambda: select.leafwise(A, 0.5), "sparsities must have the structure"),
    "another structure, globally": (lambda: select.globally(A, {"a": 0.5}), "sparsity must have the structure"),
    "integers": (lambda: select.leafwise(A, {"a": 0.5, "n": 0.5}), "leaf 'n' has dtype int32"),
    "integers, globally": (lambda: select.globally(A, 0.5), "leaf 'n' has dtype int32"),
    "per cent": (call(90), r"leaf 'a': sparsity=90 must be in \[0, 1\]"),
    "negative": (call(-0.1), "sparsity=-0.1"),
    "nan": (call(math.nan), "sparsity=nan"),
    "groups that do not divide": (call(scope=select.groups_of(4)), r"leaf 'a': groups of m=4 do not divide axis -2"),
    "groups of a share": (call(0.9, scope=select.groups_of(4, axis=-1)), "would prune 3.6 of each group of 4; give a"),
    "no such axis": (call(shape=(6,), scope=select.groups_of(2)), r"groups_of\(axis=-2\) needs that axis"),
    "no such axis apart": (call(scope=select.per(2)), r"per\(axis=2\) needs that axis"),
    "no such channel": (call(grain=select.channel(3)), r"channel\(axis=3\) needs that axis"),
    "blocks that do not divide": (call(grain=select.block(4, 4)), r"block\(4, 4\) does not divide axes \[0\]"),
    "blocks of more axes": (call(grain=select.block(1, 1, 1)), "needs rank 3 or more"),
    "a competition of one": (call(grain=select.channel(), scope=select.per(-1)), "leaf 'a': every grain competes with"),
    "channels in groups of inputs": (call(grain=select.channel(), scope=select.groups_of(2)), "do not divide axis -2"),
    "among others": (lambda: select.leafwise(A["a"], 0.5, among={"a": True}), "mask must have the structure"),
    "among numbers": (
        lambda: select.globally([A["a"]], 0.5, among=[jnp.ones((6, 8))]),
        "mask leaf '0' has dtype float",
    ),
    "no block": (lambda: select.block(), r"size=\(\) must be one"),
    "empty block": (lambda: select.block(4, 0), r"size=\(4, 0\)"),
    "empty groups": (lambda: select.groups_of(0), "m=0"),
    "per nothing": (lambda: select.per(), "at least one axis"),
    "too many": (
        lambda: jax.eval_shape(lambda s: select.globally(s, 0.5), [jax.ShapeDtypeStruct((2**30,), "float32")] * 2),
        "2,147,483,648 scores compete",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    wrong, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        wrong()
