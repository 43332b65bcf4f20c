"""Budgets and targets: hand counts, brute force over every threshold, laws in `jit` and `vmap` and on 8 devices."""

import itertools
import math
import operator

import chex
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import _integers, budgets, gates, groups, targets
from sparsejax.gates import Gated
from sparsejax.groups import Group, Member
from sparsejax.multiply_adds import MultiplyAdds

# LeNet-5 (20-50-500-10, 5x5, VALID): the shapes of its parameters, and its units.
SHAPES = {
    "c1": (5, 5, 1, 20), "b1": (20,), "c2": (5, 5, 20, 50), "b2": (50,),
    "d1": (800, 500), "b3": (500,), "d2": (500, 10), "b4": (10,),
}  # fmt: skip
LENET = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
FLAT = tuple(range(50)) * 16
UNITS = {
    "conv 1": Group(20, (Member("c1", 3), Member("b1", 0), Member("c2", 2, reads=True))),
    "conv 2": Group(50, (Member("c2", 3), Member("b2", 0), Member("d1", 0, FLAT, reads=True))),
    "dense": Group(500, (Member("d1", 1), Member("b3", 0), Member("d2", 0, reads=True))),
}
DENSE = MultiplyAdds(
    dict.fromkeys(SHAPES, 0) | {"c1": 24 * 24 * 25 * 20, "c2": 8 * 8 * 25 * 20 * 50, "d1": 800 * 500, "d2": 5000}
)


def exact(integer):
    high, low = np.asarray(integer).tolist()
    return high * 2**32 + low


def lenet_multiply_adds(a, b, c):
    """The formula, with the numbers of channels and neurons that stay."""
    return 24 * 24 * 25 * a + 8 * 8 * 25 * a * b + 16 * b * c + 10 * c


def lenet_parameters(a, b, c):
    return 26 * a + (25 * a + 1) * b + (16 * b + 1) * c + 10 * c + 10


def test_lenet_is_the_published_one():
    """Vector A10."""
    compression = budgets.compression(LENET, 310.0)
    weights = {name: 1 for name in SHAPES if name[0] != "b"}
    everything = {name: jnp.asarray(True) for name in SHAPES}
    assert exact(budgets.spent(compression, everything, LENET)) == 431_080
    assert exact(budgets.spent(budgets.Budget(weights, 0), everything, LENET)) == 430_500
    assert DENSE.total == 2_293_000
    assert compression.limit == 431_080 // 310 == 1390
    assert budgets.multiply_adds(LENET, DENSE, 0.07).limit == 160_510


@pytest.mark.parametrize("kept", [(20, 50, 500), (1, 1, 1), (7, 13, 101), (20, 1, 499)])
def test_what_units_leave_is_the_formula(kept):
    rng = np.random.default_rng(0)
    alive = {}
    for (name, group), count in zip(UNITS.items(), kept, strict=True):
        alive[name] = jnp.asarray(rng.permutation(group.size) < count)
    mask = groups.push(UNITS, alive, LENET)
    both = jax.jit(
        lambda mask: (
            budgets.spent(budgets.multiply_adds(LENET, DENSE, 0.5), mask, LENET),
            budgets.spent(budgets.compression(LENET, 2.0), mask, LENET),
            budgets.left(budgets.compression(LENET, 2.0), mask, LENET),
        )
    )
    products, parameters, share = both(mask)
    assert exact(products) == lenet_multiply_adds(*kept)
    assert exact(parameters) == lenet_parameters(*kept)
    np.testing.assert_allclose(share, lenet_parameters(*kept) / 431_080, rtol=1e-6)


@pytest.mark.parametrize("cost", [1, 3, 2**16 + 1, 2**31, 2**32 - 1, 2**32, 2**40 + 12345])
def test_costs_beyond_32_bits_are_exact(cost):
    params = {"a": jnp.zeros((1000, 70)), "b": jnp.zeros(11)}
    mask = {"a": jnp.arange(70)[None] < 69, "b": jnp.arange(11) < 7}
    budget = budgets.Budget({"a": cost, "b": 2**33}, 0)
    spent = jax.jit(lambda mask: budgets.spent(budget, mask, params))(mask)
    assert exact(spent) == 69_000 * cost + 7 * 2**33
    share = budgets.left(budget, mask, params)
    np.testing.assert_allclose(share, exact(spent) / (70_000 * cost + 11 * 2**33), rtol=1e-6)


def test_sums_and_comparisons_of_exact_integers():
    edges = [0, 1, 2**16, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    for a, b in itertools.product(edges, edges):
        x, y = jnp.asarray(_integers.of(a)), jnp.asarray(_integers.of(b))
        assert bool(_integers.at_most(x, y)) == (a <= b)
        assert exact(_integers.add(x, y)) == (a + b) % 2**64
        assert int(_integers.to_numpy(x)) == a
    for number in (-1, 2**64):
        with pytest.raises(ValueError, match="not in"):
            _integers.of(number)


# Gates of single weights, with ties within and across leaves.
SMALL = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(3), "c": jnp.zeros((2, 2))}
AUX = {"a": jnp.array([[0.2, -0.1, -0.3], [-0.1, 0.0, -0.5]]), "c": jnp.array([[-0.1, 0.3], [-0.0, jnp.nan]])}
COSTS = {
    "parameters": {"a": 1, "b": 1, "c": 1},
    "parameters of gated leaves": {"a": 1, "c": 1},
    "multiply-adds": {"a": 2, "b": 0, "c": 5},
    "one leaf": {"c": 1},
}


def by_preference(aux):
    """(leaf, index) of all entries but NaN, best first; of equal ones the earlier leaf, then the lower index."""
    entries = [(name, i, float(m[i])) for name, m in aux.items() for i in np.ndindex(m.shape)]
    return [(name, i) for name, i, m in sorted(entries, key=lambda e: -e[2]) if not math.isnan(m)]


def price(costs, chosen):
    return sum(costs.get(name, 0) for name, _ in chosen) + 3 * costs.get("b", 0)


@pytest.mark.parametrize("cost", COSTS)
def test_the_choice_is_the_longest_affordable_prefix(cost):
    """Brute force over every threshold, for every limit."""
    costs, order = COSTS[cost], by_preference(AUX)
    gated = Gated(SMALL, AUX)
    opened = [(name, i) for name, i in order if float(AUX[name][i]) > 0]
    least, most = price(costs, []), price(costs, order)

    @jax.jit
    def decide(limit):
        target = targets.weights(budgets.Budget(costs, limit))
        return target.choose(gated), target.reached(gated), targets.settle(target, gated)

    for limit in range(least, most + 2):
        chosen, reached, settled = decide(jnp.int32(limit))
        longest = max(k for k in range(len(order) + 1) if price(costs, order[:k]) <= limit)
        expected = {name: np.zeros(m.shape, bool) for name, m in AUX.items()}
        for name, i in order[:longest]:
            expected[name][i] = True
        chex.assert_trees_all_equal(chosen, expected)
        assert bool(reached) == (price(costs, opened) <= limit)
        opens = jax.tree.map(lambda m: m > 0, settled.aux)
        chex.assert_trees_all_equal(opens, expected if reached else jax.tree.map(lambda m: m > 0, AUX))
        chex.assert_trees_all_equal(settled.weights, gated.weights)


def random_gates(seed, mean=-0.02):
    params = {
        "a": laws.weights((30, 40), seed),
        "bias": laws.weights(40, seed + 1),
        "b": laws.weights((40, 50), seed + 2),
    }
    return Gated(params, {name: laws.weights(params[name].shape, seed + 3, shift=mean) for name in ("a", "b")})


def test_a_target_that_was_overshot_is_met_to_the_last_weight():
    gated = random_gates(0)  # 42 per cent of the gates are open

    @jax.jit
    def decide(limit):
        target = targets.weights(budgets.Budget(dict.fromkeys(gated.weights, 1), limit))
        return target.reached(gated), targets.settle(target, gated)

    for ratio in (1.5, 1.9, 2.2):
        limit = budgets.compression(gated.weights, ratio).limit
        reached, settled = decide(jnp.int32(limit))
        assert bool(reached)
        report = sj.report.count(gates.finalize(settled))
        assert report.nonzeros == limit == math.floor(3240 / ratio)
        assert ratio <= report.compression < 3240 / (limit - 1)


def test_a_target_that_was_not_reached_stays_so_and_shows():
    gated = random_gates(0, mean=0.05)
    target = targets.weights(budgets.compression(gated.weights, 5.0))
    settled = jax.jit(lambda gated: targets.settle(target, gated))(gated)
    assert not bool(target.reached(settled))
    chex.assert_trees_all_equal(settled.aux, gated.aux)
    with pytest.raises(ValueError, match="sparsity is not within"):
        sj.report.check_sparsity(gates.finalize(settled), 0.8)


def test_moves_change_signs_exactly_however_large_or_small():
    m = jnp.array([1e-30, -1e-30, 3e5, -3e5, 0.1, -0.1, 0.0, -0.0, 0.3, -0.3], jnp.float32)
    for keep in (jnp.ones(10, bool), jnp.zeros(10, bool), jnp.arange(10) % 3 == 0):
        moved = targets.moves(Gated({}, {"k": m}), {"k": keep})["k"]
        np.testing.assert_array_equal(m + moved > 0, keep)
        np.testing.assert_array_equal(moved == 0, (m > 0) == keep)


@jax.jit
def decide_on_units(limit, aux):
    costs = budgets.multiply_adds(LENET, DENSE, 0.5).costs
    target, gated = targets.units(budgets.Budget(costs, limit), UNITS), Gated(LENET, aux)
    return target.choose(gated), target.reached(gated), targets.settle(target, gated).aux


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("mean", [-0.1, -0.02])
def test_units_meet_a_share_of_multiply_adds_from_below_and_no_threshold_does_better(share, mean):
    """The next unit in the order of the auxiliary parameters would be too expensive."""
    rng = np.random.default_rng(7)
    aux = {name: rng.normal(mean, 0.05, group.size).astype(np.float32) for name, group in UNITS.items()}
    limit = budgets.multiply_adds(LENET, DENSE, share).limit
    assert limit == math.floor(share * 2_293_000 + 1e-6)
    opened = [max(1, int((m > 0).sum())) for m in aux.values()]
    chosen, reached, settled = jax.tree.map(np.asarray, decide_on_units(jnp.int32(limit), aux))
    assert bool(reached) == (lenet_multiply_adds(*opened) <= limit)
    counts = [int(keep.sum()) for keep in chosen.values()]
    assert min(counts) >= 1
    assert lenet_multiply_adds(*counts) <= limit
    threshold = max(float(m[~chosen[name]].max()) for name, m in aux.items() if not chosen[name].all())
    more = [max(1, int((m >= threshold).sum())) for m in aux.values()]
    assert lenet_multiply_adds(*more) > limit
    for name, m in aux.items():  # a higher one never closes before a lower one, but for a group's last
        if chosen[name].sum() > 1 and not chosen[name].all():
            assert float(m[chosen[name]].min()) >= threshold
    expected = chosen if reached else {name: m > 0 for name, m in aux.items()}
    chex.assert_trees_all_equal({name: m > 0 for name, m in settled.items()}, expected)


def test_seeds_in_a_batch_are_the_seeds_one_by_one():
    batch = [random_gates(seed, mean) for seed, mean in ((10, -0.02), (20, 0.05), (30, -0.05))]
    target = targets.weights(budgets.compression(batch[0].weights, 2.0))
    settle = jax.jit(lambda gated: targets.settle(target, gated))
    together = jax.vmap(settle)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch))
    reached = []
    for seed, gated in enumerate(batch):
        alone = settle(gated)
        chex.assert_trees_all_equal(jax.tree.map(operator.itemgetter(seed), together.aux), alone.aux)
        reached.append(bool(target.reached(alone)))
    assert reached == [True, False, True]


def test_one_and_eight_devices_choose_the_same():
    gated = random_gates(40)
    target = targets.weights(budgets.compression(gated.weights, 2.0))
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    settle = jax.jit(lambda gated: targets.settle(target, gated))
    chex.assert_trees_all_equal(settle(jax.device_put(gated, sharding)).aux, settle(gated).aux)


GATED = Gated(SMALL, AUX)
BUDGET = budgets.Budget({"a": 1, "b": 1, "c": 1}, 2)
WRONG = {
    "ratio is 1": (lambda: budgets.compression(SMALL, 1.0), "ratio=1.0 must be above 1 and at most 13"),
    "ratio is too large": (lambda: budgets.compression(SMALL, 14.0), "ratio=14.0 must be above 1"),
    "ratio is nan": (lambda: budgets.compression(SMALL, math.nan), "ratio=nan"),
    "share is 0": (lambda: budgets.multiply_adds(LENET, DENSE, 0.0), r"share=0.0 must be in \(0, 1\)"),
    "share is 1": (lambda: budgets.multiply_adds(LENET, DENSE, 1.0), "share=1.0"),
    "count of another tree": (
        lambda: budgets.multiply_adds(SMALL, DENSE, 0.5),
        "dense belongs to another tree: .*'b1'",
    ),
    "entries used unequally": (
        lambda: budgets.multiply_adds(SMALL, MultiplyAdds({"a": 7, "b": 0, "c": 4}), 0.5),
        "the 7 multiply-adds of 'a' are not a multiple of its 6 entries",
    ),
    "nothing left": (
        lambda: budgets.multiply_adds(SMALL, MultiplyAdds({"a": 6, "b": 0, "c": 4}, unattributed=20), 0.5),
        "share=0.5 leaves nothing: 20 of 30",
    ),
    "unknown leaf": (lambda: budgets.spent(budgets.Budget({"x": 1}, 0), SMALL, SMALL), "budget.costs has an entry 'x'"),
    "everything is free": (
        lambda: budgets.left(budgets.Budget({}, 0), {n: jnp.asarray(True) for n in SMALL}, SMALL),
        "makes everything free",
    ),
    "no mask": (lambda: budgets.kept(SMALL, SMALL), "mask leaf 'a' has dtype float32"),
    "a huge leaf": (
        lambda: budgets.compression({"a": jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)}, 2.0),
        "leaf 'a' has 4294967296 entries",
    ),
    "out of reach": (lambda: targets.weights(BUDGET).reached(GATED), "limit=2 cannot be reached"),
    "out of reach, choice": (lambda: targets.weights(BUDGET).choose(GATED), "limit=2 cannot be reached"),
    "last units too expensive": (
        lambda: targets.units(budgets.Budget({"c1": 1}, 24), UNITS).reached(
            Gated(LENET, {"conv 1": jnp.ones(20)}),
        ),
        "limit=24 cannot be reached",
    ),
    "aux of no leaf": (
        lambda: targets.weights(BUDGET).reached(Gated(SMALL, {"x": jnp.ones(2)})),
        "aux has an entry 'x'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_target_out_of_reach_is_found_while_tracing():
    with pytest.raises(ValueError, match="limit=2 cannot be reached"):
        jax.eval_shape(lambda aux: targets.settle(targets.weights(BUDGET), Gated(SMALL, aux)), AUX)
