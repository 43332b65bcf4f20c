"""Training states in checkpoints of Orbax: types, dtypes and bits, on other meshes, and runs that are killed."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj

RATE = 0.05
PARAMS = {"a": laws.weights((16, 12), 60), "b": [laws.weights((4, 8, 8), 61), laws.weights(8, 62)]}
GATED = sj.gates.init(jax.random.key(1), PARAMS, std=0.02)
BOUNDED = {"params": PARAMS, "bounds": sj.bounds.init(PARAMS, 0.5, min_size=1)}


@pytest.fixture(autouse=True)
def optax_promotes(strict):
    """Optax's own optimizers mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Run(NamedTuple):
    """What is trained, the optimizer, what its gradients are, and how near runs on different meshes stay."""

    params: chex.ArrayTree
    tx: optax.GradientTransformation
    gradients: object
    rounding: float = 0.0


def drawn(params, step):
    """Gradients that do not depend on the weights, and so not on how anything is added up."""
    return jax.tree.map(lambda p: laws.weights(p.shape, 200 + step, p.dtype, scale=0.3), params)


def of_bounds(trained, step):
    """Gradients of bounds sum over weights, and those of weights know the layer's mean and sigma."""

    def objective(trained):
        pruned = sj.bounds.shrink(trained["params"], trained["bounds"])
        parts = jax.tree.map(lambda w, g: jnp.sum(w * g), pruned, drawn(pruned, step))
        return sum(jax.tree.leaves(parts)) + 10 * sj.losses.squared_budget(sj.losses.density(trained["bounds"]), 0.25)

    return jax.grad(objective)(trained)


def runs():
    every_other = sj.schedules.every(2)
    noisy = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.adam(RATE))  # it keeps a typed key
    prune = sj.rules.prune_to(0.75, ramp=sj.schedules.cubic(0, 6))
    exchange = sj.rules.drop_and_grow(0.75, grow=sj.scores.gradient)
    budget = sj.budgets.compression(PARAMS, 1.5)
    gated = sj.autoprune(optax.adam(RATE), optax.sgd(RATE), penalty=0.5)
    slow = optax.chain(optax.sgd(RATE, momentum=0.9), sj.bounds.keep_in_range())
    parts = {"w": optax.adamw(RATE), "b": slow}
    return {
        "sparsify, prune_to": Run(PARAMS, sj.sparsify(noisy, prune, every_other), drawn),
        "sparsify, drop_and_grow": Run(PARAMS, sj.sparsify(optax.adam(RATE), exchange, every_other, seed=5), drawn),
        "autoprune, freeze_at": Run(GATED, sj.transforms.freeze_at(gated, sj.targets.weights(budget)), drawn),
        "grda": Run(PARAMS, sj.grda(optax.linear_schedule(RATE, RATE / 2, 5), c=0.05), drawn),
        # Means and sums over a leaf are added up device by device: equal to a few units of the last place.
        "learned bounds": Run(BOUNDED, optax.partition(parts, {"params": "w", "bounds": "b"}), of_bounds, 1e-5),
    }


RUNS = runs()
MESHES = {1: (1, 1), 4: (2, 2), 8: (4, 2)}
HALFWAY, STEPS = 4, 8


def sharding(leaf, devices):
    """Where a leaf lies: matrices of floats and their masks are split along two axes, the rest is everywhere."""
    mesh = jax.make_mesh(MESHES[devices], ("x", "y"), (AxisType.Auto,) * 2, devices=jax.devices()[:devices])
    return NamedSharding(mesh, P("x", "y") if leaf.ndim > 1 and leaf.dtype in (jnp.float32, jnp.bool_) else P())


def target(run, devices):
    """What is to be restored, known without a run: structure, shapes and dtypes, and where it shall lie."""
    shapes = {"params": run.params, "state": jax.eval_shape(run.tx.init, run.params)}
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding(s, devices)), shapes)


def trained(run, saved, start, end):
    """The steps of a run, compiled."""

    @jax.jit
    def step(saved, grads):
        updates, state = run.tx.update(grads, saved["state"], saved["params"])
        return {"params": optax.apply_updates(saved["params"], updates), "state": state}

    for index in range(start, end):
        saved = step(saved, run.gradients(saved["params"], index))
    return saved


def begin(run, devices):
    """The first parameters and state, over devices."""
    params = jax.tree.map(lambda p: jax.device_put(p, sharding(p, devices)), run.params)
    return {"params": params, "state": run.tx.init(params)}


def bits(tree):
    """Every leaf as NumPy's, keys as their numbers."""

    def plain(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return jax.tree.map(plain, tree)


def save(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def restore(path, *like):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, *like)


@pytest.mark.parametrize("name", RUNS)
def test_types_dtypes_and_bits_come_back_and_so_do_the_next_updates(name, tmp_path):
    run = RUNS[name]
    halfway = trained(run, begin(run, 1), 0, HALFWAY)
    save(tmp_path / "state", halfway)
    restored = restore(tmp_path / "state", target(run, 1))
    assert jax.tree.structure(restored) == jax.tree.structure(halfway)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, halfway)
    chex.assert_trees_all_equal(bits(restored), bits(halfway))
    after = [bits(trained(run, saved, HALFWAY, STEPS)) for saved in (halfway, restored)]
    chex.assert_trees_all_equal(*after)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (after[0], bits(halfway))), strict=True))


def test_the_states_hold_what_a_checkpoint_could_lose():
    states = {name: jax.tree.leaves(target(run, 1)["state"]) for name, run in RUNS.items()}
    dtypes = {name: {str(leaf.dtype) for leaf in leaves} for name, leaves in states.items()}
    assert {"bool", "int32", "float32", "key<fry>"} <= dtypes["sparsify, prune_to"]
    assert {"bool", "int32", "uint32", "float32"} <= dtypes["autoprune, freeze_at"]
    kinds = {type(run.tx.init(run.params)).__name__ for run in RUNS.values()}
    assert kinds == {"SparsifyState", "FreezeAtState", "GrdaState", "PartitionState"}


@pytest.mark.parametrize("name", RUNS)
def test_other_numbers_of_devices_go_on_with_the_same_run(name, tmp_path):
    """From 8 devices to 4 to 1, two steps on each, and all eight steps on one."""
    run, devices = RUNS[name], [8, 4, 1]
    saved, done = begin(run, devices[0]), 0
    for now, count in enumerate(devices):
        if now:
            restored = restore(tmp_path / str(devices[now - 1]), target(run, count))
            chex.assert_trees_all_equal(bits(restored), bits(saved))
            saved = restored
            for leaf in jax.tree.leaves(saved):
                assert leaf.sharding.is_equivalent_to(sharding(leaf, count), leaf.ndim)
        saved, done = trained(run, saved, done, done + 2), done + 2
        save(tmp_path / str(count), saved)
    alone = trained(run, begin(run, 1), 0, done)
    if run.rounding:
        chex.assert_trees_all_close(bits(saved), bits(alone), rtol=run.rounding, atol=run.rounding)
    else:
        chex.assert_trees_all_equal(bits(saved), bits(alone))


def test_without_a_target_the_types_are_gone_and_the_update_says_so(tmp_path):
    run = RUNS["sparsify, prune_to"]
    save(tmp_path / "state", begin(run, 1))
    restored = restore(tmp_path / "state")
    with pytest.raises(ValueError, match=r"is dict, not SparsifyState; .*checkpoints with tx.init\(params\) as the"):
        run.tx.update(run.params, restored["state"], run.params)


SCRIPT = Path(__file__).parent / "killed_training.py"


def run_script(folder, kill_at=None):
    """Runs the training in another process, to its end or to a kill; returns the steps that it has done."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, SCRIPT, folder, *([] if kill_at is None else [str(kill_at)])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == (0 if kill_at is None else -signal.SIGKILL), done.stderr
    return [int(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path):
    steps = run_script(tmp_path / "whole")
    assert steps == list(range(len(steps)))
    kills = sorted(random.Random(3).sample(steps[4:-4], 3))  # 12, 19 and 27: two of them while a checkpoint is written
    done = [run_script(tmp_path / "killed", step) for step in (*kills, None)]
    assert [own[-1] for own in done] == [*kills, steps[-1]]
    assert all(0 < own[0] <= kill + 1 for kill, own in zip(kills, done[1:], strict=True))  # they went on
    weights = [np.load(tmp_path / name / "weights.npz") for name in ("whole", "killed")]
    assert set(weights[0]) == set(weights[1]) == {"first", "last"}
    for name in weights[0]:
        np.testing.assert_array_equal(weights[0][name].view(np.uint32), weights[1][name].view(np.uint32))
        assert 0 < np.count_nonzero(weights[0][name]) < weights[0][name].size
