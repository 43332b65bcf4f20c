"""Units found in architectures and in single difficulties, and smaller networks against masked ones."""

import functools
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unit_networks import NETWORKS, drawn, shaped
from unit_programs import PROGRAMS

import sparsejax as sj
from experiments import models
from sparsejax.units.atoms import atoms_of, join, new_axis
from sparsejax.units.patterns import refine

# The units of each architecture, `{units of a group: how many groups}`, counted by hand; and of those that are inexact.
FOUND = {
    "mlp": [10, 8],
    "lenet_valid": [4, 6, 8],
    "relu_lenet": [4, 6, 8],
    "lenet_same_with_sigmoid": [4, 6, 8],
    "vgg_with_batch_norm": [4, 4, 6, 6, 4, 4, 6, 6, 6, 4, 4, 4, 6, 8],
    # a residual stream for every stage, and one layer between for every block
    "resnet18": [4, 6, 8, 10] + [4, 6, 8, 10] * 2,
    # the channels that a padded shortcut adds live on their own
    "resnet20_with_padded_shortcuts": [4, 2, 2] + [4, 6, 8] * 3,
    "resnet50": [4, 8, 12, 12, 16] + [2] * 6 + [3] * 8 + [3] * 12 + [4] * 6,
    "wide_resnet": [4, 6, 6, 8, 8, 8, 8],
    "mobilenet_v2": [4, 2, 3, 4, 4, 6, 6, 8, 10, 12, 18, 18] + [24] * 7 + [36] * 6,
    "resnext": [8, 4, 4],  # groups of channels
    "efficientnet_block": [6, 12, 4, 12, 4],
    "densenet": [6, 8, 4, 8, 4, 8, 4, 9] + [8, 4] * 3,
    "shufflenet_v2": [16] + [8, 8] * 3 + [10],
    "convnext": [6, 12, 12],
    "unet": [4, 4, 6, 6, 8, 8, 6, 6, 6, 4, 4, 4],
    # residual stream; heads, sizes of queries and keys, sizes of values, hidden units of each block
    "vit_of_flax": [8] + [4, 2, 2, 12] * 2,
    "vit_with_separate_projections": [8] + [4, 12] * 2,
    "vit_with_fused_projections": [8] + [4, 12] * 2,
    # heads of keys, pairs that are rotated, sizes of values, hidden units
    "gpt_with_tied_embeddings": [8] + [2, 2, 4, 12] * 2,
    "gpt_with_untied_embeddings": [8] + [2, 2, 4, 12] * 2,
    "lstm": [6, 4],
    "gru": [6],
    "scanned_layers": [6, 10],
    "mlp_mixer": [5, 10, 5, 10],
    "group_norm": [4, 4],
    "nnx_convolutions": [6, 8],
    "nnx_transformer": [8, 4, 2, 2, 12],
    "equinox_mlp": [8, 8],
    "equinox_convolutions": [6, 8],
    "equinox_attention": [4, 6],
    "haiku_convolutions": [6, 8],
    "plain_residual": [6, 8, 8],
}
INEXACT = {"mlp_mixer": [6]}


@pytest.fixture(autouse=True)
def strict():
    """Leaves promotion as it is outside: the networks of other libraries rely on it."""


def half(graph, seed=0):
    """A random half of the units of every group, rounded up."""
    rng, kept = np.random.default_rng(seed), {}
    for name, group in graph.groups.items():
        kept[name] = np.zeros(group.size, bool)
        kept[name][rng.permutation(group.size)[: (group.size + 1) // 2]] = True
    return kept


class Removed:
    """A function half of whose units are gone: masked, and smaller."""

    def __init__(self, fn, params, args, **options):
        self.fn, self.params, self.args = fn, params, args
        self.graph = sj.units.trace(fn, params, *args, **options)
        self.kept = half(self.graph)
        self.mask = self.graph.push(self.kept)
        self.masked = sj.apply(self.mask, params)
        self.small = sj.shrink(self.graph, params, self.kept)
        self.small_fn = self.graph.small(self.kept)


@functools.cache
def network(name):
    return Removed(*NETWORKS[name]())


@functools.cache
def program(name):
    case = PROGRAMS[name]
    return Removed(case.fn, drawn(shaped(case.shapes)), case.args)


def assert_close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance), actual, expected)


def sizes(groups):
    return Counter(group.size for group in groups.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_units_of_an_architecture_are_found(name):
    graph = network(name).graph
    assert sizes(graph.groups) == Counter(FOUND[name])
    assert sizes(graph.inexact) == Counter(INEXACT.get(name, []))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_smaller_architecture_computes_what_the_masked_one_does(name):
    removed = network(name)
    run, run_small = jax.jit(removed.fn), jax.jit(removed.small_fn)
    others = [jnp.flip(x) for x in removed.args]
    expected, moved = run(removed.masked, *removed.args), run(removed.masked, *others)
    assert_close(run_small(removed.small, *removed.args), expected)
    assert_close(run_small(removed.small, *others), moved)
    # A network that ignores its input, or its units, passes for free.
    assert np.abs(expected - moved).max() > 1e-3
    assert np.abs(expected - run(removed.params, *removed.args)).max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_of_an_architecture_is_what_its_mask_keeps(name):
    removed = network(name)
    assert jax.tree.structure(removed.small) == jax.tree.structure(removed.params)

    def check(small, leaf, mask):
        mask = np.broadcast_to(mask, leaf.shape)
        np.testing.assert_array_equal(np.asarray(small).reshape(-1), np.asarray(leaf)[mask])
        assert (np.asarray(leaf)[~mask] != 0).all()  # so that the comparison above could fail
        return mask.sum()

    counts = jax.tree.leaves(jax.tree.map(check, removed.small, removed.params, removed.mask))
    assert sum(counts) < sum(leaf.size for leaf in jax.tree.leaves(removed.params))


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_units_behind_a_difficulty_are_found(name):
    graph, case = program(name).graph, PROGRAMS[name]
    assert {key: group.size for key, group in graph.groups.items()} == case.exact
    assert {key: group.size for key, group in graph.inexact.items()} == case.inexact
    assert all(group.reason for group in graph.inexact.values())
    assert not any(group.reason for group in graph.groups.values())


@pytest.mark.parametrize("name", [name for name, case in PROGRAMS.items() if case.exact])
def test_a_smaller_program_computes_what_the_masked_one_does(name):
    removed = program(name)
    run, run_small = jax.jit(removed.fn), jax.jit(removed.small_fn)
    outputs = run_small(removed.small, *removed.args), run(removed.masked, *removed.args)
    if name == "returned state":
        (logits, state), (expected, masked_state) = outputs
        assert_close(state["stats"]["mean"], masked_state["stats"]["mean"][:, removed.kept["in"]])
        outputs = logits, expected
    assert_close(*outputs)


@pytest.mark.parametrize("name", [name for name, case in PROGRAMS.items() if case.exact and name != "counted"])
def test_a_smaller_program_has_the_gradients_of_the_masked_one(name):
    """Those of parameters that stay, functions with their own derivative included; a while loop has none."""
    removed = program(name)

    def loss(fn):
        floats = [path for path, x in sj.tree.named(removed.params).items() if jnp.issubdtype(x.dtype, jnp.floating)]

        def of(chosen, params):
            outputs = fn(sj.tree.replace(params, chosen), *removed.args)
            return jnp.square(outputs[0] if name == "returned state" else outputs).sum()

        gradient = jax.jit(jax.grad(of))
        return lambda params: gradient({path: sj.tree.named(params)[path] for path in floats}, params)

    whole = loss(removed.fn)(removed.masked)
    expected = sj.tree.named(sj.shrink(removed.graph, sj.tree.replace(removed.params, whole), removed.kept))
    actual = loss(removed.small_fn)(removed.small)
    assert_close(actual, {path: expected[path] for path in actual}, 1e-4)
    assert any(np.abs(gradient).max() > 1e-4 for gradient in actual.values())


@pytest.mark.parametrize("name", [name for name, case in PROGRAMS.items() if case.inexact])
def test_inexact_units_are_not_removed_unless_asked(name):
    case, removed = PROGRAMS[name], program(name)
    (group,) = removed.graph.inexact
    kept = {group: np.arange(case.inexact[group]) > 0}
    for call in (removed.graph.push, removed.graph.small, lambda kept: sj.shrink(removed.graph, removed.params, kept)):
        with pytest.raises(ValueError, match=rf"'{group}', whose units cannot be removed exactly: .*inexact=True"):
            call(kept)
    graph = sj.units.trace(case.fn, removed.params, *case.args, inexact=True)
    assert graph.groups.keys() >= {group}
    assert not graph.inexact
    small = graph.small(kept)(sj.shrink(graph, removed.params, kept), *case.args)
    masked = case.fn(sj.apply(graph.push(kept), removed.params), *case.args)
    assert small.shape == masked.shape
    assert not np.allclose(small, masked, atol=1e-4)  # or it would have been exact


FROZEN = {
    # program: {(leaf, axis): reason}
    "sorted": {("in", 1): "sorted", ("in", 0): "input", ("out", 1): "output"},
    "unknown primitive": {("in", 1): "unknown primitive cholesky"},
    "pooled over": {("in", 1): "window"},
    "largest position": {("in", 1): "its positions are what is computed"},
    "stacked layers": {("layers/up", 0): "a loop runs over it"},
    "integer leaf": {("count", 0): "its dtype is int32"},
    "unused leaf": {("idle", 0): "nothing uses it", ("idle", 1): "nothing uses it"},
    "tied embedding": {("table", 0): "gather takes from it at positions that are data"},
    "groups and multipliers": {("first", 0): "a convolution's window", ("first", 1): "its size is 1"},
    "reshaped": {},
    "gram matrix flattened": {("out", 0): "product with itself"},
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_not_pruned_says_why(name):
    graph = program(name).graph
    for place, reason in FROZEN[name].items():
        assert reason in graph.frozen[place]
        assert reason in str(graph)
    members = {(m.leaf, m.axis) for group in graph.groups.values() for m in group.members}
    shapes = {(leaf, axis): x.shape for leaf, x in sj.tree.named(graph.params).items() for axis in range(x.ndim)}
    assert members | graph.frozen.keys() == shapes.keys()


def test_the_table_lists_groups_members_and_reasons():
    text = str(program("position table and norm").graph).splitlines()
    assert text[0].split() == ["group", "units", "exact", "computed", "by", "|", "read", "by"]
    assert text[1].split() == ["table", "6", "no", "table[1],", "scale[0]", "|", "out[0]"]
    assert text[2] == "table is not exact: reduce_sum over them does not see 0 where one is masked"
    assert "not pruned because it is an output: out[1]" in text
    returned = str(program("returned state").graph)
    assert returned.endswith("returned as the next values of parameters: stats/mean")


def chain(*layers):
    """The groups between layers `(name, rank of the kernel, units, places that the next layer's input has of each)`."""
    groups = {}
    for (name, rank, size, places), (reader, readers_rank, *_) in itertools.pairwise(layers):
        every = tuple(range(size))
        read = (f"{reader}/kernel", readers_rank - 2, every * places, True)
        groups[name] = {(f"{name}/kernel", rank - 1, every, False), (f"{name}/bias", 0, every, False), read}
    return groups


BY_HAND = {
    models.LeNet300100(10): chain(("Dense_0", 2, 300, 1), ("Dense_1", 2, 100, 1), ("Dense_2", 2, 10, 1)),
    # 4 x 4 places of 50 channels are flattened
    models.LeNet5(10): chain(
        ("Conv_0", 4, 20, 1), ("Conv_1", 4, 50, 16), ("Dense_0", 2, 500, 1), ("Dense_1", 2, 10, 1)
    ),
}


@pytest.mark.parametrize("model", BY_HAND)
def test_the_members_are_those_that_are_written_by_hand(model):
    shapes = models.parameter_shapes(model, (28, 28, 1))
    x = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    graph = sj.units.trace(lambda params, x: model.apply({"params": params}, x), shapes, x)
    found = {
        name: {(m.leaf, m.axis, tuple(m.units or range(group.size)), m.reads) for m in group.members}
        for name, group in graph.groups.items()
    }
    assert found == BY_HAND[model]


def test_recurrent_kernels_compute_along_one_axis_and_read_along_the_other():
    (group,) = program("recurrent").graph.groups.values()
    assert {(m.leaf, m.axis): m.reads for m in group.members} == {
        ("in", 1): False, ("w", 1): False, ("w", 0): True, ("out", 0): True,
    }  # fmt: skip


def test_units_stand_where_the_members_say():
    """Concatenation, padding and slices put them elsewhere, or several times; -1 is none of the group."""
    expected = {
        "concatenated": {"out": tuple(range(6)) * 2},
        "padded": {"out": (-1, 0, 1, 2, 3, 4, 5, -1, -1)},
        "known positions twice": {"out": (4, 0, 4, 5)},
        "gated": {"in": (0, 1, 2) * 2, "out": None},
        "reversed": {"out": (5, 4, 3, 2, 1, 0)},
        "reshaped": {"in": (0, 0, 0, 1, 1, 1), "out": (0, 0, 0, 1, 1, 1)},
        "repeated": {"out": (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)},
    }
    for name, leaves in expected.items():
        (group,) = program(name).graph.groups.values()
        found = {m.leaf: m.units for m in group.members}
        assert {leaf: found[leaf] for leaf in leaves} == leaves, name


def test_edges_are_where_parameters_read_units():
    graph = program("recurrent").graph
    found = {weights: edge for edge in graph.edges for weights in edge.weights}
    assert found.keys() == {("in", 0), ("w", 0), ("out", 0)}
    assert {edge.equation.name for edge in graph.edges} == {"dot_general"}
    assert {edge.data for edge in graph.edges} == {0}
    assert {weights: edge.inside for weights, edge in found.items()} == {
        ("in", 0): True, ("w", 0): True, ("out", 0): False,
    }  # fmt: skip


def test_units_are_known_along_the_axes_of_all_values():
    removed = network("lenet_valid")
    deep, flat, last = removed.graph.edges  # the first convolution has one input channel
    assert not any(edge.inside for edge in removed.graph.edges)
    found = [removed.graph.along(edge.value.axes[edge.axes[0]]) for edge in (deep, flat, last)]
    assert [list(units) for units in found] == [["params/Conv_0"], ["params/Conv_1"], ["params/Dense_0"]]
    np.testing.assert_array_equal(found[1]["params/Conv_1"], list(range(6)) * (flat.value.shape[-1] // 6))


def test_groups_serve_the_gates_of_units_and_their_targets():
    removed = network("mlp")
    gated = sj.unit_gates.init(jax.random.key(0), removed.params, removed.graph.groups)
    gated = gated._replace(aux={name: jnp.where(removed.kept[name], 1.0, -1.0) for name in gated.aux})
    gates = sj.unit_gates.apply(gated, removed.graph.groups)
    assert_close(removed.fn(gates, *removed.args), removed.fn(removed.masked, *removed.args))
    budget = sj.budgets.Budget(dict.fromkeys(sj.tree.named(removed.params), 1), limit=100)
    chosen = jax.jit(sj.targets.units(budget, removed.graph.groups).choose)(gated)
    assert {name: x.shape for name, x in chosen.items()} == {name: x.shape for name, x in removed.kept.items()}
    pulled = removed.graph.pull(jax.tree.map(jnp.ones_like, removed.params))
    assert pulled["params/Dense_0"].tolist() == [16 + 1 + 8] * 10


def test_refined_shapes_are_products_of_the_same_labels():
    """Against every reshape of an array of indices: labels of equal order, whose products are the shapes."""
    for left, right in (
        ((12,), (3, 4)), ((2, 3, 4), (6, 4)), ((2, 1, 6), (12,)), ((4, 6), (8, 3)), ((6, 4), (2, 3, 2, 2)), ((1,), ()),
        ((5, 4, 6), (5, 6, 4)), ((4, 6, 7), (6, 4, 7)),
    ):  # fmt: skip
        sides = refine(left, right)
        flat = [[one for axis in axes for one in axis] for axes in sides]
        for shape, axes in zip((left, right), sides, strict=True):
            assert tuple(int(np.prod([one.size for one in axis], dtype=int)) for axis in axes) == shape
        free = [[one for one in side if not one.frozen] for side in flat]
        assert free[0] == free[1]
        assert any(one.frozen for one in flat[0]) == (left[1:] in ((4, 6), (6, 7)))


def test_axes_that_are_joined_are_the_same_products():
    first, second, third = new_axis(24), new_axis(4) + new_axis(6), new_axis(8) + new_axis(3)
    join(first, second)
    assert [atom.size for atom in atoms_of(first)] == [4, 6]
    join(first, third)
    assert atoms_of(first) == atoms_of(second) == atoms_of(third)
    assert [atom.size for atom in atoms_of(first)] == [4, 2, 3]
    join(new_axis(6) + new_axis(4), other := new_axis(4) + new_axis(6))
    assert all(atom.reason for atom in atoms_of(other))
