"""Units that are read in loops: statistics and folds against networks written out, or computed in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unit_networks import NETWORKS

import sparsejax as sj

LAYERS, TIME, COUNT = 3, 4, 5
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SCORES = ("mean", "rs", "abs_rs", "mrs", "abs_mrs")


@pytest.fixture(autouse=True)
def strict():
    """Leaves promotion as it is outside: networks are written as users write them."""


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def images(*shape):
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape), jnp.float32)


STACKED = {
    "up": (LAYERS, 3, 6),
    "first": (LAYERS, 6),
    "down": (LAYERS, 6, 3),
    "last": (LAYERS, 3),
    "gamma": (LAYERS, 3),
}
ONCE = {"in": (2, 3), "out": (3, 2), "bias": 2}


def layer(h, p):
    return h + (jax.nn.relu(h @ p["up"] + p["first"]) @ p["down"]) * p["gamma"] + p["last"]


def stacked(p, x):
    layers = {name: p[name] for name in STACKED}
    return (
        jax.lax.scan(lambda h, own: (jax.checkpoint(layer)(h, own), None), x @ p["in"], layers)[0] @ p["out"]
        + p["bias"]
    )


def backwards(p, x):
    """The last layer comes first."""
    layers = {name: p[name] for name in STACKED}
    return (
        jax.lax.scan(lambda h, own: (layer(h, own), None), x @ p["in"], layers, reverse=True)[0] @ p["out"] + p["bias"]
    )


def written_out(order, p, x):
    h = x @ p["in"]
    for i in order:
        h = layer(h, {name: p[name][str(i)] for name in STACKED})
    return h @ p["out"] + p["bias"]


def unstacked(params):
    """The parameters with a leaf for every layer."""
    return {
        name: {str(i): leaf[i] for i in range(LAYERS)} if name in STACKED else leaf for name, leaf in params.items()
    }


def measured(fn, params, x, **options):
    graph = sj.units.trace(fn, params, x)
    return graph, sj.units.statistics(graph, lambda p, x: (fn(p, x) ** 2).sum(-1).mean(), params, [x, x[:2]], **options)


@pytest.mark.parametrize(("fn", "order"), [(stacked, range(LAYERS)), (backwards, range(LAYERS)[::-1])])
def test_scanned_layers_are_those_written_out(fn, order):
    """The hidden units of all layers are one group: what layers of their own would have, summed over them."""
    params, x = drawn(STACKED | ONCE), images(COUNT, 2)
    graph, stats = measured(fn, params, x)
    assert not sj.units.unfoldable(graph)
    apart = unstacked(params)
    other, expected = measured(lambda p, x: written_out(order, p, x), apart, x)
    names = [f"up/{i}" for i in range(LAYERS)]
    assert graph.groups["up"].size == 6
    np.testing.assert_allclose(stats.mean["up"], np.mean([expected.mean[name] for name in names], 0), **CLOSE)
    for score in ("rs", "mrs"):
        np.testing.assert_allclose(
            getattr(stats, score)["up"], sum(getattr(expected, score)[n] for n in names), **CLOSE
        )
    for score in SCORES:  # of the residual stream, which is one group in both
        np.testing.assert_allclose(getattr(stats, score)["in"], getattr(expected, score)["in"], **CLOSE)

    alive = jnp.array([True, False, True, True, False, True])
    kept = {"up": alive, "in": jnp.array([True, True, False])}
    new = sj.units.remove(graph, params, kept, "mean", stats)
    folded = sj.units.remove(other, apart, dict.fromkeys(names, alive) | {"in": kept["in"]}, "mean", expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), unstacked(new), folded)
    assert np.abs(new["last"] - params["last"]).max() > 0.1
    small = graph.small(kept)(sj.shrink(graph, new, kept), x)
    np.testing.assert_allclose(small, fn(new, x), **CLOSE)
    exact, maps = sj.units.bias_maps(graph, params, kept, stats)
    assert not maps
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), exact, new)


def test_absolute_scores_of_scanned_layers_take_the_sum_over_layers_first():
    """As everywhere in which several parameters read a unit."""
    params, x = drawn(STACKED | ONCE), images(COUNT, 2)
    _, stats = measured(stacked, params, x)
    per_example = []
    for batch in (x, x[:2]):
        for i in range(len(batch)):
            one = sj.units.statistics(
                sj.units.trace(stacked, params, x),
                lambda p, x: (stacked(p, x) ** 2).sum(-1).mean(),
                params,
                [batch[i : i + 1]],
            )
            per_example.append(np.abs(one.rs["up"]))
    np.testing.assert_allclose(stats.abs_rs["up"], np.mean(per_example, 0), **CLOSE)


def test_constant_units_of_scanned_layers_go_and_nothing_changes():
    params, x = drawn(STACKED | ONCE), images(COUNT, 2)
    params["up"] = params["up"].at[:, :, [1, 4]].set(0)
    params["first"] = jnp.abs(params["first"])
    graph, stats = measured(stacked, params, x)
    new = sj.units.remove(graph, params, {"up": jnp.arange(6) % 3 != 1}, "mean", stats)
    for inputs in (x, -x):
        np.testing.assert_allclose(stacked(new, inputs), stacked(params, inputs), rtol=1e-4, atol=1e-4)
    zero = sj.units.remove(graph, params, {"up": jnp.arange(6) % 3 != 1})
    assert np.abs(stacked(zero, x) - stacked(params, x)).max() > 0.1


@pytest.mark.parametrize("at", ["consumer_input", "position", "activation"])
def test_scanned_layers_of_flax(at):
    fn, params, args = NETWORKS["scanned_layers"]()
    graph, stats = measured(fn, params, *args, at=at)
    assert not sj.units.unfoldable(graph)
    assert stats.mean.keys() == graph.groups.keys()
    kept = sj.units.lowest(stats.abs_mrs, 0.25)
    new = sj.units.remove(graph, params, kept, "mean", stats)
    small = graph.small(kept)(sj.shrink(graph, new, kept), *args)
    np.testing.assert_allclose(small, fn(new, *args), rtol=1e-4, atol=1e-4)


CELL = {"in": (2, 6), "first": 6, "from": (6, 3), "again": (3, 3), "bias": 3, "out": (3, 2), "last": 2}


def recurrent(p, x):
    """A cell that reads units of its own step, and its state: x is (examples, time, features)."""

    def turn(h, x):
        u = jax.nn.relu(x @ p["in"] + p["first"])
        h = jnp.tanh(u @ p["from"] + (h @ p["again"] + p["bias"]))
        return h, h

    start = jnp.zeros((x.shape[0], 3))
    return jax.lax.scan(turn, start, x.swapaxes(0, 1))[1].mean(0) @ p["out"] + p["last"]


def unrolled(p, x, change):
    """The same, with `change(kind, step, values)` in the place of what is read."""
    h, states = np.zeros((len(x), 3)), []
    for t in range(x.shape[1]):
        u = change("u", t, np.maximum(x[:, t] @ p["in"] + p["first"], 0))
        h = np.tanh(u @ p["from"] + (change("h", t, h) @ p["again"] + p["bias"]))
        states.append(h)
    return change("last", 0, np.mean(states, 0)) @ p["out"] + p["last"]


def loss_of(p, x, change):
    return (unrolled(p, x, change) ** 2).sum(-1)  # one for every example


def seen(p, x):
    """What is read in every step, and the derivative of every example's loss by it."""
    values, gradients = {}, {}
    unrolled(p, x, lambda kind, t, a: values.setdefault((kind, t), a))
    for (kind, t), a in values.items():
        gradients[kind, t] = np.zeros_like(a)
        for u in range(a.shape[1]):
            two = []
            for step in (1e-5, -1e-5):
                here = np.eye(a.shape[1])[u] * step
                two.append(loss_of(p, x, lambda k, s, b, at=(kind, t), here=here: b + here if (k, s) == at else b))
            gradients[kind, t][:, u] = (two[0] - two[1]) / 2e-5
    return values, gradients


def test_a_recurrent_cell_against_loops():
    """Means are over examples and time, saliencies are summed over time; the state is read outside the loop, too."""
    params, x = drawn(CELL), images(COUNT, TIME, 2)
    graph = sj.units.trace(recurrent, params, x)
    assert not sj.units.unfoldable(graph)
    stats = sj.units.statistics(graph, lambda p, x: (recurrent(p, x) ** 2).sum(-1).mean(), params, [x])
    p = {name: np.asarray(leaf, float) for name, leaf in params.items()}
    values, gradients = seen(p, np.asarray(x, float))

    def expected(readers):
        """Of readers, which are the steps at which the same weights read a unit."""
        abar = [np.mean([values[at] for at in steps], (0, 1)) for steps in readers]
        rs = sum(-values[at] * gradients[at] for steps in readers for at in steps)
        mrs = sum((a - values[at]) * gradients[at] for a, steps in zip(abar, readers, strict=True) for at in steps)
        found = {"mean": np.mean(abar, 0), "rs": rs.mean(0), "abs_rs": np.abs(rs).mean(0), "mrs": mrs.mean(0)}
        return found | {"abs_mrs": np.abs(mrs).mean(0)}

    (state,) = (name for name in graph.groups if graph.groups[name].size == 3)
    in_time = {kind: [(kind, t) for t in range(TIME)] for kind in "uh"}
    for group, readers in (("in", [in_time["u"]]), (state, [in_time["h"], [("last", 0)]])):
        for score, wanted in expected(readers).items():
            np.testing.assert_allclose(getattr(stats, score)[group], wanted, rtol=2e-3, atol=1e-4, err_msg=score)

    kept = {"in": jnp.array([True, False, True, False, True, True]), state: jnp.array([False, True, True])}
    new = sj.units.remove(graph, params, kept, "mean", stats)
    abar = {kind: np.mean([values[at] for at in steps], (0, 1)) for kind, steps in in_time.items()}
    delta = abar["u"][1] * p["from"][1] + abar["u"][3] * p["from"][3] + abar["h"][0] * p["again"][0]
    alive = np.array([False, True, True])
    np.testing.assert_allclose(new["bias"], np.where(alive, p["bias"] + delta, 0), **CLOSE)
    last = p["last"] + values["last", 0].mean(0)[0] * p["out"][0]
    np.testing.assert_allclose(new["last"], last, **CLOSE)
    small = graph.small(kept)(sj.shrink(graph, new, kept), x)
    np.testing.assert_allclose(small, recurrent(new, x), **CLOSE)


def test_constant_units_of_a_cell_go_and_nothing_changes():
    params, x = drawn(CELL), images(COUNT, TIME, 2)
    params |= {"in": params["in"].at[:, [1, 3]].set(0), "first": jnp.abs(params["first"])}
    graph, stats = measured(recurrent, params, x)
    kept = {"in": jnp.array([True, False, True, False, True, True])}
    for new in (sj.units.remove(graph, params, kept, "mean", stats), sj.units.bias_maps(graph, params, kept, stats)[0]):
        np.testing.assert_allclose(recurrent(new, -x), recurrent(params, -x), **CLOSE)


def layers_in_time(p, x):
    """A scan over stacked layers in each turn of a scan over time; biases are shared by the layers."""

    def turn(h, x):
        def one(h, own):
            return jnp.tanh(jax.nn.relu(h @ own["up"] + own["first"]) @ own["down"] + p["shared"]), None

        h, _ = jax.lax.scan(one, h + x, {name: p[name] for name in ("up", "first", "down")})
        return h, h

    return jax.lax.scan(turn, jnp.zeros((x.shape[0], 3)), x.swapaxes(0, 1))[1].sum(0)


def test_loops_in_loops():
    shapes = {name: STACKED[name] for name in ("up", "first", "down")} | {"shared": 3}
    params, x = drawn(shapes), images(COUNT, TIME, 3)
    graph, stats = measured(layers_in_time, params, x)
    h, seen = np.zeros((COUNT, 3)), np.zeros((TIME, LAYERS, COUNT, 6))
    p = {name: np.asarray(leaf, float) for name, leaf in params.items()}
    for t in range(TIME):
        h = h + np.asarray(x[:, t], float)
        for i in range(LAYERS):
            seen[t, i] = np.maximum(h @ p["up"][i] + p["first"][i], 0)
            h = np.tanh(seen[t, i] @ p["down"][i] + p["shared"])
    weight = np.array([2, 2, 1, 1, 1]) / 7  # the first two examples are in both batches
    means = np.einsum("tlnu,n->lu", seen, weight) / TIME
    assert stats.inputs["down[1]"].shape == (1, LAYERS, 1, 6)
    np.testing.assert_allclose(stats.inputs["down[1]"][0, :, 0], means, **CLOSE)
    kept = {"up": jnp.arange(6) > 1}
    new = sj.units.remove(graph, params, kept, "mean", stats)
    delta = sum(means[i, u] * p["down"][i, u] for i in range(LAYERS) for u in (0, 1)) / LAYERS
    np.testing.assert_allclose(new["shared"], p["shared"] + delta, **CLOSE)
    with pytest.raises(ValueError, match=r"{'down\[1\]': 'shared can take a mean over turns or positions only'}"):
        sj.units.bias_maps(graph, params, kept, stats)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_cells_of_flax_have_statistics(name):
    fn, params, args = NETWORKS[name]()
    graph, stats = measured(fn, params, *args)
    assert stats.mean.keys() == graph.groups.keys()
    foldable = graph.groups.keys() - sj.units.unfoldable(graph).keys()
    assert foldable if name == "gru" else True


def in_while(p, x):
    h = jnp.tanh(x @ p["unit"])
    y = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + h @ p["out"] + p["bias"]), (0, x))[1]
    return y, h


def in_branch(p, x):
    h = jnp.tanh(x @ p["unit"])
    return jax.lax.cond(x[0, 0] > 0, lambda h: h @ p["out"] + p["bias"], lambda h: jnp.zeros((COUNT, 2)), h), h


def over_examples(p, x):
    def one(_, x):
        return None, jnp.tanh(x @ p["unit"]) @ p["out"] + p["bias"]

    return jax.lax.scan(one, None, x)[1], None


def weights_in_the_carry(p, x):
    h = jnp.tanh(x @ p["unit"])

    def turn(carry, _):
        weights, y = carry
        return (weights * 0.5, y + (h @ weights + p["bias"])), None

    return jax.lax.scan(turn, (p["out"], x), None, length=3)[0][1], h


def out_of_the_loop(p, x):
    h = jnp.tanh(x @ p["unit"])
    return jax.lax.scan(lambda c, _: (c, h @ p["out"]), 0, None, length=3)[1].sum(0) + p["bias"], h


UNSEEN = {
    "while": (in_while, "it is in a while loop or a branch", "in a while loop or a branch, where the number of turns"),
    "cond": (in_branch, "it is in a while loop or a branch", "in a while loop or a branch, where the number of turns"),
    "examples": (over_examples, None, "the examples of a batch are no axis there"),
    "carried weights": (weights_in_the_carry, "its weights come from an earlier turn of a loop", None),
    "taken out": (out_of_the_loop, "its result is carried on by a loop before a parameter is added", None),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_other_loops_are_reported(name):
    fn, unfoldable, unseen = UNSEEN[name]
    params, x = drawn({"unit": (2, 4), "out": (4, 2), "bias": 2, "more": (4, 3), "end": 3}), images(COUNT, 2)

    def both(p, x):  # the units are read outside the loop, too
        y, h = fn(p, x)
        return y if h is None else (y, h @ p["more"] + p["end"])

    params = {n: leaf for n, leaf in params.items() if n not in ("more", "end") or name != "examples"}
    graph = sj.units.trace(both, params, x)
    kept = {"unit": jnp.arange(4) > 0}
    found = sj.units.unfoldable(graph)
    assert found == ({"unit": (f"out[0]: {unfoldable}",)} if unfoldable else {})

    def loss(p, x):  # without derivatives of the loops
        return sum(y.sum() for y in jax.tree.leaves(both(p, x))) / x.shape[0]

    def measure(**options):
        return sj.units.statistics(graph, loss, params, [x], **options)

    if unseen:
        with pytest.raises(ValueError, match=rf"units of \['unit'\] are read .*out\[0\].*{unseen}.*unseen='drop'"):
            measure()
        stats = measure(unseen="drop")
        assert "unit" not in stats.mean
        assert "unit" not in stats.abs_rs
    else:
        stats = measure()
    message = unfoldable or r"stats knows nothing of what \['out\[0\]'\] read"
    with pytest.raises(ValueError, match=message):
        sj.units.remove(graph, params, kept, "mean", stats)
    with pytest.raises(ValueError, match=message):
        sj.units.bias_maps(graph, params, kept, stats)
