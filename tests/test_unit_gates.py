"""Groups of units and their gates: against loops, against gates on the activations, and against smaller networks."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import groups, ops, surrogates, unit_gates
from sparsejax.gates import Gated
from sparsejax.groups import Group, Member
from sparsejax.multiply_adds import multiply_adds


def conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def normalise(x, scale, offset):
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + offset


def pass_on(z, name):
    return z


class Network(NamedTuple):
    """A small network; `run(params, x, at)` calls `at(activations, group name)` wherever units can be gated."""

    shapes: dict
    groups: dict
    run: object
    x: tuple


def reads(leaf, axis, units=None):
    return Member(leaf, axis, units, reads=True)


def dense(activation):
    def run(p, x, at=pass_on):
        z = at(activation(x @ p["k1"] + p["b1"]), "hidden")
        return at(activation(z @ p["k2"] + p["b2"]), "second") @ p["k3"]

    shapes = {"k1": (4, 6), "b1": (1, 6), "k2": (6, 5), "b2": (1, 5), "k3": (5, 3)}
    described = {
        "hidden": Group(6, (Member("k1", -1), Member("b1", 1), reads("k2", 0))),
        "second": Group(5, (Member("k2", 1), Member("b2", -1), reads("k3", 0))),
    }
    return Network(shapes, described, run, (7, 4))


def run_normed(p, x, at=pass_on):
    z = at(jax.nn.relu(normalise(conv(x, p["k1"]), p["scale"], p["offset"])), "hidden")
    return conv(z, p["k2"]).mean((1, 2))


def run_flattened(p, x, at=pass_on):
    z = at(jax.nn.relu(conv(x, p["k1"]) + p["b1"]), "hidden")
    return z.reshape(len(z), -1) @ p["k2"]


def run_concatenated(p, x, at=pass_on):
    left, right = at(jnp.tanh(x @ p["left"]), "left"), at(jnp.tanh(x @ p["right"]), "right")
    return jnp.concatenate([left, right], -1) @ p["k2"]


def run_residual(p, x, at=pass_on):
    stream = x @ p["stem"]
    stream = stream + jnp.tanh(at(stream, "stream") @ p["in"]) @ p["out"]
    return at(stream, "stream") @ p["head"]


NETWORKS = {
    "relu": dense(jax.nn.relu),
    "sigmoid, which is not 0 at 0": dense(jax.nn.sigmoid),
    "batch norm": Network(
        {"k1": (3, 3, 2, 6), "scale": (1, 1, 1, 6), "offset": (1, 1, 1, 6), "k2": (1, 1, 6, 3)},
        {"hidden": Group(6, (Member("k1", 3), Member("scale", -1), Member("offset", -1), reads("k2", 2)))},
        run_normed,
        (5, 4, 4, 2),
    ),
    "flattened map": Network(
        {"k1": (3, 3, 2, 5), "b1": (1, 1, 1, 5), "k2": (4 * 5, 3)},
        {"hidden": Group(5, (Member("k1", 3), Member("b1", 3), reads("k2", 0, tuple(range(5)) * 4)))},
        run_flattened,
        (5, 2, 2, 2),
    ),
    "concatenation": Network(
        {"left": (4, 3), "right": (4, 2), "k2": (5, 3)},
        {
            "left": Group(3, (Member("left", 1), reads("k2", 0, (0, 1, 2, -1, -1)))),
            "right": Group(2, (Member("right", 1), reads("k2", 0, (-1, -1, -1, 0, 1)))),
        },
        run_concatenated,
        (7, 4),
    ),
    "residual stream": Network(
        {"stem": (4, 6), "in": (6, 5), "out": (5, 6), "head": (6, 3)},
        {"stream": Group(6, (Member("stem", 1), Member("out", 1), reads("in", 0), reads("head", 0)))},
        run_residual,
        (7, 4),
    ),
}


def setting(network, seed=0):
    """Parameters, input, and auxiliary parameters of which some are pruned in every group."""
    rng = np.random.default_rng(seed)
    params = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in network.shapes.items()}
    x = jnp.asarray(rng.standard_normal(network.x))
    aux = {name: jnp.asarray(0.1 * (-1.0) ** np.arange(g.size) + 0.01) for name, g in network.groups.items()}
    return params, x, aux


def in_turn(size):
    """Auxiliary parameters of both signs, one after the other."""
    return jnp.asarray(0.1 * (-1.0) ** np.arange(size), jnp.float32)


def loss(out):
    return jnp.sum(jnp.tanh(out) ** 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_on_readers_are_gates_on_activations_and_the_derivative_is_autodiffs(name):
    """In float64: the same output, and for the chain rule the same gradients, which are those by the units' gates."""
    network, surrogate = NETWORKS[name], surrogates.softplus
    with jax.enable_x64(True):
        params, x, aux = setting(network)

        def on_parameters(gated):
            return loss(network.run(unit_gates.apply(gated, network.groups, surrogate, power=1.0), x))

        def on_activations(gated):
            gate = lambda z, group: unit_gates.gate(z, gated.aux[group], surrogate, power=1.0)  # noqa: E731
            return loss(network.run(gated.weights, x, gate))

        def by_gates(h):
            return loss(network.run(params, x, lambda z, group: z * h[group].reshape((1,) * (z.ndim - 1) + (-1,))))

        (value, grads), (other, others) = (
            jax.jit(jax.value_and_grad(f))(Gated(params, aux)) for f in (on_parameters, on_activations)
        )
        np.testing.assert_allclose(value, other, rtol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), grads, others)
        slopes = jax.jit(jax.grad(by_gates))({group: (m > 0).astype(jnp.float64) for group, m in aux.items()})
        for group, m in aux.items():
            np.testing.assert_allclose(grads.aux[group], slopes[group] * surrogate(m), rtol=1e-9, atol=1e-12)
            assert np.any(np.abs(grads.aux[group])[np.asarray(m) < 0] > 1e-3)  # they feel that they are missed


@pytest.mark.parametrize("name", NETWORKS)
def test_the_final_network_computes_what_the_gated_one_did_and_every_member_is_zero(name):
    network = NETWORKS[name]
    with jax.enable_x64(True):
        params, x, aux = setting(network)
        gated, run = Gated(params, aux), jax.jit(network.run)
        final = jax.jit(lambda gated: unit_gates.finalize(gated, network.groups))(gated)
        expected = run(jax.jit(lambda gated: unit_gates.apply(gated, network.groups))(gated), x)
        np.testing.assert_allclose(run(final, x), expected, rtol=1e-12, atol=1e-12)
        assert np.ptp(np.asarray(expected), axis=0).max() > 1e-3  # not a constant network
        pruned = {group: np.asarray(m) < 0 for group, m in aux.items()}
        final = jax.tree.map(np.asarray, final)
    zero = {leaf: np.zeros(shape, bool) for leaf, shape in network.shapes.items()}
    for group, described in network.groups.items():
        for member in described.members:
            positions = range(described.size) if member.units is None else member.units
            for position, unit in enumerate(positions):
                if unit >= 0 and pruned[group][unit]:
                    np.moveaxis(zero[member.leaf], member.axis, 0)[position] = True
    for leaf, expected in zero.items():
        np.testing.assert_array_equal(final[leaf] == 0, expected)


@pytest.mark.parametrize("name", ["relu", "flattened map"])
def test_gates_on_what_computes_the_units_are_the_same_forward_but_let_none_come_back(name):
    """At a closed gate a ReLU has the derivative 0, so that nothing tells whether its unit is missed."""
    network = NETWORKS[name]
    with jax.enable_x64(True):
        params, x, aux = setting(network)

        def objective(aux, of):
            gated = unit_gates.apply(Gated(params, aux), network.groups, power=1.0, of=of)
            return loss(network.run(gated, x))

        both = jax.jit(jax.value_and_grad(objective), static_argnums=1)
        (value, grads), (other, others) = (
            both(aux, lambda member: member.reads),
            both(aux, lambda member: not member.reads),
        )
        np.testing.assert_allclose(value, other, rtol=1e-12)
        for group, m in aux.items():
            np.testing.assert_allclose(others[group], np.where(m > 0, grads[group], 0), rtol=1e-9, atol=1e-12)


def test_a_gated_kernel_is_shifted_back_by_a_batch_norm():
    network = NETWORKS["batch norm"]
    with jax.enable_x64(True):
        params, x, aux = setting(network)
        kernel_only = unit_gates.apply(Gated(params, aux), network.groups, of=lambda member: member.leaf == "k1")
        run = jax.jit(lambda params: network.run(params, x))
        assert np.abs(run(kernel_only) - run(unit_gates.apply(Gated(params, aux), network.groups))).max() > 0.1


# Vector A9: three weights of each of two channels, and the gradients there.
A9_W = [[0.3, -0.1], [-0.2, 0.4], [0.1, 0.2]]
A9_G = [[1.0, -1.0], [0.5, 0.2], [-2.0, 0.3]]
A9 = {1.0: [-2.775557561563e-17, 0.24], 0.0: [-7.417989609027e-17, 0.5237229365664]}


@pytest.mark.parametrize("power", A9)
def test_a_kernel_slice_is_the_published_vector(power):
    described = {"channels": Group(2, (reads("k", 1),))}
    gated = Gated({"k": jnp.array(A9_W)}, {"channels": jnp.array([0.1, 0.2])})

    def objective(gated):
        return jnp.vdot(unit_gates.apply(gated, described, surrogates.linear, power)["k"], jnp.array(A9_G))

    np.testing.assert_allclose(jax.grad(objective)(gated).aux["channels"], A9[power], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_the_gate_of_activations_is_the_formula(power, axis):
    z, g = laws.weights((3, 4, 5), 1).at[0, 0, :].set(0.0), laws.weights((3, 4, 5), 2)
    z = jnp.moveaxis(jnp.moveaxis(z, axis, 0).at[0].set(0.0).at[1].multiply(1e-4), 0, axis)
    m = in_turn(z.shape[axis])
    out, pullback = jax.vjp(lambda z, m: unit_gates.gate(z, m, power=power, axis=axis), z, m)
    dz, dm = pullback(g)
    for c in range(z.shape[axis]):
        zc, gc, outc, dzc = (np.take(np.asarray(a, np.float64), c, axis) for a in (z, g, out, dz))
        np.testing.assert_array_equal(outc, zc if m[c] > 0 else 0)
        np.testing.assert_array_equal(dzc, gc if m[c] > 0 else 0)
        size = math.sqrt(sum(v * v for v in zc.ravel()) / zc.size)
        slope = sum(a * b for a, b in zip(zc.ravel(), gc.ravel(), strict=True)) / (1 + math.exp(-float(m[c])))
        scale = (max(size, 1e-3) if power < 0 else size) ** power / size if size else 0.0
        np.testing.assert_allclose(dm[c], slope * scale, rtol=1e-4, atol=1e-7)


def test_a_gate_of_one_activation_a_unit_is_the_gate_of_a_weight():
    """Of a single number, the size is its magnitude."""
    w, g = laws.weights(6, 3), laws.weights(6, 4)
    m = in_turn(6)
    for power in (-1.0, 0.0, 0.5, 1.0):
        unit = jax.vjp(lambda w, m: unit_gates.gate(w, m, power=power), w, m)[1](g)  # noqa: B023
        single = jax.vjp(lambda w, m: ops.gate(w, m, power=power), w, m)[1](g)  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), unit, single)


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_activations_keep_their_dtype_and_auxiliary_parameters_stay_float32(dtype):
    z, m = laws.weights((8, 5), 5, dtype, 1.0), jnp.array([0.1, -0.1, 0.2, -0.2, 0.0])
    out, pullback = jax.jit(lambda z, m: jax.vjp(unit_gates.gate, z, m))(z, m)
    dz, dm = pullback(jnp.ones_like(out))
    assert (out.dtype, dz.dtype, dm.dtype) == (dtype, dtype, jnp.float32)
    wide = np.asarray(z, np.float64)
    expected = wide.sum(0) / np.sqrt((wide**2).mean(0)) / (1 + np.exp(-np.asarray(m, np.float64)))
    np.testing.assert_allclose(dm, expected, rtol=1e-4)


LAST = {
    "all below": ([-0.3, -0.1, -0.2], [False, True, False]),
    "ties": ([-0.1, -0.1, -0.2], [True, False, False]),
    "all zero": ([0.0, -0.0, 0.0], [True, False, False]),
    "nan": ([math.nan, -0.5, -0.4], [False, False, True]),
    "all nan": ([math.nan] * 3, [True, False, False]),
    "minus infinity": ([-math.inf, -math.inf, math.nan], [True, False, False]),
    "one above": ([-0.1, 0.1, -0.2], [False, True, False]),
    "all above": ([0.1, 0.3, 0.2], [True, True, True]),
    "a single unit": ([-9.0], [True]),
}


@pytest.mark.parametrize("name", LAST)
def test_a_group_never_loses_its_last_unit(name):
    m, expected = LAST[name]
    assert jax.jit(unit_gates.kept)(jnp.array(m)).tolist() == expected
    batch = jax.vmap(unit_gates.kept)(jnp.array([m, m]))
    assert batch.tolist() == [expected] * 2
    z = jnp.ones((2, len(m)))
    assert (unit_gates.gate(z, jnp.array(m))[0] != 0).tolist() == expected
    described = {"g": Group(len(m), (reads("k", 0),))}
    gated = Gated({"k": z.T}, {"g": jnp.array(m)})
    assert (unit_gates.apply(gated, described)["k"][:, 0] != 0).tolist() == expected
    assert jax.jit(lambda gated: unit_gates.masks(gated, described))(gated)["k"][:, 0].tolist() == expected


def test_a_network_of_closed_gates_is_not_dead():
    network = NETWORKS["relu"]
    params, x, aux = setting(network, seed=1)
    params, x, aux = jax.tree.map(lambda leaf: jnp.abs(leaf.astype(jnp.float32)), (params, x, aux))
    aux = jax.tree.map(jnp.negative, aux)
    objective = jax.jit(jax.grad(lambda gated: network.run(unit_gates.apply(gated, network.groups), x).sum()))
    grads = objective(Gated(params, aux))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))


def test_pull_sums_by_unit_and_push_is_its_transpose():
    """<pull(x), u> = <x, push(u)> where no leaf is in two groups, and loops say which entries are whose."""
    network = NETWORKS["flattened map"]
    params, _, _ = setting(network)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    sums = groups.pull(network.groups, params)["hidden"]
    for unit in range(5):
        total = np.asarray(params["k1"])[..., unit].sum() + np.asarray(params["b1"])[..., unit].sum()
        total += sum(np.asarray(params["k2"])[row].sum() for row in range(20) if row % 5 == unit)
        np.testing.assert_allclose(sums[unit], total, rtol=1e-5, atol=1e-6)
    kept = jnp.array([True, False, True, True, False])
    masked = sj.apply(groups.push(network.groups, {"hidden": kept}, params), params)
    total = sum(float(leaf.sum()) for leaf in jax.tree.leaves(masked))
    np.testing.assert_allclose(jnp.sum(jnp.where(kept, sums, 0.0)), total, rtol=1e-4)


def test_groups_without_gates_stay_whole():
    network = NETWORKS["relu"]
    params, _, aux = setting(network)
    gated = Gated(params, {"second": aux["second"]})
    mask = unit_gates.masks(gated, network.groups)
    assert bool(mask["k1"])
    assert mask["k2"].shape == (1, 5)
    assert mask["k3"].shape == (5, 1)


def test_units_that_are_gone_can_be_cut_out():
    """The smaller network, sliced by hand, computes the same and has the multiply-adds that are counted."""
    network = NETWORKS["relu"]
    with jax.enable_x64(True):
        params, x, aux = setting(network)
        final, run = unit_gates.finalize(Gated(params, aux), network.groups), jax.jit(network.run)
        first, second = (np.asarray(aux[name]) > 0 for name in ("hidden", "second"))
        host = jax.tree.map(np.asarray, params)
        small = {
            "k1": host["k1"][:, first], "b1": host["b1"][:, first],
            "k2": host["k2"][first][:, second], "b2": host["b2"][:, second], "k3": host["k3"][second],
        }  # fmt: skip
        np.testing.assert_allclose(run(jax.tree.map(jnp.asarray, small), x), run(final, x), rtol=1e-12)
        dense_count = multiply_adds(network.run, params, x)
        budget = sj.budgets.multiply_adds(params, dense_count, 0.5)
        high, low = sj.budgets.spent(budget, unit_gates.masks(Gated(params, aux), network.groups), params).tolist()
        assert (high, low) == (0, multiply_adds(network.run, small, x).total)


def test_init_is_one_number_a_unit():
    network = NETWORKS["concatenation"]
    params, _, _ = setting(network)
    gated = jax.jit(lambda key: unit_gates.init(key, params, network.groups, mean=0.2, std=0.0))(jax.random.key(0))
    assert {name: m.tolist() for name, m in gated.aux.items()} == {
        "left": pytest.approx([0.2] * 3),
        "right": pytest.approx([0.2] * 2),
    }
    assert all(m.dtype == jnp.float32 for m in gated.aux.values())


PARAMS = {"k": jnp.ones((3, 4)), "b": jnp.ones(4)}


def with_member(*args, size=4, **options):
    return {"g": Group(size, (Member(*args, **options),))}


def of_group(aux, described=None):
    return unit_gates.apply(Gated(PARAMS, aux), described or with_member("k", 1, reads=True))


WRONG_GROUPS = {
    "no groups": ({}, "groups={} describes no units"),
    "no members": ({"g": Group(4, ())}, "group 'g' has 4 units and 0 members"),
    "no units": ({"g": Group(0, (Member("k", 1),))}, "group 'g' has 0 units"),
    "unknown leaf": (with_member("conv", 0), "group 'g' has a member 'conv', but the leaves are"),
    "unknown axis": (with_member("b", 1), r"'b' has shape \(4,\), so it has no axis 1"),
    "other size": (with_member("k", 0), "axis 0 of 'k' has 3 positions, not 4"),
    "too few positions": (with_member("k", 1, units=(0, 1)), "axis 1 of 'k' has 4 positions, not 2"),
    "no such unit": (with_member("k", 1, units=(0, 1, 2, 3), size=3), "holds 0 to 3; units are the integers 0 to 2"),
    "below -1": (with_member("k", 1, units=(0, 1, 2, -2)), "holds -2 to 2"),
    "not integers": (with_member("k", 1, units=(0.0, 1.0, 2.0, 3.0)), "units are the integers"),
    "two groups in one place": (
        {"a": Group(4, (Member("k", 1),)), "b": Group(4, (Member("k", -1),))},
        "groups 'a' and 'b' both have units at the same positions along axis 1 of 'k'",
    ),
}


@pytest.mark.parametrize("name", WRONG_GROUPS)
def test_wrong_groups_say_what_does_not_fit(name):
    described, message = WRONG_GROUPS[name]
    for call in (
        lambda: groups.check(described, PARAMS),
        lambda: unit_gates.init(jax.random.key(0), PARAMS, described),
    ):
        with pytest.raises(ValueError, match=message):
            call()


NETWORK_KEPT = {"g": jnp.ones(4, bool)}
WRONG = {
    "aux of no group": (lambda: of_group({"x": jnp.ones(4)}), r"aux has an entry 'x' that is not a group.*\['g'\]"),
    "aux of another size": (lambda: of_group({"g": jnp.ones(3)}), r"aux\['g'\] has shape \(3,\), but its group has 4"),
    "nobody reads": (lambda: of_group({"g": jnp.ones(4)}, with_member("k", 1)), "group 'g' has no member to gate"),
    "kept of no group": (
        lambda: groups.push(with_member("k", 1), {"x": jnp.ones(4, bool)}, PARAMS),
        "kept has an entry 'x' that is not a group",
    ),
    "kept is float": (
        lambda: groups.push(with_member("k", 1), {"g": jnp.ones(4)}, PARAMS),
        r"kept\['g'\] is float32 of shape \(4,\); it must be bool",
    ),
    "units along another axis": (lambda: unit_gates.gate(jnp.ones((2, 3)), jnp.ones(2)), r"not the 2 units .* axis=-1"),
    "no such axis": (lambda: unit_gates.gate(jnp.ones((2, 3)), jnp.ones(3), axis=2), "axis=2"),
    "m is a matrix": (lambda: unit_gates.kept(jnp.ones((2, 2))), r"m has shape \(2, 2\); .* a vector"),
    "integer activations": (lambda: unit_gates.gate(jnp.ones((2, 3), jnp.int32), jnp.ones(3)), "has dtype int32"),
    "nan aux": (
        lambda: unit_gates.finalize(Gated(PARAMS, {"g": jnp.full(4, jnp.nan)}), with_member("k", 1)),
        r"aux\['g'\].* holds 4 NaN",
    ),
    "kept is no bool": (lambda: ops.gate_units(jnp.ones(3), jnp.ones(3), jnp.ones(3), 1.0), "kept has dtype float32"),
    "m does not fit": (
        lambda: ops.gate_units(jnp.ones((2, 3)), jnp.ones(2), jnp.ones(2, bool), 1.0),
        r"m has shape \(2,\), which does not broadcast to x of shape \(2, 3\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
