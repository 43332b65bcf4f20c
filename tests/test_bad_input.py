"""Wrong calls over the whole public API, in one table: the error names the argument, its value, and the way out."""

import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_public
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax.budgets import Budget
from sparsejax.gates import Gated
from sparsejax.groups import Group, Member
from sparsejax.report import MultiplyAdds

PACKAGE = Path(sj.__file__).parent
KEY = jax.random.key(0)
SGD = optax.sgd(0.1)


def shaped(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


# A network of one hidden layer, as arrays and as shapes, and what belongs to it.
PARAMS = {"in": jnp.arange(1.0, 13.0).reshape(3, 4), "out": jnp.full((4, 2), 0.5), "bias": jnp.zeros(4)}
SHAPES = jax.tree.map(lambda w: shaped(*w.shape), PARAMS)
WIDER = {"in": shaped(3, 5), "out": shaped(5, 2), "bias": shaped(5)}
MASK = jax.tree.map(lambda w: w > 2, PARAMS)
FLOATS = jax.tree.map(lambda m: m.astype("float32"), MASK)
HOLES = MASK | {"out": None, "bias": None}
X = jnp.ones((5, 3))


def network(params, x):
    return jnp.tanh(x @ params["in"] + params["bias"][None]) @ params["out"]


def loss(params, x):
    return network(params, x).mean()


def square(w):
    return jnp.square(w).sum()


GRAPH = sj.units.trace(network, PARAMS, X)
KEPT = {"in": np.array([True, False, True, True])}
UNITS = {"hidden": Group(4, (Member("in", -1), Member("bias", 0), Member("out", 0, reads=True)))}
GATED = Gated(PARAMS, {"in": jnp.ones((3, 4))})
GATED_UNITS = Gated(PARAMS, {"hidden": jnp.ones(4)})
HALF, NOW = sj.rules.prune_to(0.5), sj.schedules.at(0)
PRUNES, ONE_LEAF = sj.sparsify(SGD, HALF, NOW), Budget({"in": 1}, 5)
PROX, PROX_STATE = sj.transforms.proximal_l1(0.1, 1.0), sj.transforms.ProximalL1State(jnp.int32(0))
GRDA, AUTOPRUNE = sj.grda(0.1), sj.autoprune(SGD, SGD)
W = jnp.array([1.0, -2.0, 3.0])


@functools.cache
def state_of(tx):
    """The shapes of an optimizer's first state."""
    return jax.eval_shape(tx.init, GATED if tx is AUTOPRUNE else SHAPES)


def update(tx, updates, state, params):
    """An update at trace time: nothing is computed."""
    return jax.eval_shape(tx.update, updates, state, params)


def start(rule, when=NOW):
    """What `sparsify` finds out of a rule before the first step, at trace time."""
    return jax.eval_shape(sj.sparsify(SGD, rule, when).init, SHAPES)


@functools.cache
def small():
    return sj.shrink(GRAPH, PARAMS, KEPT)


@functools.cache
def compact():
    return sj.block_sparse.compress(PARAMS["in"], (1, 2))


@functools.cache
def costs():
    return sj.report.multiply_adds(network, PARAMS, X)


@functools.cache
def triangle():
    return sj.directional.plane(W, W * jnp.array([1.0, 0.0, 0.0]), -W)


def on_mesh(array, *axes, shape=(4, 2)):
    """An array over 8 devices, along explicit axes."""
    mesh = jax.make_mesh(shape, ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    return jax.device_put(array, NamedSharding(mesh, P(*axes)))


WEIGHTS = np.arange(128, dtype="f").reshape(16, 8)

# module: {what is wrong: (call, and expressions for the argument, its value, and the way out or the reason)}
WRONG = {
    "allocate": {
        "per cent": (lambda: sj.allocate.uniform(SHAPES, 90), "sparsity", "=90 ", "for 90% pass 0.9"),
        "text": (lambda: sj.allocate.erdos_renyi(SHAPES, "0.9"), "sparsity", "0.9", "a number in"),
        "more than there is": (
            lambda: sj.allocate.uniform(SHAPES, 0.95, of=sj.allocate.all_parameters),
            "sparsity",
            "0.95 cannot be met: .*20 of the 24",
            "at most 0.83.* is reachable. Ask for less",
        ),
        "counts for a budget": (
            lambda: sj.allocate.uniform(SHAPES, 0.5, of=costs()),
            "^of=",
            "MultiplyAdds",
            r"allocate\.multiply_adds\(counts\)",
        ),
        "a number for counts": (lambda: sj.allocate.multiply_adds(1000), "counts", "=1000", r"report\.multiply_adds\("),
    },
    "block_sparse": {
        "traced": (
            lambda: jax.eval_shape(lambda w: sj.block_sparse.compress(w, (1, 2)).blocks, shaped(3, 4)),
            "w and mask",
            "traced",
            "outside of jit",
        ),
        "0/1 floats": (
            lambda: sj.block_sparse.compress(PARAMS["in"], (1, 2), FLOATS["in"]),
            "mask",
            "float32",
            "pass mask != 0",
        ),
        "outputs for inputs": (
            lambda: jax.eval_shape(sj.block_sparse.matmul, shaped(5, 4), compact()),
            "^x ",
            r"\(5, 4\)",
            "must be the 3 inputs",
        ),
        "a matrix for its blocks": (
            lambda: sj.block_sparse.matmul(X, PARAMS["in"]),
            "compact",
            "not BlockSparse",
            r"block_sparse\.compress\(",
        ),
        "one length": (lambda: sj.block_sparse.compress(PARAMS["in"], 2), "size", "=2", r"such as \(8, 128\)"),
        "half a block": (
            lambda: sj.block_sparse.compress(PARAMS["in"], (0.5, 2)),
            "size",
            "=0.5",
            "inputs and the outputs",
        ),
    },
    "bounds": {
        "per cent": (lambda: sj.bounds.init(SHAPES, 85, min_size=1), "sparsity", "=85", "for 85% pass 0.85"),
        "text": (lambda: sj.bounds.init(SHAPES, "0.85", min_size=1), "sparsity", "'0.85'", "for 85% pass 0.85"),
        "two for one": (lambda: sj.bounds.gaussian(W, np.ones(2)), "sparsity", r"array\(\[1", "for 85% pass 0.85"),
        "small layers": (lambda: sj.bounds.init(SHAPES, 0.85), "min_size=1000", "'in': 12", "leaves no layer to prune"),
        "nan": (
            lambda: sj.bounds.search({"in": jnp.full((2, 2), jnp.nan)}, 0.5, min_size=1),
            "leaf 'in'",
            "4 NaN",
            "from before it",
        ),
        "negative": (
            lambda: jax.eval_shape(lambda p: sj.bounds.shrink(p, {"in": -1.0}), SHAPES),
            r"bounds\['in'\]",
            "-1.0",
            ">= 0",
        ),
        "unmatched name": (
            lambda: jax.eval_shape(sj.bounds.shrink, SHAPES, {"kernel": shaped()}),
            "^bounds",
            "'kernel'",
            r"the leaves are \['bias', 'in', 'out'\]",
        ),
        "no params": (
            lambda: sj.bounds.keep_in_range().update({"in": 1.0}, None),
            "params",
            "=None",
            r"tx\.update\(grads, state, params\)",
        ),
    },
    "budgets": {
        "no compression": (lambda: sj.budgets.compression(SHAPES, 0.1), "ratio", "=0.1", "10.0 keeps a tenth"),
        "text": (lambda: sj.budgets.compression(SHAPES, "10x"), "ratio", "=10x", "10.0 keeps a tenth"),
        "empty": (lambda: sj.budgets.compression({}, 2.0), "ratio", "=2.0.* at most 0", "number of parameters"),
        "per cent": (lambda: sj.budgets.multiply_adds(SHAPES, costs(), 50), "share", "=50", "0.5 is half"),
        "another network": (
            lambda: sj.budgets.multiply_adds({"in": SHAPES["in"]}, costs(), 0.5),
            "^dense",
            r"\['bias', 'out'\]",
            "count it from these params",
        ),
        "half an entry": (
            lambda: sj.budgets.within(Budget({"in": 1}, 1.5e3), MASK, PARAMS),
            r"budget\.limit",
            "=1500.0",
            r"pass int\(",
        ),
        "a negative limit": (
            lambda: jax.eval_shape(lambda m: sj.budgets.within(Budget({"in": 1}, -1), m, PARAMS), MASK),
            r"budget\.limit",
            "=-1 ",
            "an integer >= 0",
        ),
        "fractions for counts": (
            lambda: sj.budgets.spent(Budget({"in": 0.5}, 5), MASK, PARAMS),
            r"budget\.costs\['in'\]",
            "=0.5",
            "an integer >= 0",
        ),
        "a number": (
            lambda: sj.budgets.left(1000, MASK, PARAMS),
            "^budget",
            "=1000 is int",
            r"sparsejax\.budgets\.compression",
        ),
    },
    "directional": {
        "not orthonormal": (
            lambda: sj.directional.scores(W, jnp.ones((3, 1))),
            "columns of basis",
            r"2\.0e\+00",
            "QR decomposition",
        ),
        "another shape": (
            lambda: jax.eval_shape(sj.directional.minimiser, shaped(3), shaped(1), shaped()),
            "of scores",
            r"\(1,\)",
            r"build scores with jax\.tree\.map",
        ),
        "text": (lambda: sj.directional.minimiser(W, W, "0.1"), "lam", "=0.1", "one number >= 0"),
        "more than there is": (lambda: sj.directional.top_eigenspace(square, W, 4), "^k", "=4", "1 to n=3"),
        "inside jit": (
            lambda: jax.eval_shape(lambda w: sj.directional.top_eigenspace(square, w, 1), shaped(3)),
            "params",
            "traced",
            "outside jit",
        ),
        "a loss of every example": (
            lambda: sj.directional.loss_along(jnp.square, W, W, W, jnp.ones(2)),
            "^loss",
            r"\(3,\)",
            "take the mean",
        ),
        "a rate for an optimizer": (
            lambda: sj.directional.connect(square, W, -W, 0.1, 5, KEY),
            "^optimizer",
            "=0.1",
            r"optax\.adam",
        ),
        "a line": (lambda: sj.directional.plane(W, W, W), "start, middle and end", r"0\.0e\+00", "train middle with"),
        "a mesh": (
            lambda: sj.directional.loss_on_plane(square, triangle(), jnp.ones((2, 2)), jnp.ones(2)),
            "xs and ys",
            r"\(2, 2\)",
            "one axis each",
        ),
        "batches of different lengths": (
            lambda: jax.eval_shape(sj.directional.over_batches(loss), SHAPES, shaped(2, 3), shaped(3)),
            "^batches",
            r"\[\(2, 3\), \(3,\)\]",
            "stack them",
        ),
    },
    "gates": {
        "swapped": (lambda: sj.gates.init(PARAMS, KEY), "leaf", r"are \[\]", "could be selected"),
        "a seed for a key": (lambda: sj.gates.init(0, PARAMS), "^key", "=0 ", r"jax\.random\.key\(0\)"),
        "closed from the start": (lambda: sj.gates.init(KEY, PARAMS, mean=-0.1), "mean", "=-0.1", "must be > 0"),
        "parameters": (
            lambda: jax.eval_shape(sj.gates.apply, SHAPES),
            "^gated",
            "dict, not Gated",
            r"sparsejax\.gates\.init",
        ),
        "nan": (
            lambda: sj.gates.finalize(Gated(PARAMS, {"in": jnp.full((3, 4), jnp.nan)})),
            "aux",
            "12 NaN",
            "from before it",
        ),
        "transposed": (
            lambda: jax.eval_shape(sj.gates.apply, Gated(SHAPES, {"in": shaped(4, 3)})),
            "^m ",
            r"\(4, 3\)",
            "the same size along every axis",
        ),
    },
    "groups": {
        "a list": (
            lambda: sj.groups.check(list(UNITS.values()), SHAPES),
            "^groups",
            "is list",
            r"pass \{name: sparsejax\.groups\.Group",
        ),
        "a pair for a member": (
            lambda: sj.groups.check({"hidden": Group(4, (("in", -1),))}, SHAPES),
            r"groups\['hidden'\]",
            r"\('in', -1\) is tuple",
            r"pass Member\(leaf, axis\)",
        ),
        "a comma is missing": (
            lambda: sj.groups.check({"hidden": Group(4, Member("in", -1))}, SHAPES),
            r"groups\['hidden'\]\.members",
            "is Member",
            "pass a tuple",
        ),
        "no such leaf": (
            lambda: sj.groups.pull({"hidden": Group(4, (Member("kernel", 0),))}, PARAMS),
            "group 'hidden'",
            "'kernel'",
            r"the leaves are \['bias', 'in', 'out'\]",
        ),
        "units by number": (
            lambda: sj.groups.push(UNITS, {"hidden": jnp.array([0, 2, 3])}, PARAMS),
            r"kept\['hidden'\]",
            r"int32 of shape \(3,\)",
            r"bool of shape \(4,\)",
        ),
    },
    "inference": {
        "no values": (
            lambda: sj.inference.compile(network, SHAPES, X),
            "leaf 'bias'",
            "ShapeDtypeStruct",
            "with arrays",
        ),
        "another batch": (
            lambda: sj.inference.compile(network, PARAMS, X, choose=sj.inference.smallest)(jnp.ones((2, 3))),
            "^the arguments",
            r"shape=\(2, 3\)",
            "call sparsejax.inference.compile",
        ),
        "the wrong way round": (
            lambda: sj.inference.compile(PARAMS, network, X),
            "fn",
            "is dict",
            r"compile\(fn, params",
        ),
        "a name for a rule": (
            lambda: sj.inference.compile(network, PARAMS, X, choose="fastest"),
            "choose",
            "='fastest'",
            "pass sparsejax.inference.fastest",
        ),
        "nothing to choose from": (lambda: sj.inference.fastest({}), "candidates", "={}", "pass the dense one first"),
        "nothing that stores less": (
            lambda: sj.inference.smallest({}),
            "candidates",
            "={}",
            "pass the dense one first",
        ),
        "no rounds": (lambda: sj.inference.fastest({}, rounds=0), "rounds", "=0", "30 say"),
    },
    "losses": {
        "per cent": (
            lambda: jax.eval_shape(lambda d: sj.losses.squared_budget(d, 15), shaped()),
            "budget",
            "=15",
            "keeps 0.15",
        ),
        "text": (lambda: sj.losses.hinge_budget(jnp.float32(0.5), "0.15"), "budget", "=0.15", "it is a share"),
        "empty": (lambda: sj.losses.density({}), "bounds", "is empty", r"make it with sparsejax\.bounds\.init"),
        "weights of another leaf": (
            lambda: sj.losses.density({"in": 1.0}, {"out": 8}),
            "weights",
            r"\['in'\].*\['out'\]",
            "of every leaf that has a bound",
        ),
        "the wrong way round": (lambda: sj.losses.layer_gap({"in": 0.5}, 0.9, 0.1), "low=0.9", "high=0.1", "between"),
    },
    "masks": {
        "holes": (
            lambda: sj.apply(HOLES, PARAMS),
            "mask",
            r"lacks \['bias', 'out'\]",
            r"no None: .*jnp\.asarray\(True\)",
        ),
        "0/1 floats": (
            lambda: jax.eval_shape(sj.apply, FLOATS, PARAMS),
            "mask leaf 'bias'",
            "float32",
            "pass mask != 0",
        ),
        "combined floats": (lambda: sj.masks.combine(MASK, FLOATS), "mask leaf 'bias'", "float32", "pass mask != 0"),
        "combined shapes": (
            lambda: jax.eval_shape(sj.masks.combine, MASK, MASK | {"in": MASK["in"].T}),
            "mask leaf 'in'",
            r"\(3, 4\), \(4, 3\)",
            "masks of the same parameters",
        ),
        "packed integers": (
            lambda: sj.masks.pack({"in": jnp.ones(8, "int32")}),
            "mask leaf 'in'",
            "int32",
            "pass mask != 0",
        ),
        "not packed": (
            lambda: sj.masks.unpack(MASK),
            "packed leaf",
            "not Packed",
            r"what sparsejax\.masks\.pack returned",
        ),
        "integer updates": (
            lambda: jax.eval_shape(sj.masks.project, MASK, SHAPES | {"in": shaped(3, 4, dtype="int32")}, SHAPES),
            "updates leaf 'in'",
            "int32",
            "cast the updates",
        ),
        "updates of another shape": (
            lambda: jax.eval_shape(sj.masks.project, MASK, SHAPES | {"in": shaped(1, 4)}, SHAPES),
            "leaf 'in' of updates",
            r"\(1, 4\)",
            r"jax\.tree\.map over the parameters",
        ),
        "another sharding": (
            lambda: sj.apply({"in": on_mesh(WEIGHTS > 3, "y", "x")}, {"in": on_mesh(WEIGHTS, "x", "y")}),
            "mask leaf 'in'",
            r"P.*\('y', 'x'\)",
            r"jax\.device_put\(mask, param\.sharding\)",
        ),
        "another mesh": (
            lambda: sj.apply({"in": on_mesh(WEIGHTS > 3, "x", shape=(2, 4))}, {"in": on_mesh(WEIGHTS, "x")}),
            "mask leaf 'in'",
            r"\{'x': 2, 'y': 4\}",
            r"jax\.device_put\(mask, param\.sharding\)",
        ),
        "nothing": (lambda: sj.sparsity({}, {}), "params", "no entries", "pass the tree of parameters"),
    },
    "ops": {
        "integers": (
            lambda: jax.eval_shape(sj.ops.hard_shrink, shaped(3, dtype="int32"), shaped()),
            "^w ",
            "int32",
            "cast w first",
        ),
        "below zero": (lambda: sj.ops.hard_shrink(W, -0.1), "bound", "=-0.1", ">= 0"),
        "nan": (lambda: sj.ops.hard_threshold(W, math.nan), "threshold", "=nan", ">= 0"),
        "text": (lambda: sj.ops.hard_threshold(W, "0.1"), "threshold", "='0.1'", "a number >= 0"),
        "0/1 floats": (
            lambda: jax.eval_shape(sj.ops.straight_through, shaped(3), shaped(3)),
            "mask",
            "float32",
            "pass mask != 0",
        ),
        "a surrogate's name": (
            lambda: jax.eval_shape(lambda w: sj.ops.gate(w, w, "softplus"), shaped(3)),
            "surrogate",
            "='softplus'",
            r"one of sparsejax\.surrogates",
        ),
    },
    "recipes": {
        "a rate for an optimizer": (lambda: sj.recipes.snip(1e-3, 0.9), "inner", "=0.001", r"optax\.adam\(1e-3\)"),
        "4:2": (lambda: sj.recipes.n_of_m(SGD, 4, 2, 0, 10), "^n", "=4 .*m=2", "2:4 is n=2, m=4"),
        "2:2": (lambda: sj.recipes.n_of_m(SGD, 2, 2, 0, 10), "^n", "=2 .*m=2", "2:4 is n=2, m=4"),
        "groups that do not divide": (
            lambda: jax.eval_shape(sj.recipes.n_of_m(SGD, 2, 4, 0, 10).init, SHAPES),
            "leaf 'in'",
            r"m=4 .*\(3, 4\)",
            "choose another grain or scope",
        ),
        "per cent": (lambda: sj.recipes.rigl(SGD, 0.9, end=500, fraction=30), "fraction", "=30", "for 30% pass 0.3"),
        "over before it begins": (lambda: sj.recipes.rigl(SGD, 0.9, end=50), "end", "=50", "start <= end"),
        "one length for two": (
            lambda: sj.recipes.block_magnitude(SGD, 0.5, 4, 0, 9),
            "size",
            "=4 ",
            r"such as \(4, 4\)",
        ),
        "no ramp": (lambda: sj.recipes.gradual_magnitude(SGD, 0.9, 100, 100), "end", "=100", r"optax\.join_schedules"),
    },
    "report": {
        "inside jit": (
            lambda: jax.eval_shape(lambda p: sj.report.count(p).nonzeros, SHAPES),
            "leaf 'bias'",
            "Tracer",
            "outside jit",
        ),
        "nan": (lambda: sj.report.count({"in": np.full((2, 2), np.nan)}), "leaf 'in'", "4 NaN", "from before it"),
        "per cent": (lambda: sj.report.check_sparsity(PARAMS, 90), "expected", "not 90", "0.9 stands for 90 per cent"),
        "not pruned": (
            lambda: sj.report.check_sparsity(PARAMS, 0.9),
            "expected 0.9",
            "measured 0,",
            "(?s)out .* 8 .*usual reasons: an optimizer step after the pruning",
        ),
        "a number for counts": (
            lambda: sj.report.count(PARAMS, multiply_adds=1000),
            "multiply_adds",
            "=1000",
            r"sparsejax\.report\.multiply_adds\(fn",
        ),
        "swapped": (
            lambda: sj.report.multiply_adds(PARAMS, network, X),
            "^fn=",
            "is dict",
            r"multiply_adds\(fn, params",
        ),
    },
    "rules": {
        "per cent": (lambda: start(sj.rules.prune_to(90)), "sparsity", "=90", "for 90% pass 0.9"),
        "a score's name": (
            lambda: sj.rules.prune_to(0.9, "magnitude"),
            "score",
            "='magnitude'",
            r"one of sparsejax\.scores",
        ),
        "an end for a ramp": (lambda: sj.rules.prune_to(0.9, ramp=100), "ramp", "=100", r"cubic\(0, 1000\)"),
        "a mask for a target": (
            lambda: start(sj.rules.prune_to(MASK)),
            "leaf 'bias': sparsity",
            r"Array\(\[False",
            r"one float in \[0, 1\]",
        ),
        "0/1 floats": (lambda: start(sj.rules.fixed(FLOATS)), "mask leaf 'bias'", "float32", "pass mask != 0"),
        "per cent of the living": (
            lambda: sj.rules.drop_and_grow(0.9, fraction=30),
            "fraction",
            "=30",
            "for 30% pass 0.3",
        ),
    },
    "schedules": {
        "a list": (lambda: sj.schedules.at([0, 1000]), "steps", r"\[0, 1000\]", r"at\(0, 1000\)"),
        "between two steps": (lambda: sj.schedules.at(0.5), "steps", "0.5", "whole steps"),
        "a negative step": (lambda: sj.schedules.at(-1), "steps", "-1", "steps >= 0"),
        "half a period": (lambda: sj.schedules.every(2.5), "period", "=2.5", "an integer >= 1"),
        "backwards": (lambda: sj.schedules.cubic(1000, 10), "start=1000", "end=10", "start < end"),
        "text": (lambda: sj.schedules.linear("0", 10), "start", "=0", "start < end"),
    },
    "scores": {
        "no gradients": (
            lambda: sj.scores.gradient(PARAMS, grads=None),
            "grads",
            r"lacks \['bias', 'in'",
            "jax.tree.map",
        ),
        "gradients of another network": (
            lambda: jax.eval_shape(lambda p, g: sj.scores.saliency(p, grads=g), SHAPES, WIDER),
            "leaf 'bias' of grads",
            r"\(5,\)",
            r"jax\.tree\.map over the parameters",
        ),
        "norms of outputs": (
            lambda: sj.scores.wanda(PARAMS, input_norms={"in": jnp.ones(4)}),
            r"input_norms\['in'\]",
            r"\(4,\)",
            "one norm an input",
        ),
        "a seed for a key": (lambda: sj.scores.random(PARAMS, key=0), "^key", "=0 ", r"jax\.random\.key\(0\)"),
    },
    "select": {
        "not called": (
            lambda: jax.eval_shape(lambda s: sj.select.leafwise(s, 0.5, sj.select.channel), shaped(3, 4)),
            "^grain",
            "<function channel",
            r"channel\(axis\)",
        ),
        "a name": (lambda: sj.select.leafwise(W, 0.5, scope="leaf"), "^scope", "='leaf'", r"sparsejax\.select\.leaf"),
        "a scope for a grain": (
            lambda: sj.select.globally(PARAMS, 0.5, sj.select.leaf),
            "^grain",
            "Scope",
            r"sparsejax\.select\.weight",
        ),
        "integers": (
            lambda: jax.eval_shape(lambda s: sj.select.globally(s, 0.5), [shaped(4, dtype="int32")]),
            "leaf '0'",
            "int32",
            "sparsity 0.0",
        ),
        "further than the end": (
            lambda: sj.select.leafwise(W, 0.5, progress=1.5),
            "leaf '': progress",
            "=1.5",
            r"\[0, 1\]",
        ),
        "text": (lambda: sj.select.leafwise(W, "0.5"), "sparsity", "'0.5'", r"one float in \[0, 1\]"),
        "sparsities of one leaf": (
            lambda: sj.select.globally(PARAMS, {"in": 0.5}),
            "sparsity",
            "lacks",
            "jax.tree.map",
        ),
        "blocks as a tuple": (lambda: sj.select.block((4, 4)), "size", r"\(4, 4\)", r"block\(4, 4\)"),
        "groups of a half": (lambda: sj.select.groups_of(2.5), "^m", "=2.5", "an integer >= 1"),
        "no such axis": (
            lambda: jax.eval_shape(lambda s: sj.select.leafwise(s, 0.5, sj.select.channel("out")), shaped(3, 4)),
            r"leaf '': channel\(axis",
            "=out",
            r"\(3, 4\)",
        ),
        "groups across devices": (
            lambda: sj.select.leafwise(on_mesh(WEIGHTS, "x"), 0.5, scope=sj.select.groups_of(8)),
            "leaf '': groups of 8",
            r"sharded over 4",
            "shard the leaf along another axis",
        ),
        "no function": (lambda: sj.select.then(sj.select.leafwise, 0.5), "second", "=0.5", r"functools\.partial"),
    },
    "storage": {
        "holes": (lambda: sj.storage.save("net", PARAMS, HOLES), "mask", r"lacks \['bias', 'out'\]", "no None"),
        "traced": (
            lambda: jax.eval_shape(lambda p: sj.storage.save("net", p), SHAPES),
            "params leaf 'bias'",
            "Tracer",
            "outside jit",
        ),
        "a function": (
            lambda: sj.storage.save("net", {"act": jnp.tanh}),
            "params leaf 'act'",
            "object",
            "holds numbers",
        ),
        "arrays in JSON": (
            lambda: sj.storage.save("net", PARAMS, meta={"mean": W}),
            "meta",
            "Array",
            r"x\.tolist\(\)",
        ),
        "not a file of it": (
            lambda: sj.storage.load(__file__),
            "path=",
            "test_bad_input.py",
            "save the tree again",
        ),
    },
    "surrogates": {
        "negative": (lambda: sj.surrogates.leaky_relu(W, slope=-0.1), "slope", "=-0.1", ">= 0"),
        "nan": (lambda: sj.surrogates.softplus(W, beta=math.nan), "beta", "=nan", "> 0"),
    },
    "targets": {
        "a number for a budget": (
            lambda: sj.targets.weights(1000),
            "^budget",
            "=1000",
            r"sparsejax\.budgets\.compression",
        ),
        "a budget for a target": (
            lambda: sj.targets.settle(ONE_LEAF, GATED),
            "^target",
            "Budget",
            r"sparsejax\.targets\.weights\(budget\)",
        ),
        "parameters": (
            lambda: jax.eval_shape(sj.targets.weights(ONE_LEAF).choose, SHAPES),
            "^gated",
            "dict",
            r"sparsejax\.gates\.init",
        ),
        "out of reach": (
            lambda: jax.eval_shape(sj.targets.weights(Budget({"in": 1, "out": 1}, 5)).reached, GATED),
            "limit",
            "=5 ",
            "gate more leaves, or allow more",
        ),
        "an unmatched name": (
            lambda: jax.eval_shape(sj.targets.units(Budget({"kernel": 1}, 5), UNITS).reached, GATED_UNITS),
            r"budget\.costs",
            "'kernel'",
            r"the leaves are \['bias', 'in', 'out'\]",
        ),
    },
    "transforms": {
        "not called": (
            lambda: sj.sparsify(optax.adam, HALF, NOW),
            "^inner",
            "<function adam",
            "an optax transformation",
        ),
        "a number for a rule": (lambda: sj.sparsify(SGD, 0.9, NOW), "^rule", "=0.9", r"prune_to\(0\.9\)"),
        "a mask for a rule": (lambda: sj.sparsify(SGD, MASK, NOW), "^rule", "dict, not Rule", r"fixed\(mask\)"),
        "a step for a clock": (lambda: sj.sparsify(SGD, HALF, 100), "^when", "=100", r"every\(100\)"),
        "no params": (
            lambda: update(PRUNES, SHAPES, state_of(PRUNES), None),
            "params",
            "=None",
            r"tx\.update\(grads, state, params\)",
        ),
        "a state without its types": (
            lambda: update(PRUNES, SHAPES, state_of(PRUNES)._replace(inner=())[1:], SHAPES),
            "^state",
            "tuple, not SparsifyState",
            r"tx\.init\(params\) as the target",
        ),
        "the state of a smaller network": (
            lambda: update(PRUNES, WIDER, state_of(PRUNES), WIDER),
            "mask leaf 'bias'|mask leaf 'in'",
            r"\(3, 4\).*\(3, 5\)",
            "the same size",
        ),
        "no mask": (
            lambda: sj.find_mask(optax.adam(0.1).init(PARAMS)),
            "opt_state",
            "holds no SparsifyState",
            "made with sparsify",
        ),
        "a rate that is text": (lambda: sj.grda("0.1"), "learning_rate", "='0.1'", "a number >= 0, or a schedule"),
        "a state of another optimizer": (
            lambda: update(GRDA, SHAPES, state_of(PRUNES), SHAPES),
            "^state",
            "SparsifyState, not GrdaState",
            r"tx\.init",
        ),
        "gradients of one leaf": (
            lambda: update(GRDA, {"in": SHAPES["in"]}, state_of(GRDA), SHAPES),
            "^updates",
            r"lacks \['bias', 'out'\]",
            r"jax\.tree\.map over params",
        ),
        "gradients of another shape": (
            lambda: update(GRDA, SHAPES | {"in": shaped(1, 4)}, state_of(GRDA), SHAPES),
            "leaf 'in' of updates",
            r"\(1, 4\)",
            r"jax\.tree\.map over the parameters",
        ),
        "parameters without gates": (
            lambda: jax.eval_shape(AUTOPRUNE.init, SHAPES),
            "^params",
            "is dict",
            r"sparsejax\.gates\.init",
        ),
        "gradients of other gates": (
            lambda: update(AUTOPRUNE, GATED._replace(aux={"out": W}), state_of(AUTOPRUNE), GATED),
            "^updates",
            r"lacks \['aux/in'\]",
            r"jax\.tree\.map over params",
        ),
        "a rate for weights_tx": (lambda: sj.autoprune(0.1, SGD), "^weights_tx", "=0.1", r"optax\.adam\(1e-3\)"),
        "a negative penalty": (lambda: sj.autoprune(SGD, SGD, penalty=-1), "penalty", "=-1", "a finite number >= 0"),
        "a budget for a target": (
            lambda: sj.transforms.freeze_at(AUTOPRUNE, ONE_LEAF),
            "^target",
            "Budget",
            r"sparsejax\.targets\.weights\(budget\)",
        ),
        "no target": (lambda: sj.transforms.reached_at(()), "state", "0 FreezeAtState", "the state of one such"),
        "proximal gradients": (
            lambda: jax.eval_shape(PROX.update, {"in": SHAPES["in"]}, PROX_STATE, SHAPES),
            "^updates",
            r"lacks \['bias', 'out'\]",
            r"jax\.tree\.map over params",
        ),
        "an unmatched name": (
            lambda: sj.transforms.scale_by_name({"kernel": 2.0}).init(SHAPES),
            "factors",
            "'kernel'",
            r"the leaves are \['bias', 'in', 'out'\]",
        ),
    },
    "tree": {
        "an unmatched pattern": (
            lambda: sj.tree.select(SHAPES, "kernel"),
            "where",
            "='kernel'",
            r"could be selected are \['bias', 'in', 'out'\]",
        ),
        "a list of names": (lambda: sj.tree.select(SHAPES, ["in"]), "where", r"=\['in'\]", "a regular expression"),
        "the whole module": (
            lambda: sj.tree.select(SHAPES | {"activation": jnp.tanh}),
            "leaf 'activation'",
            "tanh",
            r"variables\['params'\]",
        ),
        "a dtype's name": (
            lambda: sj.tree.select(SHAPES | {"dtype": "f"}),
            "leaf 'dtype'",
            "'f'",
            "the parameters alone",
        ),
        "empty": (lambda: sj.tree.select({}), "rank >= 2", r"are \[\]", "could be selected"),
        "a slash": (
            lambda: sj.tree.named({"a": {"b": 1.0}, "a/b": 2.0}),
            "leaves of the tree",
            "'a/b'",
            "rename a key",
        ),
    },
    "unit_gates": {
        "another size": (
            lambda: sj.unit_gates.init(KEY, PARAMS, {"hidden": Group(5, (Member("in", -1),))}),
            "group 'hidden'",
            "4 positions, not 5",
            "`units` names the unit",
        ),
        "nothing reads them": (
            lambda: jax.eval_shape(
                lambda g: sj.unit_gates.apply(g, {"hidden": Group(4, (Member("in", -1),))}), GATED_UNITS
            ),
            "group 'hidden'",
            "no member to gate",
            "reads=True",
        ),
        "gates of another network": (
            lambda: sj.unit_gates.masks(Gated(PARAMS, {"hidden": jnp.ones(3)}), UNITS),
            r"aux\['hidden'\]",
            r"\(3,\).*4 units",
            r"sparsejax\.unit_gates\.init",
        ),
        "parameters": (lambda: sj.unit_gates.finalize(PARAMS, UNITS), "^gated", "dict", r"sparsejax\.gates\.init"),
        "activations of another layer": (
            lambda: jax.eval_shape(sj.unit_gates.gate, shaped(5, 3), shaped(4)),
            "^z ",
            r"\(5, 3\)",
            "the 4 units of m along axis=-1",
        ),
    },
    "units": {
        "swapped": (lambda: sj.units.trace(PARAMS, network, X), "^fn=", "is dict", r"trace\(fn, params"),
        "no parameters": (lambda: sj.units.trace(network, {}, X), "params", r"=\{\}", "as its first argument"),
        "another place": (
            lambda: sj.units.statistics(GRAPH, loss, PARAMS, [X], at="input"),
            "^at",
            "='input'",
            "'consumer_input'",
        ),
        "no batches": (lambda: sj.units.statistics(GRAPH, loss, PARAMS, []), "batches", "no batch", "at least one"),
        "a loss of every example": (
            lambda: sj.units.statistics(GRAPH, network, PARAMS, [X]),
            "loss_fn",
            r"\(5, 2\)",
            "the mean loss",
        ),
        "another replacement": (
            lambda: sj.units.remove(GRAPH, PARAMS, KEPT, "median"),
            "replace",
            "='median'",
            "'zero' or 'mean'",
        ),
        "no statistics": (
            lambda: sj.units.bias_maps(GRAPH, PARAMS, KEPT, None),
            "stats",
            "=None",
            r"units\.statistics\(",
        ),
        "one array for all groups": (
            lambda: sj.units.remove(GRAPH, PARAMS, KEPT["in"]),
            "^kept",
            "ndarray",
            r"pass \{group: array",
        ),
        "an unmatched group": (
            lambda: jax.eval_shape(lambda k: GRAPH.push({"hidden": k}), shaped(4, dtype="bool")),
            "kept",
            "'hidden'",
            r"the groups are \['in'\]",
        ),
        "inside jit": (
            lambda: jax.eval_shape(lambda k: sj.shrink(GRAPH, PARAMS, {"in": k}), shaped(4, dtype="bool")),
            r"kept\['in'\]",
            "traced",
            "outside of jit",
        ),
        "nothing left": (
            lambda: sj.shrink(GRAPH, PARAMS, {"in": np.zeros(4, bool)}),
            r"kept\['in'\]",
            "keeps no unit",
            "keep one at least",
        ),
        "the whole network": (
            lambda: jax.eval_shape(GRAPH.small(KEPT), SHAPES, X),
            "leaf 'bias'",
            r"\(4,\).*\(3,\)",
            r"sparsejax\.shrink",
        ),
        "shrunk twice": (
            lambda: sj.shrink(GRAPH, small(), KEPT),
            "leaf 'bias'",
            r"\(3,\).*\(4,\)",
            "from the smaller parameters",
        ),
        "all of them": (lambda: sj.units.lowest({"in": jnp.ones(4)}, 1.0), "amount", "=1.0", "less than 1"),
        "nan": (lambda: sj.units.lowest({"in": jnp.ones(4)}, math.nan), "amount", "=nan", "less than 1"),
        "scores of weights": (lambda: sj.units.lowest(PARAMS, 0.5), r"scores\['in'\]", r"\(3, 4\)", r"graph\.pull"),
        "scores of another layer": (
            lambda: sj.units.affordable(GRAPH, {"in": jnp.ones(3)}, Budget({"in": 1}, 8)),
            r"scores\['in'\]",
            r"\(3,\).*4 units",
            r"graph\.pull",
        ),
        "too little": (
            lambda: sj.units.affordable(GRAPH, {"in": jnp.ones(4)}, Budget({"in": 1}, 2)),
            r"budget\.limit",
            "=2 ",
            "allow more, or lower the floor",
        ),
        "no such edge": (
            lambda: jax.eval_shape(sj.units.with_maps(GRAPH, {"conv[0]": W}), PARAMS, X),
            "maps",
            r"'conv\[0\]'",
            r"has \['in\[0\]', 'out\[0\]'\]",
        ),
    },
}
ROWS = {f"{module}: {what}": row for module, rows in WRONG.items() for what, row in rows.items()}


@pytest.mark.parametrize("name", ROWS)
def test_the_error_names_the_argument_its_value_and_the_way_out(name):
    call, *parts = ROWS[name]
    assert len(parts) == 3
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert caught.type in (ValueError, TypeError), "an error of JAX's, or of a codec's"
    assert Path(caught.traceback[-1].path).is_relative_to(PACKAGE), "it comes from below the library"
    for part in parts:
        assert re.search(part, str(caught.value)), f"{part!r} is not in: {caught.value}"


def test_every_public_module_is_in_the_table():
    assert set(WRONG) == set(test_public.MODULES)
    assert {module for module, rows in WRONG.items() if len(rows) < 2} == set()


def test_the_calls_are_wrong_in_one_place_only():
    """What the wrong calls share is right: an error is that of the argument that the row is about."""
    sj.masks.check(MASK, PARAMS)
    sj.groups.check(UNITS, PARAMS)
    jax.eval_shape(sj.gates.apply, GATED)
    jax.eval_shape(lambda g: sj.unit_gates.apply(g, UNITS), GATED_UNITS)
    for tx, params in ((PRUNES, SHAPES), (GRDA, SHAPES), (PROX, SHAPES), (AUTOPRUNE, GATED)):
        update(tx, params, jax.eval_shape(tx.init, params), params)
    assert list(GRAPH.groups) == ["in"]
    assert isinstance(costs(), MultiplyAdds)
    assert sj.select.leafwise(on_mesh(WEIGHTS, "x"), 0.5, scope=sj.select.groups_of(4)).sum() == 64
