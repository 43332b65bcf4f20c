"""Optimizers that make zeros, as optax gradient transformations.

`grda` prunes as it trains: its weights are the soft-thresholded running sum of the gradients, so they leave zero and
come back to it as the loss would have it. Nothing is masked, and the loop is that of any optimizer:

    tx = optax.chain(optax.clip_by_global_norm(1.0), grda(0.1, c=0.0005, mu=0.51))
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)

`autoprune` trains gated weights (`sparsejax.gates`): one optimizer for the weights and one for the auxiliary parameters
that open and close the gates, in turn, until a target is reached.

    tx = freeze_at(autoprune(optax.adam(1e-3), optax.sgd(0.1), penalty=1e-3), target)

`sparsify` puts a mask around any optimizer: a rule (`sparsejax.rules`) says how the mask changes, a clock when.

    tx = sparsify(optax.adamw(1e-3), rules.prune_to(0.9, ramp=schedules.cubic(0, 900)), schedules.every(100, end=900))

The rest are parts for their chains.
"""

from sparsejax.alternating import AutopruneState, Turnover, autoprune, turnover
from sparsejax.constraining import SparsifyState, find_mask, sparsify
from sparsejax.dual_averaging import GrdaState, current_rate, grda, sum_of_rates
from sparsejax.freezing import FreezeAtState, freeze_at, reached_at
from sparsejax.proximal import ProximalL1State, proximal_l1
from sparsejax.scaling import balanced, scale_by_name, scale_by_step

__all__ = [
    "AutopruneState",
    "FreezeAtState",
    "GrdaState",
    "ProximalL1State",
    "SparsifyState",
    "Turnover",
    "autoprune",
    "balanced",
    "current_rate",
    "find_mask",
    "freeze_at",
    "grda",
    "proximal_l1",
    "reached_at",
    "scale_by_name",
    "scale_by_step",
    "sparsify",
    "sum_of_rates",
    "turnover",
]
