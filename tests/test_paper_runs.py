"""Every published setting as a dry run: real networks, random images of the real shapes, two steps, killed and resumed.

Not among the tests that run by default, for the networks are large: `python -m pytest -m paper -n 1`.
"""

import dataclasses
import gc
import json
import math

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.testing import mocking

from experiments import __main__ as cli
from experiments import (
    adaptive_sparsity,
    autoprune,
    directional_pruning,
    mean_replacement,
    mean_replacement_settings,
    pruning,
    setup,
)
from experiments.methods import dense
from experiments.workshop import Workshop

pytestmark = [pytest.mark.paper, pytest.mark.usefixtures("relaxed")]

BATCH = 8  # an image a device


class Killed(Exception):
    """Stops a run after its first epoch."""


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Lets every data set have 18 random images of its real shape, which are two steps of training and some over."""
    monkeypatch.setattr(mocking, "_getitems", lambda keys, generator: [generator[key] for key in keys])
    with tfds.testing.mock_data(num_examples=18, data_dir=str(tmp_path / "data")):
        yield tmp_path


def settled(experiment, dataset, model, folder):
    """The paper's configuration, but for its length and the number of its networks."""
    module, config = cli.parse([experiment, "--paper", "--dataset", dataset, "--model", model])
    config = module.settle(config)
    small = {"epochs": 2, "cycles": 1, "batch_size": BATCH, "seeds": 1, "checkpoint_every": 1}
    return dataclasses.replace(config, results=folder / "results", data_dir=str(folder / "data"), **small)


def bounds(config, dataset, model, recipe, folder):
    """Adaptive sparsity loss: what Table 2, Table 3 or Figure 7 is about."""
    workshop = Workshop(dataset, model, recipe, folder)
    variants = {v.name: v for v in adaptive_sparsity.variants(config, model, recipe, workshop.image)}
    variant = variants["unconstr 10" if config.model == "alexnet" else "budget-wavg"]
    return lambda **options: workshop.train("run", variant.method, model=variant.model, **options)


def gates(config, dataset, model, recipe, folder):
    """AutoPrune: of weights where the paper prunes weights, of units where it has nothing but those."""
    job = autoprune.Job(dataset, model, recipe, folder, config)
    if config.compressions:
        method = autoprune.gating.weights(job.gated(()), job.rule, None)
    else:
        groups = autoprune.units.of(model, job.image)
        method = autoprune.gating.units(job.gated(()), job.rule, groups, None)
    return lambda **options: job.train("run", method, **options)


def averaging(config, dataset, model, recipe, folder):
    """Directional pruning: gRDA with the smallest mu."""
    method = pruning.dual_averaging(recipe, config.c, min(config.mus))
    return lambda **options: Workshop(dataset, model, recipe, folder).train("run", method, **options)


def removal(config, dataset, model, recipe, folder):
    """Mean replacement: a network, and everything that is measured of it."""
    config = dataclasses.replace(config, every=2, images=BATCH, tuning=(1,), tuned=1)
    job = mean_replacement.Job(dataset, model, recipe, folder, config)

    def train(visit=None, **options):
        run = job.train("run", dense(recipe), visit=visit, **options)
        if visit is None:
            networks = jax.tree.map(lambda leaf: leaf[0], jax.device_get(run.networks))
            folder.joinpath("measurements").mkdir()
            measured = job.measured(2, 0, *networks)
            assert np.isfinite(measured["penalties"]).all()
            assert measured["tuned"].shape == (len(mean_replacement.TUNED_SCORES), 2, 1)
        return run

    return train


PUBLISHED = {
    "adaptive_sparsity": (adaptive_sparsity.PAPER, bounds),
    "autoprune": (autoprune.PAPER, gates),
    "directional_pruning": (directional_pruning.PAPER, averaging),
    "mean_replacement": (mean_replacement_settings.PAPER, removal),
}
RUNS = [
    pytest.param(experiment, *setting, make, id="-".join((experiment, *setting)))
    for experiment, (settings, make) in PUBLISHED.items()
    for setting in settings
]


@pytest.mark.parametrize(("experiment", "name", "network", "make"), RUNS)
def test_it_trains_is_killed_and_goes_on(experiment, name, network, make, images):
    config = settled(experiment, name, network, images)
    dataset, model, recipe = setup.resolve(config)
    assert len(jax.devices()) == BATCH
    train = make(config, dataset, model, recipe, images / "run")

    def kill(epoch, networks):
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train(visit=kill)
    gc.collect()  # or the traceback would hold the first run's arrays: gigabytes, eight times over
    run = train()
    assert [row["epoch"] for row in run.history] == [1, 2]
    assert run.compile_seconds > 0
    assert not any(run.failed)
    rows = [json.loads(line) for line in (images / "run/runs/run/metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row[column][0]) for row in rows for column in ("train_loss", "val_loss", "nonzeros"))
    assert {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(run.params)} == {True}
