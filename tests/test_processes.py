"""Several processes: they train what one does, go on with each other's runs, and leave one set of files.

What JAX does between processes cannot be had in one, so these tests start real ones, of CPU devices.
"""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import chex
import experiment_processes as script
import jax
import numpy as np
import pytest

from experiments import __main__ as cli
from experiments import data, processes
from experiments.processes import Processes

ROOT = Path(__file__).parent.parent
EPOCHS = [1, 2, 3]


def launch(command, count, killed=False):
    """Runs a command in each of some processes, on eight devices in all, and returns what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(8 // count)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, "cwd": ROOT}
    started = [subprocess.Popen([sys.executable, *command(rank, port)], **pipes) for rank in range(count)]
    try:
        outputs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    # When the first is killed, JAX may end the others before they are.
    assert started[0].returncode == (-signal.SIGKILL if killed else 0), outputs[0][1]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert (process.returncode < 0) == killed, errors
    return [printed for printed, _ in outputs]


class Trained(NamedTuple):
    """What the processes of the script found."""

    folder: Path

    def __call__(self, action, count, rank=0):
        return pickle.loads((self.folder / f"{action}_{count}_{rank}").read_bytes())


def trained(folder):
    def start(count, *actions, killed=False):
        launch(lambda rank, port: [script.__file__, *map(str, (rank, count, port, folder)), *actions], count, killed)

    start(1, "whole", "killed", killed=True)
    start(2, "whole", "resumed", "killed", killed=True)
    start(1, "resumed")
    return Trained(folder)


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    found = trained(tmp_path)  # in half a minute, hence one test
    whole = found("whole", 1)
    for rank in (0, 1):
        networks_are_equal(whole, found("whole", 2, rank))
    numbers_are_close_without_others(whole[0])
    images_are_read_once(*(Counter(found("whole", *who)[2]) for who in ((1, 0), (2, 0), (2, 1))))
    for who in ((1, 0), (2, 0), (2, 1)):
        resumed_is_whole(found("resumed", *who), whole[0])
    for name in ("memory_1", "memory_2", "killed_1", "killed_2"):
        one_process_wrote(tmp_path / name)
    refusals_are_alike(*(found("whole", 2, rank)[3] for rank in (0, 1)))


def networks_are_equal(one, two):
    # Bit for bit, in memory and streamed, with batch statistics, dropout, and crops on the device and on the host.
    for run in (0, 1):
        assert [row["epoch"] for row in one[run][1]] == EPOCHS
        chex.assert_trees_all_equal(two[run], one[run])
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(two[0][0]))


def numbers_are_close_without_others(found):
    # Bits differ: a process that knows of no others adds up the gradients of its devices in another order.
    networks, history, *_ = found
    run = script.run(None)
    for row, other in zip(run.history, history, strict=True):
        np.testing.assert_allclose(row["train_loss"], other["train_loss"], rtol=1e-5)
    chex.assert_trees_all_close(processes.on_host(run.params), networks[0], rtol=1e-3, atol=1e-5)


def images_are_read_once(alone, *together):
    # Three epochs of three batches of 48, of which each process has half.
    assert [read.total() for read in (alone, *together)] == [432, 216, 216]
    assert together[0] + together[1] == alone


def resumed_is_whole(resumed, whole):
    networks, history, snapshots, *rest = resumed
    assert snapshots == {}
    chex.assert_trees_all_equal((networks, history, *rest), (*whole[:2], *whole[3:]))


def one_process_wrote(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == EPOCHS
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["3"]


def refusals_are_alike(first, second):
    assert first[0] == second[0]
    assert "another configuration (config" in first[0]
    for refusal in (first[1], second[1]):
        assert "process 1: got another job than process 0" in refusal
    assert "'config': {'rank': 1}" in second[1]


@pytest.mark.slow
def test_an_experiment_in_two_processes_is_reported_once(tmp_path):
    data.prepare("digits", data_dir=tmp_path / "data")
    arguments = ["autoprune", "--epochs", "2", "--seeds", "1", "--batch-size", "400", "--starts", "pretrained"]
    arguments += ["--compressions", "30", "--shares", "--ablations", "False", "--data-dir", str(tmp_path / "data")]

    def command(rank, port):
        asked = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(rank)]
        return ["-m", "experiments", *arguments, "--results", str(tmp_path / f"results_{rank}"), *asked]

    first, second = launch(command, 2)
    (directory,) = (tmp_path / "results_0" / "autoprune").iterdir()
    report = (directory / "report.md").read_text()
    assert "| pretrained 30x |" in report
    assert "- devices: 8 x cpu in 2 processes" in report
    assert report.splitlines()[0] in first
    assert report.splitlines()[0] not in second
    assert not (tmp_path / "results_1").exists()
    record = json.loads((directory / "results.json").read_text())
    assert [network["name"] for network in record["networks"]] == ["dense", "pretrained 30x"]
    assert "processes" not in record["config"]
    assert len(list(directory.glob("figures/*.png"))) == 1


# What one process can tell


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "10.0.0.1:1234"}, "processes=None, process=None: pass all three"),
        ({"processes": 2, "process": 0}, "coordinator=None, processes=2, process=0: pass all three"),
        ({"coordinator": "10.0.0.1:1234", "processes": 2, "process": 2}, "process: got 2, but 2 processes"),
        ({"coordinator": "10.0.0.1:1234", "processes": 2, "process": -1}, "process: got -1, but 2 processes"),
        (
            {"distributed": True, "coordinator": "10.0.0.1:1234", "processes": 2, "process": 1},
            "distributed: a cluster tells",
        ),
    ],
)
def test_options_say_who_takes_part(options, message):
    with pytest.raises(ValueError, match=message):
        Processes(**options)


def test_without_a_cluster_processes_must_be_named():
    code = "from experiments.processes import *; start(Processes(distributed=True))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "ValueError: distributed: no cluster says who takes part" in done.stderr
    assert "pass --coordinator, --processes and --process" in done.stderr


def test_options_are_those_of_every_experiment():
    wanted = Processes(coordinator="10.0.0.1:1234", processes=2, process=1)
    for name in ("quickstart", "autoprune", "adaptive_sparsity"):
        options = ["--coordinator", "10.0.0.1:1234", "--processes", "2", "--process", "1"]
        assert cli.parse([name, *options])[1].processes == wanted
        assert cli.parse([name])[1].processes == Processes()


def test_one_process_is_the_first_and_asks_nobody(tmp_path):
    processes.start(Processes())
    assert not jax.distributed.is_initialized()
    assert processes.is_first()
    with processes.one_writer(tmp_path) as directory:
        assert directory == tmp_path
    marker = object()
    assert processes.from_first(lambda: marker) is marker
    processes.check_alike(marker)
