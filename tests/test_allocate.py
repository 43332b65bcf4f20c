"""Allocations against a bisection, against the published iteration, and against counts by hand."""

import math

import jax
import jax.numpy as jnp
import laws
import numpy as np
import oracles
import pytest

from sparsejax import allocate, report, tree


def shapes(**named):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in named.items()}


LENET = shapes(a=(784, 300), b=(300, 100), c=(100, 10), bias=(300,))
CONV = shapes(stem=(3, 3, 3, 16), body=(3, 3, 16, 64), point=(1, 1, 64, 32), head=(32, 10), scale=(64,), bias=(10,))
TINY = shapes(a=(2, 4), b=(3, 6), c=(2, 4, 6))
MACS = {"stem": 432 * 1024, "body": 9216 * 256, "point": 2048 * 64, "head": 320, "scale": 0, "bias": 0}

RULES = {
    "uniform": (allocate.uniform, lambda shape: 1.0),
    "erdos_renyi": (allocate.erdos_renyi, lambda shape: sum(shape) / math.prod(shape)),
    "proportional": (
        lambda params, sparsity, **options: allocate.proportional(
            params, sparsity, lambda name, shape: shape[-1] ** -0.5, **options
        ),
        lambda shape: shape[-1] ** -0.5,
    ),
}
BUDGETS = {
    "prunable": (lambda counts: allocate.prunable_parameters, lambda sizes, counts, prunable: (sizes, sizes, prunable)),
    "all": (lambda counts: allocate.all_parameters, lambda sizes, counts, prunable: (sizes, sizes, list(sizes))),
    "multiply-adds": (allocate.multiply_adds, lambda sizes, counts, prunable: (counts, counts, list(sizes))),
}


def expected_densities(name, params, kept, counts, floor, prunable, budget):
    sizes = {leaf: math.prod(value.shape) for leaf, value in params.items()}
    costs, totals, of = BUDGETS[budget][1](sizes, counts.by_leaf, prunable)
    total = sum(totals[leaf] for leaf in of) + (counts.unattributed if budget == "multiply-adds" else 0)
    fixed = total - sum(costs[leaf] for leaf in prunable)
    ratios = [RULES[name][1](params[leaf].shape) for leaf in prunable]
    wanted = kept * total - fixed
    return oracles.fill([costs[leaf] for leaf in prunable], ratios, [floor] * len(prunable), wanted), wanted, costs


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("floor", [0.0, 0.03])
def test_it_is_the_bisection_and_meets_the_budget(rule, budget, sparsity, floor):
    counts = report.MultiplyAdds(MACS, unattributed=5000)
    prunable = ["body", "head", "point", "stem"]
    expected, wanted, costs = expected_densities(rule, CONV, 1 - sparsity, counts, floor, prunable, budget)
    got = RULES[rule][0](CONV, sparsity, of=BUDGETS[budget][0](counts), floor=floor)
    assert all(type(share) is float for share in got.values())
    assert got["scale"] == got["bias"] == 0.0
    np.testing.assert_allclose([1 - got[leaf] for leaf in prunable], expected, rtol=1e-9, atol=1e-12)
    kept = math.fsum(costs[leaf] * (1 - got[leaf]) for leaf in prunable)
    np.testing.assert_allclose(kept, wanted, rtol=1e-12)


@pytest.mark.parametrize("params", [LENET, CONV, TINY], ids=["lenet", "conv", "tiny"])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8, 0.9, 0.98])
def test_erdos_renyi_is_the_published_iteration(params, sparsity):
    matrices = {name: leaf.shape for name, leaf in params.items() if len(leaf.shape) > 1}
    got = allocate.erdos_renyi(params, sparsity)
    expected = oracles.erdos_renyi_kernel(matrices, sparsity)
    np.testing.assert_allclose([got[name] for name in matrices], list(expected.values()), rtol=1e-9, atol=1e-12)


def test_erdos_renyi_by_hand():
    """Half of 74 weights are 37; `a` is dense with 8 of them, and the other 29 are to the sums 9 and 12 of the axes."""
    expected = {"a": 0.0, "b": 1 - 9 * 29 / 21 / 18, "c": 1 - 12 * 29 / 21 / 48}
    assert allocate.erdos_renyi(TINY, 0.5) == pytest.approx(expected, rel=1e-12)


def test_a_relative_density_of_ones_own():
    """Without the kernel's axes, as first published; and for layers stacked along the first axis."""
    first = allocate.proportional(TINY, 0.5, lambda name, shape: sum(shape[-2:]) / math.prod(shape[-2:]))
    np.testing.assert_allclose(list(first.values()), [0.21, 0.47, 0.56], atol=5e-3)
    stacked, flat = shapes(a=(5, 30, 40), b=(20, 9)), shapes(**{f"a{i}": (30, 40) for i in range(5)}, b=(20, 9))
    got = allocate.proportional(stacked, 0.8, lambda name, shape: sum(shape[-2:]) / math.prod(shape[-2:]))
    expected = allocate.erdos_renyi(flat, 0.8)
    np.testing.assert_allclose([got["a"], got["b"]], [expected["a0"], expected["b"]], rtol=1e-12)


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.7, 0.9, 0.99, 1 / 3])
def test_uniform_is_the_number_asked_for_to_the_last_bit(sparsity):
    assert set(allocate.uniform(CONV, sparsity).values()) == {0.0, sparsity}


@pytest.mark.parametrize("view", laws.TREES)
@pytest.mark.parametrize("rule", [allocate.uniform, allocate.erdos_renyi])
def test_every_tree_gets_a_tree_of_floats(view, rule):
    make, prunable = laws.TREES[view]
    params = make(jnp.bfloat16)
    got = rule(params, 0.7)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    assert {name for name, share in tree.named(got).items() if share > 0} == set(prunable)
    assert rule(jax.eval_shape(lambda: params), 0.7) == got


def test_floors_of_single_leaves_are_kept_and_the_others_pay():
    got = allocate.uniform(LENET, 0.9, floor={"c": 0.6})
    assert got["c"] == 0.4
    assert got["a"] == got["b"] == pytest.approx((0.9 * 266_200 - 0.4 * 1000) / 265_200, rel=1e-12)


def test_more_sparsity_never_gives_a_leaf_more():
    steps = [allocate.erdos_renyi(CONV, s / 20, floor=0.02) for s in range(20)]
    for name in CONV:
        shares = [step[name] for step in steps]
        assert shares == sorted(shares)


def test_the_budget_of_multiply_adds_is_the_speedup_of_the_report():
    def network(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"] + params["bias"][None]

    params = {"a": jnp.ones((20, 50)), "b": jnp.ones((50, 10)), "bias": jnp.ones(10)}
    counts = report.multiply_adds(network, params, jnp.ones((1, 20)))
    shares = allocate.erdos_renyi(params, 0.8, of=allocate.multiply_adds(counts))
    pruned = {
        name: leaf.ravel().at[: round(shares[name] * leaf.size)].set(0).reshape(leaf.shape)
        for name, leaf in params.items()
    }
    assert report.count(pruned, multiply_adds=counts).theoretical_speedup == pytest.approx(5, rel=5e-3)


def test_a_budget_of_all_parameters_is_the_sparsity_of_the_report():
    params = {"a": jnp.ones((40, 50)), "b": jnp.ones((50, 10)), "bias": jnp.ones(500)}
    shares = allocate.uniform(params, 0.6, of=allocate.all_parameters)
    pruned = {
        name: leaf.ravel().at[: round(shares[name] * leaf.size)].set(0).reshape(leaf.shape)
        for name, leaf in params.items()
    }
    assert report.count(pruned).sparsity == pytest.approx(0.6, abs=1e-3)


def test_keys_are_no_parameters():
    params = {"a": jnp.ones((4, 5)), "key": jax.random.key(0)}
    assert allocate.uniform(params, 0.5, of=allocate.all_parameters) == {"a": 0.5, "key": 0.0}


COUNTS = report.MultiplyAdds(MACS, unattributed=0)
WRONG = {
    "all of it": (lambda: allocate.uniform(LENET, 1.0), r"sparsity=1.0 must be a number in \[0, 1\)"),
    "per cent": (lambda: allocate.uniform(LENET, 90), "sparsity=90"),
    "negative": (lambda: allocate.erdos_renyi(LENET, -0.1), "sparsity=-0.1"),
    "nan": (lambda: allocate.erdos_renyi(LENET, math.nan), "sparsity=nan"),
    "traced": (lambda: jax.jit(lambda s: allocate.uniform(LENET, s))(0.5), "known when tracing"),
    "too many left alone": (
        lambda: allocate.uniform(CONV, 0.999, of=allocate.all_parameters),
        "at most 0.993[0-9]* is reachable",
    ),
    "floors too high": (lambda: allocate.erdos_renyi(LENET, 0.95, floor=0.1), "at most 0.9 is reachable"),
    "no product": (
        lambda: allocate.uniform(CONV, 0.5, "scale", of=allocate.multiply_adds(COUNTS)),
        "at most 0 is reachable",
    ),
    "products of another tree": (
        lambda: allocate.uniform(LENET, 0.5, of=allocate.multiply_adds(COUNTS)),
        r"belongs to another tree: \['a', 'b'",
    ),
    "a floor above one": (lambda: allocate.uniform(LENET, 0.5, floor=1.5), "floor=1.5 of leaf 'a'"),
    "a floor of what is not pruned": (lambda: allocate.uniform(LENET, 0.5, floor={"bias": 0.5}), "entry 'bias'"),
    "no density": (lambda: allocate.proportional(LENET, 0.5, lambda name, shape: 0), "'a', ...\\) is 0; it must"),
    "nothing selected": (lambda: allocate.uniform(LENET, 0.5, "kernel"), "'kernel' matches no leaf"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
