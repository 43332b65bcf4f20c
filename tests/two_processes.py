"""A few sparse steps on four devices that belong to one process or to two: `python two_processes.py RANK COUNT PORT`.

Prints what the mask and the weights are, for `test_sparsify` to compare. Not a test by itself.
"""

import sys

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparsejax as sj
from sparsejax import rules, schedules


def main(rank, count, port):
    jax.config.update("jax_num_cpu_devices", 4 // count)
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("x", "y"))
    # Many equal weights, so that places decide too.
    values = np.random.default_rng(0).integers(-9, 10, (32, 48)).astype(np.float32)
    for rule in (rules.prune_to(0.8, ramp=schedules.linear(0, 2)), rules.drop_and_grow(0.8)):
        params = {"kernel": jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])}
        tx = sj.sparsify(optax.sgd(0.0625, momentum=0.5), rule, schedules.every(1))
        state, step = jax.jit(tx.init)(params), jax.jit(tx.update)
        for _ in range(3):
            updates, state = step(params, state, params)
            params = optax.apply_updates(params, updates)
        assert state.mask["kernel"].sharding.is_equivalent_to(sharding, 2)
        mask, weights = multihost_utils.process_allgather((state.mask["kernel"], params["kernel"]), tiled=True)
        assert not weights[~mask].any()
        print("result", np.packbits(mask).tobytes().hex(), float(weights.sum()))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
