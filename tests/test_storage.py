"""Every tree comes back bit for bit, from small files; wrong calls are refused and leave what was there alone."""

import json
import os
import socket
import stat
import subprocess
import sys
from collections import OrderedDict, defaultdict, namedtuple
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file

import sparsejax as sj
from sparsejax import storage

ROOT = Path(__file__).parent.parent
NUMPY_DTYPES = ["bool", *(f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64))]
NUMPY_DTYPES += ["float16", "float32", "float64", "complex64", "complex128"]
FLOAT8S = ["e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu"]
JAX_DTYPES = ["bfloat16", *(f"float8_{kind}" for kind in FLOAT8S), "float4_e2m1fn", "int2", "int4", "uint2", "uint4"]
DTYPES = [np.dtype(name) for name in NUMPY_DTYPES] + [np.dtype(getattr(jnp, name)) for name in JAX_DTYPES]
NARROW = {"bool": 1, "float4_e2m1fn": 15, "int2": 3, "int4": 15, "uint2": 3, "uint4": 15}

Pair = namedtuple("Pair", ["first", "second"])


def random_bits(dtype, shape, seed=0, zeros=0.0):
    """An array of any bits that the dtype has, NaN of every kind among them, and a share of +0."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, NARROW.get(dtype.name, 255), (*shape, dtype.itemsize), np.uint8, endpoint=True)
    raw[rng.random(shape) < zeros] = 0
    return raw.reshape(-1).view(dtype).reshape(shape)


def same_bits(actual, expected):
    """Asserts that two arrays, of which the first is NumPy's, are of the same dtype, shape and bytes."""
    expected = np.asarray(expected)
    assert type(actual) is np.ndarray
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


def same_trees(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(same_bits, actual, expected)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def there_and_back(path, *args, like=None, **kwargs):
    storage.save(path, *args, **kwargs)
    return storage.load(path, like)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "zeros"), [((7, 5), 0.5), ((60, 70), 0.9), ((4000,), 0.0), ((), 0.0), ((0, 3), 0)])
def test_every_dtype_comes_back_bit_for_bit(path, dtype, shape, zeros):
    leaf = random_bits(dtype, shape, zeros=zeros)
    same_bits(there_and_back(path, {"leaf": leaf}).params["leaf"], leaf)
    keep = np.random.default_rng(1).random(shape) < 0.3
    stored = there_and_back(path, {"leaf": leaf}, mask={"leaf": keep})
    masked = random_bits(dtype, shape, zeros=zeros)
    masked[~keep] = np.zeros((), dtype)
    same_bits(stored.params["leaf"], masked)
    same_bits(stored.mask["leaf"], keep)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "int8"])
def test_only_the_bits_of_positive_zero_are_left_out(path, dtype):
    dtype = np.dtype(getattr(jnp, dtype))
    leaf = np.zeros(10_000, dtype)
    leaf[:3] = [1, 0, 100]
    if dtype.kind != "i":
        leaf[3:7] = np.array([-0.0, np.nan, -np.nan, np.inf]).astype(dtype)
    if dtype.kind == "c":
        leaf.view(np.float32)[18:22] = [-0.0, 0.0, 0.0, -0.0]  # complex numbers with one part -0
    kept = sum(value != bytes(dtype.itemsize) for value in map(bytes, leaf.view(np.uint8).reshape(10_000, -1)))
    same_bits(there_and_back(path, leaf).params, leaf)
    assert load_file(path)["values/"].nbytes == kept * dtype.itemsize


def arrays(*shapes):
    return [laws.weights(shape, seed) for seed, shape in enumerate(shapes)]


TREES = {
    "a dict": lambda: {"b": np.ones(2), "a": {"c": np.zeros(3), "": np.zeros((2, 2))}},
    "int keys": lambda: {10: np.ones(2), 9: {-1: np.ones(3)}},
    "names to escape": lambda: {'"\\\n': np.ones(1), "é/ü ☃": np.ones(2), "__metadata__": np.ones(3)},
    "a list": lambda: arrays((2,), (3,)),
    "a tuple": lambda: tuple(arrays((2,), (3,))),
    "an array": lambda: laws.weights((3, 4)),
    "OrderedDicts": lambda: OrderedDict(b=np.ones(2), a=OrderedDict([(2, np.ones(1)), (1, np.ones(3))])),
    "NamedTuples": lambda: Pair(laws.Layer(*arrays((2, 3), (3,))), [Pair(np.ones(1), ())]),
    "None": lambda: {"a": None, "b": [None, np.ones(2)]},
    "nothing": dict,
    "only None": lambda: None,
    "empty containers": lambda: {"a": {}, "b": [[], (), OrderedDict()], "c": np.ones(1)},
    "the state of an optimizer": lambda: optax.adamw(1e-3).init({"w": jnp.ones((2, 3))}),
    "gates": lambda: sj.gates.init(jax.random.key(0), {"w": jnp.ones((2, 3))}),
    "a deep tree": lambda: json.loads("[" * 90 + "]" * 90),
}


@pytest.mark.parametrize("name", TREES)
def test_every_container_comes_back(path, name):
    tree = TREES[name]()
    mask = jax.tree.map(lambda leaf: np.arange(np.size(leaf)).reshape(np.shape(leaf)) % 2 == 0, tree)
    stored = there_and_back(path, tree, mask)
    assert repr(jax.tree.structure(stored.params)) == repr(jax.tree.structure(tree))
    same_trees(stored.params, jax.tree.map(lambda m, p: np.where(m, p, np.zeros_like(p)), mask, tree))
    same_trees(stored.mask, mask)
    same_trees(there_and_back(path, tree).params, tree)
    same_trees(storage.load(path, like=tree).params, tree)


def leaves():
    kinds = st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (5,), (3, 7), (40, 50), (0, 2)]))
    return st.builds(
        lambda kind, seed, zeros: random_bits(*kind, seed, zeros), kinds, st.integers(0, 99), st.floats(0, 1)
    )


def containers(children):
    keyed = [st.dictionaries(keys, children, max_size=3) for keys in (st.text(max_size=3), st.integers())]
    listed = st.lists(children, max_size=3)
    return st.one_of(*keyed, listed, listed.map(tuple), st.builds(Pair, children, children), st.just(None))


def distinct(tree):
    try:
        return sj.tree.named(tree) is not None
    except ValueError:  # a key with "/"
        return False


@given(tree=st.recursive(leaves(), containers, max_leaves=6).filter(distinct), data=st.data())
@settings(deadline=None, max_examples=80, derandomize=True)
def test_random_trees_come_back(tmp_path_factory, tree, data):
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    same_trees(there_and_back(path, tree).params, tree)

    def mask_of(leaf):
        axes = [data.draw(st.sampled_from([1, n])) for n in leaf.shape]
        shape = axes[data.draw(st.integers(0, len(axes))) :]
        return random_bits(np.dtype(bool), tuple(shape), data.draw(st.integers(0, 9)))

    mask = jax.tree.map(mask_of, tree)
    stored = there_and_back(path, tree, mask)
    same_trees(stored.mask, mask)
    for actual, leaf, keep in zip(*map(jax.tree.leaves, (stored.params, tree, mask)), strict=True):
        expected = leaf.copy()
        expected[~np.broadcast_to(keep, leaf.shape)] = np.zeros((), leaf.dtype)
        same_bits(actual, expected)


def test_leaves_come_back_as_documented(path):
    tree = {
        "n": 3,
        "b": True,
        "f": -0.1,
        "c": 2j,
        "big": 2**63 + 1,
        "numpy": np.float32(2),
        "big-endian": np.ones(2, ">f4"),
    }
    loaded = there_and_back(path, tree).params
    for name in ("n", "b", "f", "c", "big"):
        assert type(loaded[name]) is type(tree[name])
        assert loaded[name] == tree[name]
    same_bits(loaded["numpy"], np.array(2, np.float32))
    same_bits(loaded["big-endian"], np.ones(2, np.float32))
    same_bits(there_and_back(path, np.arange(12.0).reshape(3, 4).T).params, np.arange(12.0).reshape(3, 4).T.copy())
    loaded = there_and_back(path, [np.ones(3), np.eye(50)]).params
    for leaf in loaded:
        leaf += 1  # they can be written to
    assert loaded[0].tolist() == [2, 2, 2]
    assert there_and_back(path, {"f": 3.0}, mask={"f": False}).params["f"] == 0.0


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_come_back(path, implementation):
    keys = {"one": jax.random.key(3, impl=implementation), "none": np.ones(2)}
    keys["two"] = jax.random.split(keys["one"], 2)
    for mask in (None, {"one": True, "two": np.ones(2, bool), "none": False}):
        loaded = there_and_back(path, keys, mask).params
        for name in ("one", "two"):
            assert loaded[name].dtype == keys[name].dtype
            assert (jax.random.key_data(loaded[name]) == jax.random.key_data(keys[name])).all()


LEAF = np.arange(1, 1 + 3 * 3 * 4 * 8, dtype=np.float32).reshape(3, 3, 4, 8)
MASKS = {
    "the scalar True": True,
    "the scalar False": np.array(False),
    "of channels": (np.arange(8) % 3 == 0)[None, None, None],
    "of a lower rank": np.arange(8) > 5,
    "of inputs": (np.arange(4) > 0).reshape(4, 1),
    "whole": LEAF % 5 == 0,
    "whole, True": np.ones(LEAF.shape, bool),
    "whole, False": np.zeros(LEAF.shape, bool),
    "of JAX": jnp.arange(8) % 2 == 0,
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_stored_at_its_own_shape(path, name):
    keep = np.asarray(MASKS[name])
    stored = there_and_back(path, {"k": LEAF}, {"k": MASKS[name]})
    same_bits(stored.mask["k"], keep)
    expected = np.where(np.broadcast_to(keep, LEAF.shape), LEAF, np.float32(0))
    same_bits(stored.params["k"], expected)
    found = load_file(path)
    if keep.all():
        assert found.keys() == {"dense/k"}
        same_bits(found["dense/k"], LEAF)
    else:  # the documented layout, read by another
        assert found.keys() == {"mask/k", "values/k"}
        assert found["mask/k"].tolist() == oracles.pack(keep)
        entries = zip(np.ravel(LEAF), np.ravel(np.broadcast_to(keep, LEAF.shape)), strict=True)
        assert found["values/k"].tolist() == [x for x, stays in entries if stays]


def test_what_comes_back_can_be_used(path):
    params = {"k": laws.weights((20, 30)), "b": laws.weights(30, 1)}
    mask = sj.select.leafwise(sj.scores.magnitude(params), sj.allocate.uniform(params, 0.8))
    stored = there_and_back(
        path, params, mask, meta={"method": "magnitude", "widths": [300, 100], "rate": 0.1, "n": None}
    )
    same_trees(stored.params, sj.apply(mask, params))
    assert float(sj.sparsity(stored.mask, stored.params)) == float(sj.sparsity(mask, params))
    assert stored.meta == {"method": "magnitude", "widths": [300, 100], "rate": 0.1, "n": None}
    assert stored.kept is None
    assert there_and_back(path, params)[1:] == (None, None, None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int8", "bool", "float8_e4m3fn", "complex64"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_size_is_that_of_mask_bits_and_kept_values(path, dtype, sparsity):
    dtype, shape = np.dtype(getattr(jnp, dtype)), (500, 1000)
    rng = np.random.default_rng(2)
    keep = rng.random(shape) >= sparsity
    leaf = np.where(keep, np.ones((), dtype), np.zeros((), dtype))
    dense, least = leaf.nbytes, keep.size / 8 + keep.sum() * dtype.itemsize
    storage.save(path, {"k": leaf}, {"k": keep})
    assert os.path.getsize(path) <= 1.05 * (dense if keep.all() else least)
    storage.save(path, {"k": leaf})
    assert os.path.getsize(path) <= 1.05 * min(least, dense)
    channels = rng.random((1, 1000)) >= sparsity
    storage.save(path, {"k": leaf}, {"k": channels})
    least = 1000 / 8 + channels.sum() * 500 * dtype.itemsize
    assert os.path.getsize(path) <= 2048 + max(1.05 * least, dense / 1000)


def test_small_networks_run_from_what_is_stored(path):
    def net(p, x):
        return jnp.tanh(jax.nn.relu(x @ p["first"]["w"] + p["first"]["b"]) @ p["second"]["w"]) @ p["last"]

    shapes = {"first": {"w": (6, 9), "b": (1, 9)}, "second": {"w": (9, 11)}, "last": (11, 3)}
    params = jax.tree.map(lambda shape: laws.weights(shape, sum(shape)), shapes, is_leaf=lambda n: isinstance(n, tuple))
    x = laws.weights((4, 6), 5)
    graph = sj.units.trace(net, params, x)
    scores = graph.pull(jax.tree.map(jnp.square, params))
    kept = {name: score >= jnp.median(score) for name, score in scores.items()}
    assert sorted(group.size for group in graph.groups.values()) == [9, 11]
    stored = there_and_back(path, sj.shrink(graph, params, kept), kept=kept)
    same_trees(stored.kept, kept)
    assert load_file(path)["kept/first"].tolist() == oracles.pack(kept["first"])
    expected = net(jax.tree.map(np.asarray, sj.apply(graph.push(kept), params)), x)
    np.testing.assert_allclose(graph.small(stored.kept)(stored.params, x), expected, rtol=1e-5, atol=1e-6)
    assert there_and_back(path, params, kept={}).kept == {}


def test_numpy_trees_need_no_device(path):
    """JAX has no backend in this process, so anything that it computed would fail."""
    code = f"""if True:
        import numpy as np
        from sparsejax import storage
        tree = {{"a": [np.eye(99), np.ones(3, np.float32), 2.5]}}
        for mask in (None, {{"a": [np.eye(99) > 0, True, True]}}):
            storage.save({str(path)!r}, tree, mask, kept={{"g": np.arange(5) > 2}})
            assert (storage.load({str(path)!r}).params["a"][0] == np.eye(99)).all()
    """
    run(code, JAX_PLATFORMS="none")


def run(code, **environment):
    """Runs code in a process of its own, and returns what it printed."""
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sharded_arrays_are_gathered(path):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    tree = {"k": laws.weights((8, 6)), "b": laws.weights(6, 1), "m": laws.weights((8, 6), 2) > 0}
    places = {"k": PartitionSpec("x", "y"), "b": PartitionSpec(), "m": PartitionSpec("y")}
    placed = {name: jax.device_put(leaf, NamedSharding(mesh, places[name])) for name, leaf in tree.items()}
    mask = {"k": placed["m"], "b": True, "m": True}
    stored = there_and_back(path, placed, mask)
    same_trees(stored.params, sj.apply(mask, tree) | {"m": tree["m"]})
    same_bits(stored.mask["k"], tree["m"])


@pytest.mark.slow
def test_arrays_of_other_processes_are_refused_and_copies_of_all_are_saved(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""if True:
        import sys, jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from sparsejax import storage
        rank = int(sys.argv[1])
        jax.config.update("jax_num_cpu_devices", 2)
        jax.distributed.initialize("127.0.0.1:{port}", 2, rank)
        mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        values = np.arange(8.0, dtype=np.float32)
        for spec in ("x", None):
            sharding = NamedSharding(mesh, PartitionSpec(spec))
            leaf = jax.make_array_from_callback((8,), sharding, lambda index: values[index])
            try:
                storage.save(f"{tmp_path}/{{rank}}.safetensors", {{"a/b": leaf}})
            except ValueError as error:
                print(spec, error)
        print(storage.load(f"{tmp_path}/{{rank}}.safetensors").params["a/b"].tolist())
    """
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    environment["PYTHONPATH"] = str(ROOT)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen([sys.executable, "-c", code, str(rank)], **pipes) for rank in (0, 1)]
    for process in processes:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        first, second = out.splitlines()
        assert first.startswith("x params leaf 'a/b' lies partly on devices of other processes")
        assert "process_allgather" in first
        assert json.loads(second) == list(range(8))


class Inner:
    """A place for a class that no file can name."""

    Hidden = namedtuple("Hidden", ["a"])


Renamed = namedtuple("Renamed", ["a", "b"])
Derived = type(
    "Derived", (Pair,), {"__new__": lambda cls, *args: pytest.fail("a file ran code"), "__module__": __name__}
)
UNKNOWN = {
    "a class in a class": (Inner.Hidden(np.ones(2)), r"NamedTuple 'Hidden' with the fields \['a'\]"),
    "other fields": (namedtuple("Pair", ["first"])(np.ones(2)), r"NamedTuple 'Pair' with the fields \['first'\]"),
    "a class that is gone": (Renamed(np.ones(2), None), "no plain class is loaded; import '.*test_storage' first"),
    "a derived class": (tuple.__new__(Derived, (np.ones(2), np.ones(3))), "NamedTuple 'Derived'"),
    "a FrozenDict": (flax.core.freeze({"a": {"b": np.ones(2)}}), "it holds a 'flax.core.frozen_dict.FrozenDict'"),
    "a defaultdict": (defaultdict(list, a=np.ones(2)), "it holds a 'collections.defaultdict'"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_a_file_cannot_name_needs_a_template(path, name, monkeypatch):
    tree, message = UNKNOWN[name]
    storage.save(path, tree)
    monkeypatch.delattr(sys.modules[__name__], "Renamed")
    with pytest.raises(ValueError, match=rf"net.safetensors' cannot be loaded: .*{message}.*pass like="):
        storage.load(path)
    if name != "a derived class":
        storage.save(path, tree, jax.tree.map(lambda leaf: leaf > 0, tree))
        stored = storage.load(path, like=jax.tree.map(lambda leaf: "anything", tree))
        same_trees(stored.params, tree)
        assert jax.tree.structure(stored.mask) == jax.tree.structure(tree)


def test_a_template_must_have_the_leaves(path):
    storage.save(path, {"a": np.ones(2), "b": [np.ones(3)]})
    shapes = jax.eval_shape(lambda: {"a": jnp.ones(5), "b": (jnp.ones(()),)})
    assert storage.load(path, like=shapes).params["b"][0].shape == (3,)
    with pytest.raises(ValueError, match=r"like must have the leaves .* lacks \['b/0'\] and adds \['c'\]"):
        storage.load(path, like={"a": 0, "c": 0})


class Meta:
    """Not JSON."""


def call(**arguments):
    return arguments


GOOD = {"a": np.ones((2, 3), np.float32), "b": np.ones(3)}
WRONG = {
    "a string": (call(params={"a": "text"}), "params leaf 'a' has dtype <U4; a file holds numbers: bool, "),
    "an object": (call(params={"a": Meta()}), "params leaf 'a' has dtype object"),
    "a huge int": (call(params={"a": 2**70}), "params leaf 'a' has dtype object"),
    "a date": (call(params={"a": np.array("2020-01-01", "M8[D]")}), "params leaf 'a' has dtype datetime64"),
    "a record": (call(params={"a": np.zeros(2, "f4,i4")}), "params leaf 'a' has dtype"),
    "no value": (call(params=jax.eval_shape(lambda: {"a": jnp.ones(2)})), "params leaf 'a' has no value.*outside jit"),
    "a tuple for a key": (call(params={(1, 2): np.ones(2)}), r"the key \(1, 2\); a file holds str and int keys"),
    "a bool for a key": (call(params={True: np.ones(2)}), "the key True"),
    "names that clash": (call(params={"a/b": 1, "a": {"b": 2}}), "two leaves of the tree are both called 'a/b'"),
    "a tree too deep": (call(params=json.loads("[" * 150 + "]" * 150)), "nested more than 100 deep"),
    "a mask of floats": (call(params=GOOD, mask={"a": np.ones((2, 3)), "b": True}), "mask leaf 'a' has dtype float"),
    "a mask too wide": (call(params=GOOD, mask={"a": np.ones((2, 4), bool), "b": True}), "'a' has shape"),
    "a mask too short": (call(params=GOOD, mask={"a": True}), r"mask must .* lacks \['b'\]"),
    "a mask of one key": (
        call(params=[jax.random.key(0)], mask=[False]),
        "mask prunes leaf '0', which holds PRNG keys",
    ),
    "meta of no dict": (call(params=GOOD, meta=["a"]), r"meta=\['a'\] must be a dict"),
    "meta of objects": (call(params=GOOD, meta={"a": Meta()}), "meta cannot be written as JSON: .*Meta.*str"),
    "meta of arrays": (call(params=GOOD, meta={"a": np.ones(2)}), "meta cannot be written as JSON: .*ndarray.*tolist"),
    "meta with NaN": (call(params=GOOD, meta={"a": [np.nan]}), "meta cannot be written as JSON: .*finite"),
    "meta with two keys of a name": (call(params=GOOD, meta={1: 1, "1": 2}), "the key '1' is there twice"),
    "kept of no dict": (call(params=GOOD, kept=np.ones(3, bool)), "kept=.* must be {group"),
    "kept of floats": (call(params=GOOD, kept={"g": np.ones(3)}), r"kept\['g'\] is float64 of shape \(3,\)"),
    "kept of rank two": (
        call(params=GOOD, kept={"g": np.ones((3, 1), bool)}),
        r"kept\['g'\] is bool of shape \(3, 1\)",
    ),
    "kept of an int": (call(params=GOOD, kept={1: np.ones(3, bool)}), r"kept\[1\]"),
    "a name that is no text": (call(params={"\ud800": np.ones(2)}), "surrogates not allowed"),
    "a header too long": (call(params=GOOD, meta={"a": "x" * 100_000_000}), "header"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_leave_the_file_alone(path, name):
    arguments, message = WRONG[name]
    storage.save(path, GOOD)
    before = path.read_bytes()
    with pytest.raises(OSError if "header" in name else ValueError, match=message):
        storage.save(path, **arguments)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_traced_values_are_refused(path):
    @jax.jit
    def step(params, keep):
        storage.save(path, params if keep is None else {"w": 1.0}, None if keep is None else {"w": keep})
        return params

    with pytest.raises(ValueError, match=r"params leaf 'w' has no value, it is .*; save outside jit"):
        step({"w": jnp.ones(3)}, None)
    with pytest.raises(ValueError, match="mask leaf 'w' has no value"):
        step({"w": jnp.ones(3)}, jnp.array(True))
    assert not path.exists()


def test_donated_arrays_are_refused(path):
    params = {"w": jnp.ones(3)}
    params["w"].delete()  # what donation does, where the device can
    with pytest.raises(ValueError, match=r"params leaf 'w' was donated .*; save what that function returned"):
        storage.save(path, params)
    assert not path.exists()


def test_paths_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path='.*none/net' lies in '.*none', which is no folder.*makedirs"):
        storage.save(tmp_path / "none" / "net", GOOD)
    with pytest.raises(FileNotFoundError, match="is a folder; add a file name"):
        storage.save(tmp_path, GOOD)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"path='.*' is not a file; make one with sparsejax.storage.save"):
            storage.load(path)
    assert os.listdir(tmp_path) == []


def test_paths_are_those_of_the_system(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.save("here", GOOD)
    os.chmod("here", 0o600)
    (tmp_path / "link").symlink_to("here")
    storage.save("link", [np.ones(3)])
    assert (tmp_path / "link").is_symlink()
    same_trees(storage.load("here").params, [np.ones(3)])
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(os.stat("here").st_mode) == stat.S_IMODE(os.stat("plain").st_mode)


def test_equal_trees_make_equal_files(tmp_path):
    tree = {"k": random_bits(np.dtype("float32"), (60, 70), zeros=0.9), "b": np.ones(3), "s": 2}
    contents = set()
    for index in range(5):
        storage.save(
            tmp_path / str(index), tree, meta={"a": 1, "b": 2}, kept={"g": np.ones(3, bool), "h": np.ones(2, bool)}
        )
        contents.add((tmp_path / str(index)).read_bytes())
    assert len(contents) == 1


def test_the_manifest_says_what_is_documented(path):
    storage.save(
        path, {"k": LEAF, "n": 1}, {"k": MASKS["of channels"], "n": True}, meta={"m": 1}, kept={"g": LEAF[0, 0, 0] > 3}
    )
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"sparsejax"}
    checksum, _, text = metadata["sparsejax"].partition(" ")
    manifest = json.loads(text)
    assert len(checksum) == 64
    assert (manifest["format"], manifest["library"], manifest["meta"], manifest["kept"]) == (
        1,
        sj.__version__,
        {"m": 1},
        {"g": 8},
    )
    assert manifest["tree"] == ["dict", ["k", "n"], ["*", "*"]]
    assert [leaf["name"] for leaf in manifest["leaves"]] == ["k", "n"]
    assert (manifest["leaves"][0]["dtype"], manifest["leaves"][0]["shape"]) == ("float32", [3, 3, 4, 8])
    assert manifest["checksums"].keys() == {"mask/k", "values/k", "dense/n", "kept/g"}
