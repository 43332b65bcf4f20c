"""A training that goes on where it was when it was killed: `python killed_training.py FOLDER [STEP]`.

It prints the number of every step that is done, and writes the final weights to `FOLDER/weights.npz`. If a step is
given it kills itself after that, with no chance to finish what it is writing.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import sparsejax as sj

STEPS, PERIOD = 40, 3


def batch(step):
    """Inputs and labels that are a function of the step, so that nothing of a data loader has to be saved."""
    x = jax.random.normal(jax.random.fold_in(jax.random.key(7), step), (32, 12))
    return x, jnp.argmax(x[:, :4], axis=1)


def loss(params, x, labels):
    logits = jax.nn.relu(x @ params["first"]) @ params["last"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def main(folder, kill_at=None):
    keys = jax.random.split(jax.random.key(0))
    params = {"first": jax.random.normal(keys[0], (12, 16)), "last": jax.random.normal(keys[1], (16, 4))}
    rule = sj.rules.drop_and_grow(0.75, grow=sj.scores.gradient)
    tx = sj.sparsify(optax.adamw(1e-2), rule, when=sj.schedules.every(4), seed=1)
    state = tx.init(params)
    saved = {"params": sj.apply(sj.find_mask(state), params), "state": state}

    @jax.jit
    def step(saved, index):
        grads = jax.grad(loss)(saved["params"], *batch(index))
        updates, state = tx.update(grads, saved["state"], saved["params"])
        return {"params": optax.apply_updates(saved["params"], updates), "state": state}

    options = ocp.CheckpointManagerOptions(save_interval_steps=PERIOD, max_to_keep=2)
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
        first = 0
        if (last := manager.latest_step()) is not None:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved)
            saved, first = manager.restore(last, args=ocp.args.StandardRestore(like)), last + 1
        for index in range(first, STEPS):
            saved = step(saved, index)
            manager.save(index, args=ocp.args.StandardSave(saved))
            print(index)
            if index == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    np.savez(folder / "weights.npz", **jax.device_get(saved["params"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *map(int, sys.argv[2:]))
