"""Units that a budget allows: brute force over every number of survivors, with multiply-adds from the formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

SHAPES = {"c1": (3, 3, 2, 5), "b1": (5,), "c2": (3, 3, 5, 7), "d": (7 * 4, 6), "b2": (6,), "out": (6, 3)}
PARAMS = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
IMAGES = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
GROUPS = ("c1", "c2", "d")


def network(params, x):
    """Two VALID 3x3 convolutions on 6x6 images, and two dense layers."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["c1"], (1, 1), "VALID", dimension_numbers=numbers)
    x = jax.nn.relu(x + params["b1"].reshape(1, 1, 1, -1))
    x = jax.lax.conv_general_dilated(x, params["c2"], (1, 1), "VALID", dimension_numbers=numbers)
    x = jax.nn.relu(x).reshape(x.shape[0], -1)
    return jax.nn.relu(x @ params["d"] + params["b2"][None]) @ params["out"]


def products(a, b, c):
    """Multiply-adds with so many units in each layer."""
    return 16 * 9 * 2 * a + 4 * 9 * a * b + 4 * b * c + 3 * c


def parameters(a, b, c):
    return (9 * 2 + 1) * a + 9 * a * b + (4 * b + 1) * c + 3 * c


def best(scores, cost, limit, floors):
    """The units that stay: the best of all layers, beside those that the floors keep; the most that cost no more."""
    safe = {name: set(np.argsort(-scores[name], kind="stable")[:n]) for name, n in zip(GROUPS, floors, strict=True)}
    ranked = sorted((-scores[name][i], place, i) for place, name in enumerate(GROUPS) for i in range(len(scores[name])))
    found = None
    for count in range(len(ranked) + 1):
        kept = {name: set(units) for name, units in safe.items()}
        for _, place, i in [entry for entry in ranked if entry[2] not in safe[GROUPS[entry[1]]]][:count]:
            kept[GROUPS[place]].add(i)
        if cost(*(len(kept[name]) for name in GROUPS)) <= limit:
            found = kept
    return found


@pytest.fixture(scope="module")
def graph():
    return sj.units.trace(network, PARAMS, IMAGES)


@pytest.mark.parametrize("floor", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("kind", ["multiply-adds", "parameters"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_best_units_stay_as_the_budget_allows(graph, kind, share, floor):
    dense = sj.report.multiply_adds(network, PARAMS, IMAGES)
    assert dense.total == products(5, 7, 6)
    if kind == "parameters":
        budget, cost = sj.budgets.compression(PARAMS, 1 / share), parameters
        assert budget.limit == math.floor(share * parameters(5, 7, 6))
    else:
        budget, cost = sj.budgets.multiply_adds(PARAMS, dense, share), products
    choose = jax.jit(jax.vmap(lambda scores: sj.units.affordable(graph, scores, budget, floor)))
    rng = np.random.default_rng(0)
    draws = [{name: rng.random(SHAPES[name][-1]).astype(np.float32) for name in GROUPS} for _ in range(6)]
    draws[0]["d"] -= 2.0  # a layer that would go whole
    draws[1]["c2"][:] = draws[1]["c2"][0]  # ties
    together = choose(jax.tree.map(lambda *x: jnp.stack(x), *draws))
    floors = [max(1, math.ceil(round(10 * floor) * SHAPES[name][-1] / 10)) for name in GROUPS]
    for number, scores in enumerate(draws):
        kept = {name: set(np.flatnonzero(alive[number]).tolist()) for name, alive in together.items()}
        assert kept == best(scores, cost, budget.limit, floors), f"draw {number}"


def test_the_smaller_network_meets_the_budget(graph):
    budget = sj.budgets.multiply_adds(PARAMS, sj.report.multiply_adds(network, PARAMS, IMAGES), 0.5)
    keys = jax.random.split(jax.random.key(0), len(GROUPS))
    kept = sj.units.affordable(
        graph, {n: jax.random.uniform(k, SHAPES[n][-1:]) for n, k in zip(GROUPS, keys, strict=True)}, budget
    )
    small = sj.report.multiply_adds(graph.small(kept), sj.shrink(graph, PARAMS, kept), IMAGES)
    assert small.total == products(*(int(kept[name].sum()) for name in GROUPS))
    assert 0.8 * budget.limit < small.total <= budget.limit


def test_nan_goes_and_groups_without_scores_stay_whole(graph):
    budget = sj.budgets.Budget({"d": 1}, limit=4 * 7 * 2)
    kept = sj.units.affordable(graph, {"d": jnp.array([3.0, jnp.nan, 1.0, 2.0, jnp.nan, 0.0])}, budget)
    assert {name: alive.tolist() for name, alive in kept.items()} == {"d": [True, False, False, True, False, False]}


@pytest.mark.parametrize(
    ("scores", "limit", "floor", "message"),
    [
        ({"d": np.ones(6)}, 100, 1.5, "floor=1.5"),
        ({"d": np.ones(6)}, 4 * 7 * 3 - 1, 0.5, "floor=0.5 of every group"),
        ({"x": np.ones(6)}, 100, 0.0, "scores has an entry 'x'"),
        ({"d": np.ones(5)}, 100, 0.0, r"of shape \(5,\)"),
        ({}, 100, 0.0, "has no group"),
    ],
)
def test_what_does_not_fit_is_an_error(graph, scores, limit, floor, message):
    with pytest.raises(ValueError, match=message):
        sj.units.affordable(graph, scores, sj.budgets.Budget({"d": 1}, limit), floor)
