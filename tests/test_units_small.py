"""The smaller network as an ordinary function: transformed, trained, exported; and what is said of wrong calls."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit_networks import drawn, images, shaped

import sparsejax as sj
from sparsejax.units.program import equations_of
from sparsejax.units.replay import run
from sparsejax.units.resizing import Plan

X = images(4, 6)


def plain(p, x):
    h = jax.nn.relu(x @ p["first"]["w"] + p["first"]["b"])
    h = jax.nn.silu(h @ p["second"]["w"] + p["second"]["b"])
    return h @ p["last"]["w"]


SHAPES = shaped({
    "first": {"w": (6, 8), "b": (1, 8)},
    "second": {"w": (8, 5), "b": (1, 5)},
    "last": {"w": (5, 3)},
})  # fmt: skip
KEPT = {"first": np.arange(8) % 3 != 0, "second": np.arange(5) != 2}
PARAMS = drawn(SHAPES)


@pytest.fixture(scope="module")
def graph():
    return sj.units.trace(plain, SHAPES, jax.ShapeDtypeStruct(X.shape, X.dtype))


@pytest.fixture(scope="module")
def masked(graph):
    return sj.apply(graph.push(KEPT), PARAMS)


@pytest.fixture(scope="module")
def small(graph):
    return sj.shrink(graph, PARAMS, KEPT)


def assert_close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance), actual, expected)


def jacobian(fn):
    return lambda p, x: jax.jacfwd(fn, argnums=1)(p, x)


def hessian_product(fn):
    def loss(p, x):
        return jnp.square(fn(p, x)).sum()

    return lambda p, x: jax.jvp(lambda x: jax.grad(loss, argnums=1)(p, x), (x,), (jnp.ones_like(x),))[1]


TRANSFORMATIONS = {
    "eagerly": (lambda fn: fn, X),
    "jit": (jax.jit, X),
    "grad": (lambda fn: jax.jit(jax.grad(lambda p, x: jnp.sin(fn(p, x)).sum(), argnums=1)), X),
    "forward": (lambda fn: jax.jit(jacobian(fn)), X[:1]),
    "second derivative": (lambda fn: jax.jit(hessian_product(fn)), X),
    "vmap": (lambda fn: jax.jit(jax.vmap(fn, (None, 0))), X[:, None]),
    "vmap of rows": (lambda fn: jax.vmap(fn, (None, 0)), X),
    "remat": (lambda fn: jax.jit(jax.grad(lambda p, x: jax.checkpoint(fn)(p, x).sum(), argnums=1)), X),
    "scan": (lambda fn: lambda p, x: jax.lax.scan(lambda c, row: (c, fn(p, row)), 0, x)[1], X[:, None]),
    "one example": (jax.jit, X[:1]),
    "no batch axis": (jax.jit, X[0]),
    "NumPy arrays": (lambda fn: fn, np.asarray(X)),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_it_is_an_ordinary_function(name, graph, masked, small):
    transform, x = TRANSFORMATIONS[name]
    run = plain if name != "no batch axis" and name != "vmap of rows" else lambda p, x: plain(p, x[None])[0]
    traced = graph if run is plain else sj.units.trace(run, SHAPES, X[0])
    expected = transform(run)(masked, x)
    assert_close(transform(traced.small(KEPT))(small, x), expected)
    assert np.abs(expected).max() > 1e-3


def test_bfloat16_stays_bfloat16(graph):
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (PARAMS, X))
    half = sj.units.trace(plain, params, x)
    out = half.small(KEPT)(sj.shrink(half, params, KEPT), x)
    assert out.dtype == jnp.bfloat16
    expected = plain(sj.apply(half.push(KEPT), params), x)
    np.testing.assert_allclose(out.astype(jnp.float32), expected.astype(jnp.float32), atol=0.2)


def test_it_equals_the_masked_network_in_float64():
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (PARAMS, X))
        graph = sj.units.trace(plain, params, x)
        out = graph.small(KEPT)(sj.shrink(graph, params, KEPT), x)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, plain(sj.apply(graph.push(KEPT), params), x), rtol=1e-13)


def test_a_function_is_traced_once_for_each_shape(small):
    count = []

    def fn(p, x):
        count.append(x.shape)
        return plain(p, x)

    small_fn = sj.units.trace(fn, SHAPES, X).small(KEPT)
    for x in (X, X[:2], X, X[:2], X + 1):
        small_fn(small, x)
    assert count == [(4, 6), (2, 6)]


def test_a_function_may_close_over_what_is_traced(small):
    """Its trace then belongs to the call, and must not be kept."""

    def scaled(scale, params, fn):
        return fn(sj.units.trace(lambda p, x: plain(p, x) * scale, SHAPES, X), params)

    run = jax.jit(lambda scale: scaled(scale, small, lambda graph, p: graph.small(KEPT)(p, X)))
    graph = sj.units.trace(plain, SHAPES, X)
    expected = graph.small(KEPT)(small, X)
    assert_close(run(2.0), 2 * expected)
    assert_close(run(3.0), 3 * expected)


def test_it_is_exported(graph, masked, small):
    small_fn = jax.jit(graph.small(KEPT))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (small, X))
    exported = jax.export.export(small_fn)(*shapes)
    assert exported.in_avals[0].shape in {(5,), (1, 5)}
    assert_close(exported.call(small, X), plain(masked, X))


def test_it_is_exported_for_any_batch(masked, small):
    def fn(p, x):
        h = jax.nn.relu(x @ p["first"]["w"] + p["first"]["b"])
        h = jnp.concatenate([h[:, :3], h[:, 3:]], axis=1)[:, ::-1][:, ::-1]
        h = (jnp.pad(h.reshape(h.shape[0], 1, 8), ((0, 0), (1, 0), (0, 0))) * 1.0)[:, 1]
        return jax.nn.silu(h @ p["second"]["w"] + p["second"]["b"]) @ p["last"]["w"]

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), small)
    small_fn = jax.jit(sj.units.trace(fn, SHAPES, X).small(KEPT))
    exported = jax.export.export(small_fn)(shapes, jax.ShapeDtypeStruct((batch, 6), X.dtype))
    for x in (X, X[:3]):
        assert_close(exported.call(small, x), plain(masked, x))


def test_shapes_shrink_to_shapes(graph, small):
    expected = jax.tree.map(jnp.shape, small)
    assert jax.tree.map(jnp.shape, sj.shrink(graph, SHAPES, KEPT)) == expected
    assert jax.tree.map(jnp.shape, jax.jit(lambda p: sj.shrink(graph, p, KEPT))(PARAMS)) == expected


def test_no_units_gone_is_the_network_itself(graph):
    everything = {name: np.ones(group.size, bool) for name, group in graph.groups.items()}
    for kept in ({}, everything):
        assert_close(sj.shrink(graph, PARAMS, kept), PARAMS)
        assert_close(graph.small(kept)(PARAMS, X), plain(PARAMS, X))
        assert all(jax.tree.leaves(jax.tree.map(lambda mask: bool(mask.all()), graph.push(kept))))


def test_units_may_go_that_nobody_reads():
    """The axis of the leaf that reads the others then stays whole."""

    def fn(p, x):
        return jnp.tanh(x @ p["first"]["w"])[:, :5] @ p["last"]["w"]

    params = {name: {"w": PARAMS[name]["w"]} for name in ("first", "last")}
    graph, kept = sj.units.trace(fn, params, X), {"first": np.arange(8) < 5}
    small = sj.shrink(graph, params, kept)
    assert (small["first"]["w"].shape, small["last"]["w"].shape) == ((6, 5), (5, 3))
    assert_close(graph.small(kept)(small, X), fn(params, X))


def test_parts_of_the_program_that_are_made_anew_stay_what_they_were(small):
    @jax.custom_vjp
    def twice(x):
        return 2 * x

    twice.defvjp(lambda x: (twice(x), None), lambda _, g: (g,))

    def fn(p, x):
        h = jax.checkpoint(lambda h: jnp.sin(h @ p["first"]["w"]))(x)
        return twice(h @ p["second"]["w"]) @ p["last"]["w"]

    without_biases = {name: {"w": SHAPES[name]["w"]} for name in SHAPES}
    small = {name: {"w": small[name]["w"]} for name in small}
    graph = sj.units.trace(fn, without_biases, X)
    jaxpr = str(jax.make_jaxpr(graph.small(KEPT))(small, X))
    assert "checkpoint" in jaxpr or "remat" in jaxpr
    assert "custom_vjp_call" in jaxpr
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: graph.small(KEPT)(small, x), (X,), (X,))


class Trained(nn.Module):
    """Convolutions with batch norm and dropout, as they are trained."""

    @nn.compact
    def __call__(self, x, train):
        for width in (6, 8):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.8)(x))
            x = nn.Dropout(0.3, deterministic=not train)(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_training_goes_on_as_that_of_the_masked_network():
    """Running statistics, dropout and momentum included; the mask holds the gradients of the larger one."""
    model, x, y = Trained(), images(4, 5, 5, 2), jnp.array([0, 1, 2, 1])
    variables = drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), x, False)))

    def forward(variables, x, key):
        return model.apply(variables, x, True, rngs={"dropout": key}, mutable=["batch_stats"])

    graph = sj.units.trace(forward, variables, x, jax.random.key(0))
    assert sorted(graph.program.returned) == [f"batch_stats/BatchNorm_{i}/{s}" for i in (0, 1) for s in ("mean", "var")]
    assert {name: group.size for name, group in graph.groups.items()} == {"params/Conv_0": 6, "params/Conv_1": 8}
    tx = optax.chain(optax.clip(1.0), optax.trace(0.9), optax.scale(-0.1))

    def steps(fn, variables, state, mask):
        def loss(params, stats, key):
            logits, stats = fn({"params": params, **stats}, x, key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), stats

        @jax.jit
        def step(variables, state, key):
            params, stats = variables["params"], {"batch_stats": variables["batch_stats"]}
            grads, stats = jax.grad(loss, has_aux=True)(params, stats, key)
            updates, state = tx.update(sj.apply(mask["params"], grads), state, params)
            return {"params": optax.apply_updates(params, updates), **stats}, state

        for i in range(3):
            variables, state = step(variables, state, jax.random.key(i))
        return variables, state

    everything = jax.tree.map(lambda _: jnp.asarray(True), variables)
    variables, state = steps(forward, variables, tx.init(variables["params"]), everything)
    kept = {"params/Conv_0": np.arange(6) != 1, "params/Conv_1": np.arange(8) % 2 == 0}
    mask = graph.push(kept)
    masked_state = (state[0], optax.TraceState(sj.apply(mask["params"], state[1].trace)), state[2])

    small, small_state = (sj.shrink(graph, tree, kept) for tree in (variables, masked_state))
    whole, whole_state = steps(forward, sj.apply(mask, variables), masked_state, mask)
    smaller = steps(graph.small(kept), small, small_state, jax.tree.map(lambda _: jnp.asarray(True), small))
    expected = sj.shrink(graph, whole, kept), sj.shrink(graph, whole_state, kept)
    assert_close(smaller, expected, 1e-4)
    assert np.abs(smaller[0]["params"]["Dense_0"]["kernel"] - small["params"]["Dense_0"]["kernel"]).max() > 1e-3


def first_only(tree):
    return {name: jax.tree.map(lambda _, name=name: name == "first", part) for name, part in tree.items()}


STATES = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(1e-3),
    "a chain": optax.chain(optax.clip(1.0), optax.adamw(1e-3), optax.ema(0.9)),
    "masked": optax.masked(optax.adam(1e-3), first_only),
    "several": optax.multi_transform(
        {"a": optax.adam(1e-3), "b": optax.sgd(0.1)},
        lambda tree: {name: jax.tree.map(lambda _, n=name: "a" if n == "last" else "b", p) for name, p in tree.items()},
    ),
    "every second step": optax.MultiSteps(optax.adam(1e-3), 2),
}


@pytest.mark.parametrize("name", STATES)
def test_states_of_optimizers_shrink_to_those_of_the_smaller_parameters(name, graph, small):
    state = STATES[name].init(PARAMS)
    actual, expected = sj.shrink(graph, state, KEPT), STATES[name].init(small)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert jax.tree.map(jnp.shape, actual) == jax.tree.map(jnp.shape, expected)


def test_averages_and_masks_shrink_with_the_parameters(graph, small):
    average = {"average": jax.tree.map(lambda leaf: 2 * leaf, PARAMS), "count": jnp.int32(3)}
    assert_close(sj.shrink(graph, average, KEPT), {"average": jax.tree.map(lambda leaf: 2 * leaf, small), "count": 3})
    rule = sj.rules.prune_to(0.5)
    state = sj.sparsify(optax.adam(1e-3), rule, when=sj.schedules.every(10)).init(PARAMS)
    shrunk = sj.find_mask(sj.shrink(graph, state, KEPT))
    assert sj.masks.check(shrunk, small) is None


def of_traced(graph):
    return jax.jit(lambda kept: sj.shrink(graph, PARAMS, {"first": kept}))(KEPT["first"])


WRONG = {
    "no such group": (lambda g: g.small({"x": KEPT["first"]}), r"'x' that is not a group; the groups are \['first'"),
    "not bool": (lambda g: g.small({"first": np.ones(8)}), r"kept\['first'\] is float64 .*; it must be bool"),
    "not its size": (lambda g: g.push({"first": KEPT["second"]}), r"it must be bool of shape \(8,\)"),
    "nothing kept": (lambda g: sj.shrink(g, PARAMS, {"first": np.zeros(8, bool)}), "keeps no unit"),
    "traced": (of_traced, r"kept\['first'\] is traced, .* choose the units outside of jit"),
    "whole parameters": (lambda g: g.small(KEPT)(PARAMS, X), r"leaf 'first/b' has shape \(1, 8\), but .* \(1, 5\)"),
    "other structure": (lambda g: g.small(KEPT)({"first": PARAMS["first"]}, X), "params must have the structure"),
    "no parameters": (lambda g: sj.shrink(g, {"x": jnp.ones(8)}, KEPT), "no leaf of the tree is named"),
    "factored state": (
        lambda g: sj.shrink(g, {"v_row": {"first": {"w": jnp.ones(6)}}}, KEPT),
        r"leaf 'v_row/first/w' has shape \(6,\), but is named like the parameter 'first/w' of shape \(6, 8\)",
    ),
    "no leaves": (lambda g: sj.units.trace(plain, {}, X), "params={} has no leaves"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name, graph):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call(graph)


def test_shapes_at_which_units_cannot_be_removed_are_refused():
    """Of one example the last axis is sorted; of several it is not."""

    def fn(p, x):
        h = jnp.tanh(x @ p["first"]["w"])
        return (jnp.sort(h, axis=1) if x.shape[0] == 1 else h).sum(1)

    shapes = {"first": SHAPES["first"]}
    graph = sj.units.trace(fn, shapes, X)
    small = sj.shrink(graph, {"first": PARAMS["first"]}, {"first": KEPT["first"]})
    small_fn = graph.small({"first": KEPT["first"]})
    small_fn(small, X)
    with pytest.raises(ValueError, match="at these shapes of arguments, the units along axis 1 of 'first/w'"):
        small_fn(small, X[:1])


def test_equations_are_those_whose_results_are_used():
    def fn(p, x):
        jnp.linalg.cholesky(x.T @ x)  # would freeze what it touches
        return plain(p, x)

    graph = sj.units.trace(fn, SHAPES, X)
    assert "cholesky" not in {equation.name for equation in equations_of(graph.program.body)}


def test_probes_see_and_change_what_parameters_read(graph):
    """The gradient by a zero that is added to the data of every edge, in calls too, is that by the data."""

    def fn(p, x):
        h = jax.checkpoint(lambda h: jax.nn.relu(h @ p["first"]["w"] + p["first"]["b"]))(x)
        h = jax.jit(lambda h: jnp.sin(h @ p["second"]["w"] + p["second"]["b"]))(h)
        return h @ p["last"]["w"]

    graph = sj.units.trace(fn, PARAMS, X)
    assert [list(graph.along(edge.value.axes[1])) for edge in graph.edges] == [[], ["first"], ["second"]]

    def probed(zeros):
        seen = {}

        def probe(edge, zero):
            def at(operands, apply, turns):
                seen[graph.edges.index(edge)] = operands[edge.data]
                return apply([x + zero if i == edge.data else x for i, x in enumerate(operands)])

            return at

        probes = {edge.equation: probe(edge, zero) for edge, zero in zeros.items()}
        inputs = jax.tree.leaves((PARAMS, X))
        (out,) = run(graph.program.body, inputs, Plan({}), probes)
        return jnp.square(out).sum(), seen

    gradient = jax.grad(lambda zeros: probed(dict(zip(graph.edges, zeros, strict=True))), has_aux=True)
    gradients, seen = gradient([jnp.zeros(edge.value.shape) for edge in graph.edges])

    def after(h):
        return jnp.square(jnp.sin(h @ PARAMS["second"]["w"] + PARAMS["second"]["b"]) @ PARAMS["last"]["w"]).sum()

    hidden = jax.nn.relu(X @ PARAMS["first"]["w"] + PARAMS["first"]["b"])
    np.testing.assert_allclose(seen[1], hidden, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], jax.grad(after)(hidden), rtol=1e-4)
    np.testing.assert_allclose(gradients[0], jax.grad(lambda x: jnp.square(fn(PARAMS, x)).sum())(X), rtol=1e-4)
