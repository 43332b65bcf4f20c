"""The folder of a run: its configuration, its metrics and its checkpoints, so that a killed run continues exactly.

* `config.json`: what was run; a folder never mixes two runs.
* `metrics.jsonl`: one line an epoch; a loss may be NaN, which Python and pandas read.
* `checkpoints/`: the newest one, by Orbax.
* `snapshots/`: the finalised networks of single epochs, by Orbax.
"""

import json
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import processes, remembered
from experiments.methods import Method, Recipe, settings
from experiments.splits import Dataset
from experiments.steps import Networks, State

# Every device has the whole state: the first process saves and restores it alone, on a disk that may be its own.
FIRST = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="first")


def describe(
    model: nn.Module,
    method: Method,
    dataset: Dataset,
    recipe: Recipe,
    initial: Networks | None,
    config: dict[str, Any] | None,
) -> dict[str, Any]:
    """Returns everything that the numbers of a run depend on, JSON-serialisable if `config` is."""
    return {
        "model": " ".join(repr(model).split()),
        "method": method.name,
        "dataset": {
            "name": dataset.name,
            "train": dataset.train.describe(),
            "validation": dataset.validation.describe(),
        },
        "recipe": settings(recipe),
        "initial": processes.from_first(lambda: None if initial is None else remembered.fingerprint(initial)),
        "config": config or {},
    }


class Nowhere:
    """A run without a folder, which forgets everything at its end."""

    def __init__(self):
        self.kept: dict[int, Networks] = {}

    def restore(self, template: State) -> tuple[State | None, list[dict]]:
        """Returns nothing to continue from."""
        return None, []

    def log(self, row: dict) -> None:
        """Does nothing."""

    def save(self, epochs: int, state: State) -> None:
        """Does nothing."""

    def has(self, epochs: int) -> bool:
        """Returns whether there is a snapshot of the networks after so many epochs."""
        return epochs in self.kept

    def keep(self, epochs: int, networks: Networks) -> None:
        """Keeps a snapshot in the host's memory, as a copy: an epoch overwrites its state's buffers."""
        self.kept[epochs] = jax.tree.map(np.array, networks)

    def snapshot(self, epochs: int, template: Networks) -> Networks:
        """Returns a snapshot as NumPy arrays."""
        return self.kept[epochs]


class Folder:
    """A run's folder, on a disk of the first process; all processes call the same methods.

    Metrics are written before the checkpoint of the same epoch, so that a kill between the two leaves lines too many,
    which `restore` drops, and never too few.
    """

    def __init__(self, directory: os.PathLike | str, config: dict[str, Any]):
        """Opens a new folder, or that of an earlier run with the same configuration.

        Args:
          directory: on a local disk; only the first process's is used.
          config: JSON-serialisable; everything that the numbers depend on.

        Raises:
          ValueError: if the folder holds another run or something that is no run, or `config` is not JSON.
        """
        self.directory = Path(directory).absolute()
        self.metrics = self.directory / "metrics.jsonl"
        try:
            config = json.loads(json.dumps(config))
        except TypeError as error:
            raise ValueError(f"config: {error}; pass numbers, strings, lists and dicts") from error
        processes.from_first(lambda: self._open(config))

    def restore(self, template: State) -> tuple[State | None, list[dict]]:
        """Returns the newest checkpoint (None if there is none) and the metrics up to it, and drops those beyond it.

        Args:
          template: the state's structure, shapes, dtypes and shardings, as `jax.ShapeDtypeStruct`s.

        Raises:
          ValueError: if metrics of epochs before the checkpoint are missing.
        """
        epochs = processes.from_first(lambda: self.checkpoints.latest_step() or 0)
        history = processes.from_first(lambda: self._read(epochs))
        if not epochs:
            return None, history

        def read(template: State) -> State:
            return self.checkpoints.restore(epochs, args=ocp.args.StandardRestore(template))

        return processes.tree_from_first(read, template), history

    def log(self, row: dict) -> None:
        """Appends the metrics of an epoch, which survive a kill from then on."""
        processes.from_first(lambda: self._append(row))

    def save(self, epochs: int, state: State) -> None:
        """Saves the state after so many epochs; the one before goes only when this one is complete."""
        state = processes.reachable(state)
        processes.from_first(lambda: self.checkpoints.save(epochs, args=ocp.args.StandardSave(state)))

    def has(self, epochs: int) -> bool:
        """Returns whether there is a snapshot of the networks after so many epochs."""
        return processes.from_first(lambda: self._snapshot(epochs).is_dir())

    def keep(self, epochs: int, networks: Networks) -> None:
        """Writes a snapshot, in the place of one that a killed run left beyond its checkpoint."""

        def write() -> None:
            with ocp.StandardCheckpointer(multiprocessing_options=FIRST) as writer:
                writer.save(self._snapshot(epochs), networks, force=True)

        processes.from_first(write)

    def snapshot(self, epochs: int, template: Networks) -> Networks:
        """Reads a snapshot as NumPy arrays.

        Args:
          epochs: one that the folder has.
          template: its structure, shapes, dtypes and shardings, as `jax.ShapeDtypeStruct`s.
        """

        def read(template: Networks) -> Networks:
            with ocp.StandardCheckpointer(multiprocessing_options=FIRST) as reader:
                return reader.restore(self._snapshot(epochs), template)

        return jax.device_get(processes.tree_from_first(read, template))

    def _snapshot(self, epochs: int) -> Path:
        return self.directory / "snapshots" / str(epochs)

    def _open(self, config: dict[str, Any]) -> None:
        self._check(config)
        folder = self.directory / "checkpoints"
        folder.mkdir(exist_ok=True)
        # A background save would still read buffers that the next epoch is given to overwrite.
        how = {"max_to_keep": 1, "enable_async_checkpointing": False, "create": False}
        options = ocp.CheckpointManagerOptions(**how, multiprocessing_options=FIRST)
        self.checkpoints = ocp.CheckpointManager(folder, options=options)

    def _check(self, config: dict[str, Any]) -> None:
        path = self.directory / "config.json"
        if not path.exists():
            if self.directory.exists() and any(self.directory.iterdir()):
                raise ValueError(
                    f"directory: {self.directory} is not empty and has no config.json, so it is not a run's folder; "
                    "choose another"
                )
            self.directory.mkdir(parents=True, exist_ok=True)
            _replace(path, json.dumps(config, indent=1) + "\n")
        there, here = _flat(json.loads(path.read_text())), _flat(config)
        different = [
            f"{name}: {there.get(name, 'nothing')!r} there, {here.get(name, 'nothing')!r} now"
            for name in sorted(there.keys() | here.keys())
            if name not in there or name not in here or there[name] != here[name]
        ]
        if different:
            raise ValueError(
                f"directory: {self.directory} holds a run with another configuration ({'; '.join(different)}); "
                "choose another directory or delete this one"
            )

    def _append(self, row: dict) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, epochs: int) -> list[dict]:
        lines = self.metrics.read_text().splitlines()[:epochs] if self.metrics.exists() else []
        if len(lines) < epochs:
            raise ValueError(
                f"directory: {self.metrics} has {len(lines)} epochs, but the checkpoint has {epochs}; "
                "restore the file or delete the directory"
            )
        _replace(self.metrics, "".join(line + "\n" for line in lines))
        return [json.loads(line) for line in lines]


def _replace(path: Path, text: str) -> None:
    """Writes a file so that a reader finds the old or the new content, whole, whenever the writer is killed."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {"recipe.epochs": 60, ...}; lists are leaves."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {
        name: value
        for key, inner in config.items()
        for name, value in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }
