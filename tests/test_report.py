"""Counts against NumPy and against counts by hand."""

import dataclasses
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sparsejax import allocate, budgets, report

f32 = partial(jax.ShapeDtypeStruct, dtype="float32")


def sparse(shape, dtype="float32", seed=0):
    """Normal numbers of which about a third are 0, some of those -0.0, and some not zero but subnormal."""
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(np.arange(np.prod(shape)) % 6).reshape(shape)
    values = np.where(kinds < 2, 0.0, rng.standard_normal(shape) * 3).astype(dtype)
    values = np.where(kinds == 1, -values, values)
    tiny = ml_dtypes.finfo(dtype).smallest_subnormal if np.dtype(dtype).kind in "fV" else 1
    return np.where(kinds == 2, np.asarray(tiny, dtype), values).astype(dtype)


def mixed():
    return {
        "half": jnp.asarray(sparse((7, 5), ml_dtypes.bfloat16)),
        "host": sparse((3, 4, 2), np.float64),
        "single": [jnp.asarray(sparse((9, 11), seed=1)), jnp.asarray(sparse((6,), seed=2))],
        "small": jnp.asarray(sparse((4, 4), np.float16)),
        "steps": jnp.asarray(3, "int32"),
        "table": jnp.asarray([[0, 1], [2, 0]], "int8"),
    }


def nonzeros_by_value(leaf):
    return sum(abs(float(value)) > 0 for value in np.asarray(leaf).ravel().astype(np.float64))


def test_counts_are_those_of_numpy():
    params = mixed()
    counts = report.count(params)
    leaves = jax.tree.leaves(params)
    assert [leaf.nonzeros for leaf in counts.leaves] == [nonzeros_by_value(leaf) for leaf in leaves]
    assert [leaf.size for leaf in counts.leaves] == [np.size(leaf) for leaf in leaves]
    assert [leaf.shape for leaf in counts.leaves] == [np.shape(leaf) for leaf in leaves]
    assert [leaf.dtype for leaf in counts.leaves] == [str(leaf.dtype) for leaf in leaves]
    assert [leaf.name for leaf in counts.leaves if leaf.prunable] == ["half", "host", "single/0", "small"]


def test_totals_of_all_and_of_the_prunable_stay_apart():
    counts = report.count({"kernel": jnp.eye(4), "bias": jnp.array([0.0, -0.0, 1.0, 2.0]), "steps": jnp.asarray(7)})
    assert (counts.parameters, counts.nonzeros, counts.sparsity, counts.compression) == (21, 7, 14 / 21, 3.0)
    assert (counts.prunable_parameters, counts.prunable_nonzeros, counts.prunable_sparsity) == (16, 4, 0.75)
    assert (counts.multiply_adds, counts.effective_multiply_adds, counts.theoretical_speedup) == (None, None, None)
    everything = report.count({"kernel": jnp.eye(4), "bias": jnp.zeros(4)}, where="kernel|bias")
    assert (everything.prunable_parameters, everything.prunable_sparsity) == (20, 0.8)


@pytest.mark.parametrize(("x", "compression"), [(jnp.zeros((2, 3)), float("inf")), (jnp.ones((2, 3)), 1.0)])
def test_compression_at_its_ends(x, compression):
    assert report.count(x).compression == compression


def test_a_function_without_products_is_not_sped_up():
    assert report.count(jnp.zeros((2, 3)), multiply_adds=report.MultiplyAdds({"": 0})).theoretical_speedup == 1.0


def test_keys_hold_no_numbers():
    counts = report.count({"key": jax.random.split(jax.random.key(0), 3), "w": jnp.eye(3)})
    assert (counts.leaves[0].size, counts.leaves[0].nonzeros, counts.leaves[0].sparsity) == (3, None, None)
    assert (counts.parameters, counts.nonzeros) == (9, 3)
    assert re.search(r"key +3 +3 +- +-\n", str(counts))


def test_more_entries_than_float32_counts():
    side = 4097  # the square is 2**24 + 8193, and odd
    w = jnp.ones((side, side), "bfloat16").at[5, 7:9].set(0)
    counts = report.count(w)
    assert counts.nonzeros == side**2 - 2 == counts.prunable_nonzeros
    assert int(np.float32(counts.nonzeros)) != counts.nonzeros
    assert type(counts.nonzeros) is int


@pytest.mark.parametrize(
    ("shape", "rest"),
    [
        ((3, 5), ()),
        ((2**16, 2**15), (2**16,)),
        ((2**16, 2**14, 2), (2**16,)),
        ((2**15, 2**15), ()),
        ((2**40,), (2**40,)),
    ],
)
def test_no_partial_count_exceeds_int32(shape, rest):
    partial_counts = jax.eval_shape(report._partial_counts, f32(shape))
    assert partial_counts.shape == rest
    assert partial_counts.dtype == np.int32
    assert np.prod(shape, dtype=object) // max(1, np.prod(rest, dtype=object)) < 2**31


def test_sharded_leaves_and_leaves_of_several_devices():
    values = sparse((16, 8))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params = {
        "rows": jax.device_put(values, NamedSharding(mesh, P("x"))),
        "columns": jax.device_put(values, NamedSharding(mesh, P(None, "x"))),
        "first": jax.device_put(values, jax.devices()[0]),
        "last": jax.device_put(values, jax.devices()[-1]),
    }
    assert {leaf.nonzeros for leaf in report.count(params).leaves} == {nonzeros_by_value(values)}


def test_a_tree_is_counted_in_one_compiled_call():
    params = {str(i): jnp.full((3, i + 2), i % 2, "float32") for i in range(6)}
    before = report._count_arrays._cache_size()
    report.count(params)
    report.count(jax.tree.map(jnp.zeros_like, params))
    assert report._count_arrays._cache_size() == before + 1


def bad_counts():
    ok, nan = jnp.eye(3), jnp.array([[0.0, jnp.nan]])
    products = report.multiply_adds(lambda p: p["a"] @ p["a"], {"a": ok})
    return {
        "nan": (partial(report.count, {"a": ok, "b": [nan]}), "'b/0' holds 1 NaN"),
        "nan on the host": (partial(report.count, {"a": ok, "b": np.array([np.nan, 1.0])}), "'b' holds 1 NaN"),
        "nan in bfloat16": (partial(report.count, nan.astype("bfloat16")), "holds 1 NaN"),
        "traced": (lambda: jax.jit(lambda p: report.count(p).nonzeros)({"a": ok}), "'a' has no value"),
        "abstract": (partial(report.count, {"a": f32((3, 3))}), "'a' has no value"),
        "nothing prunable": (partial(report.count, {"a": jnp.ones(3)}), "no float leaf has rank >= 2"),
        "where matches nothing": (partial(report.count, {"a": ok}, "kernel"), "'kernel' matches no leaf"),
        "asked of another tree": (partial(report.count, {"a": ok}, asked={"b": 0.5}), "asked must have the structure"),
        "asked of what is not prunable": (
            partial(report.count, {"a": ok, "b": ok}, "a", asked={"a": 0.5, "b": 0.5}),
            r"asked prunes \['b'\]",
        ),
        "asked in per cent": (partial(report.count, {"a": ok}, asked=90), r"asked must be a number in \[0, 1\]"),
        "asked of a leaf in per cent": (partial(report.count, {"a": ok}, asked={"a": 90}), r"asked \(for 'a'\) must"),
        "budget of another tree": (
            partial(report.count, {"a": ok}, budget=budgets.Budget({"b": 1}, 3)),
            "budget.costs has an entry 'b'",
        ),
        "products of another tree": (partial(report.count, {"b": ok}, None, products), r"\['a', 'b'\]"),
    }


@pytest.mark.parametrize("case", bad_counts())
def test_what_cannot_be_counted_raises(case):
    count, message = bad_counts()[case]
    with pytest.raises(ValueError, match=message):
        count()


def lenet_300_100():
    """784-300-100-10, in which every other row of the first kernel is zero and nothing else is."""
    sizes = {"fc1": (784, 300), "fc2": (300, 100), "fc3": (100, 10)}
    params = {
        name: {"kernel": np.ones(shape, "float32"), "bias": np.ones(shape[1], "float32")}
        for name, shape in sizes.items()
    }
    params["fc1"]["kernel"][::2] = 0

    def fn(params, x):
        for layer in params.values():
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
        return x @ x.T

    return params, report.multiply_adds(fn, params, f32((1, 784)))


def test_multiply_adds_of_lenet_300_100():
    params, products = lenet_300_100()
    counts = report.count(params, multiply_adds=products)
    assert (counts.parameters, counts.nonzeros) == (266_610, 266_610 - 117_600)
    assert counts.multiply_adds == 266_200 + 10
    assert counts.effective_multiply_adds == 266_200 - 117_600 + 10
    assert counts.theoretical_speedup == 266_210 / 148_610
    assert {leaf.name: leaf.effective_multiply_adds for leaf in counts.leaves if leaf.prunable} == {
        "fc1/kernel": 117_600,
        "fc2/kernel": 30_000,
        "fc3/kernel": 1_000,
    }


def test_the_table_shows_every_number():
    params, products = lenet_300_100()
    lines = str(report.count(params, multiply_adds=products)).splitlines()
    cells = {line.split("  ")[0]: line.split()[-5:] for line in lines}
    assert cells["fc1/kernel *"] == ["235,200", "117,600", "50.00%", "235,200", "117,600"]
    assert cells["(no leaf)"][-2:] == ["10", "10"]
    assert cells["all"] == ["266,610", "149,010", "44.11%", "266,210", "148,610"]
    assert cells["prunable *"] == ["266,200", "148,600", "44.18%", "266,200", "148,600"]
    assert lines[-2] == "compression 1.79x: all parameters / all non-zeros"
    assert lines[-1] == "theoretical speed-up 1.79x: multiply-adds / effective ones"
    assert "multiply-adds" not in str(report.count(params))


def test_the_table_fits_a_terminal():
    name = "params/" + "TransformerEncoderBlock_11/" * 5 + "MultiHeadDotProductAttention_0/{}/kernel"
    params = {name.format(part): np.ones((1024, 16, 64), "float32") for part in ("query", "key")}
    products = report.MultiplyAdds(dict.fromkeys(params, 10**10))
    text = str(report.count(params, multiply_adds=products))
    assert max(map(len, text.splitlines())) <= 100
    assert "0/query/kernel *  1024x16x64" in text
    assert "0/key/kernel *" in text


def test_markdown_is_one_aligned_table():
    params, products = lenet_300_100()
    params["a|b"] = params.pop("fc3")
    products = dataclasses.replace(
        products, by_leaf={name.replace("fc3", "a|b"): n for name, n in products.by_leaf.items()}, notes=("a note",)
    )
    table, _, remarks = report.count(params, multiply_adds=products).markdown().partition("\n\n")
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
    assert len({tuple(map(len, row)) for row in rows}) == 1
    assert {len(row) for row in rows} == {7}
    assert [re.fullmatch(r" (:?)-+(:?) ", cell).groups() for cell in rows[1]] == [(":", "")] * 2 + [("", ":")] * 5
    labels = [row[0].strip() for row in rows[2:]]
    assert labels[:2] == [r"a\|b/bias", r"a\|b/kernel \*"]
    assert labels[-3:] == ["(no leaf)", "all", r"prunable \*"]
    assert len(remarks.splitlines()) == 3
    assert remarks.splitlines()[-1] == "- a note"


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_the_dict_is_flat_json(scale):
    params, products = lenet_300_100()
    params = jax.tree.map(lambda leaf: leaf * np.float32(scale), params)
    flat = report.count(params, multiply_adds=products).as_dict()
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat
    assert flat["parameters"] == 266_610
    assert flat["multiply_adds/fc1/kernel"] == 235_200
    assert flat["sparsity/fc1/kernel"] == (0.5 if scale else 1.0)
    assert flat["effective_multiply_adds"] == (148_610 if scale else 10)
    assert ("compression" in flat) == (scale > 0)
    assert "multiply_adds" not in report.count(params).as_dict()


def test_what_was_asked_stands_beside_what_was_reached():
    params, _ = lenet_300_100()
    asked = allocate.uniform(params, 0.9)
    counts = report.count(params, asked=asked)
    assert {leaf.name: leaf.asked for leaf in counts.leaves} == {
        f"{layer}/{part}": 0.9 * (part == "kernel") for layer in params for part in ("bias", "kernel")
    }
    assert counts.prunable_asked == 0.9
    assert counts.asked == 0.9 * 266_200 / 266_610
    cells = {line.split("  ")[0]: line.split()[-3:] for line in str(counts).splitlines()}
    assert cells["fc1/kernel *"] == ["117,600", "90.00%", "50.00%"]
    assert cells["fc1/bias"] == ["300", "0.00%", "0.00%"]
    assert cells["all"] == ["149,010", "89.86%", "44.11%"]
    assert cells["prunable *"] == ["148,600", "90.00%", "44.18%"]
    flat = counts.as_dict()
    assert (flat["asked/fc1/kernel"], flat["prunable_asked"], flat["asked"]) == (0.9, 0.9, counts.asked)
    assert not [name for name in report.count(params).as_dict() if "asked" in name]
    # By hand: 8 of 10 zeros in one leaf and 1 of 5 in the other are 9 of 15.
    leaves = {"a": np.zeros((2, 5)), "b": np.ones((1, 5))}
    assert report.count(leaves, asked={"a": 0.8, "b": 0.2}).prunable_asked == 9 / 15


def test_a_share_asked_of_all_leaves_together_is_asked_of_none_of_them():
    counts = report.count({"kernel": np.eye(4), "bias": np.ones(4)}, asked=0.5)
    assert (counts.prunable_asked, counts.asked) == (0.5, 0.5 * 16 / 20)
    assert {leaf.asked for leaf in counts.leaves} == {None}
    assert re.search(r"kernel \* +4x4 +16 +4 +- +75.00%\n", str(counts))


@pytest.mark.parametrize(("limit", "end"), [(17, "spent by the non-zeros"), (15, "EXCEEDED")])
def test_a_budget_stands_beside_what_was_spent(limit, end):
    budget = budgets.Budget({"kernel": 3, "bias": 1}, limit)
    counts = report.count({"kernel": np.eye(4), "bias": np.ones(4), "other": np.ones(9)}, budget=budget)
    assert (counts.limit, counts.spent) == (limit, 16)
    assert str(counts).splitlines()[-1].startswith(f"budget: 16 of {limit} spent")
    assert str(counts).endswith(end)
    assert counts.as_dict()["spent"] == 16
    assert "budget" not in str(report.count({"kernel": np.eye(4)}))


THIRDS = {"a": np.array([[0.0, 0.0, 1.0]]), "b": np.ones((1, 3)), "c": np.zeros(3), "d": np.arange(10) == 0}


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        (1 / 3, {}),
        (0.334, {}),
        (0.3323334, {}),
        (1 / 2, {"tolerance": 0.2}),
        (5 / 9, {"where": "a|b|c"}),
        ({"a": 2 / 3}, {"tolerance": 0}),
        ({"d": 0.901}, {}),
        ({"d": 0.899}, {}),
        ({"a": 0.667, "b": 0.0, "c": 1}, {}),
        (np.float32(1 / 3), {}),
        (jnp.asarray(1 / 3), {"tolerance": jnp.asarray(0.01)}),
    ],
)
def test_the_right_sparsity_returns_the_report(expected, options):
    assert report.check_sparsity(THIRDS, expected, **options) == report.count(THIRDS, options.get("where"))


@pytest.mark.parametrize(
    ("expected", "options", "parts"),
    [
        (0.335, {}, ["measured 0.333333, expected 0.335", "optimizer step", "EMA", "finalised", "`where`"]),
        (0.332, {}, ["measured 0.333333, expected 0.332"]),
        (0.5, {"tolerance": 0.1}, ["not within 0.1", "prunable *"]),
        (1 / 3, {"where": "a|b|c"}, ["measured 0.555556"]),
        ({"a": 0.6, "b": 0, "c": 0.5}, {}, ["a: measured 0.666667, expected 0.6", "c: measured 1, expected 0.5"]),
    ],
)
def test_the_wrong_sparsity_raises_with_the_table(expected, options, parts):
    with pytest.raises(ValueError, match="sparsity is not within") as error:
        report.check_sparsity(THIRDS, expected, **options)
    for part in [*parts, str(report.count(THIRDS, options.get("where")))]:
        assert part in str(error.value)
    assert "b: measured" not in str(error.value)


@pytest.mark.parametrize(
    ("expected", "tolerance", "message"),
    [
        (90, 0.001, "expected.* must be a number in \\[0, 1\\], not 90"),
        (-0.1, 0.001, "not -0.1"),
        (float("nan"), 0.001, "not nan"),
        ("0.9", 0.001, "not '0.9'"),
        (None, 0.001, "not None"),
        ({"a": 1.5}, 0.001, "expected \\(for a\\) must be"),
        ({"kernel": 0.5}, 0.001, "'kernel' that is not a leaf"),
        ({}, 0.001, "names no leaf"),
        (0.5, 2, "tolerance must be"),
        (0.5, float("nan"), "tolerance must be"),
    ],
)
def test_sparsities_out_of_range_raise(expected, tolerance, message):
    with pytest.raises(ValueError, match=message):
        report.check_sparsity(THIRDS, expected, tolerance)


@pytest.mark.parametrize(
    "kept", [(1, 1), (1, 2), (49, 100), (15, 100), (1, 9), (9, 25), (1, 1000), (16_652_100, 110_120_360)]
)
def test_dense_equivalent_width_is_the_widest_that_fits(kept):
    part, whole = kept
    for width in (1, 2, 3, 10, 16, 99, 100, 512, 2**20):
        fits = int((part / whole) ** 0.5 * width) + 2  # from above, in integers: n**2 <= part / whole * width**2
        while fits**2 * whole > part * width**2:
            fits -= 1
        assert report.dense_equivalent_width(width, part / whole) == max(1, fits)


def test_dense_equivalent_width_of_the_paper():
    assert [report.dense_equivalent_width(width, 0.15) for width in (16, 128, 256, 512)] == [6, 49, 99, 198]
    assert report.dense_equivalent_width(100, 0.49) == 70
    assert report.dense_equivalent_width(np.int64(100), np.float64(1e-9)) == 1


@pytest.mark.parametrize(("width", "kept"), [(0, 0.5), (-3, 0.5), (16, 0.0), (16, 1.1), (16, float("nan")), (16, -1)])
def test_widths_out_of_range_raise(width, kept):
    with pytest.raises(ValueError, match="kept"):
        report.dense_equivalent_width(width, kept)


def test_a_report_is_immutable_and_comparable():
    counts = report.count({"w": jnp.eye(2)})
    assert counts == report.count({"w": np.eye(2, dtype="float32")})
    with pytest.raises(dataclasses.FrozenInstanceError):
        counts.leaves = ()
