"""Benchmarks with tiny settings: what they count and print, never how long it takes."""

import numpy as np
import pytest

from benchmarks import units
from experiments import figures, timing

pytestmark = pytest.mark.usefixtures("relaxed")


def test_functions_run_once_a_round_after_a_warm_up_round():
    calls = []
    seconds = timing.interleaved({name: lambda name=name: calls.append(name) or np.zeros(1) for name in "abc"}, 4)
    assert {name: taken.shape for name, taken in seconds.items()} == dict.fromkeys("abc", (4,))
    rounds = [calls[i : i + 3] for i in range(0, 15, 3)]
    assert len(calls) == 15
    assert all(sorted(one) == list("abc") for one in rounds)
    assert {one[0] for one in rounds} == set("abc"), "the same function is always first"
    assert timing.ratio(np.array([2.0, 6.0, 4.0]), np.array([1.0, 2.0, 4.0])) == (2.0, 1.5, 2.5)


@pytest.mark.slow
def test_units_are_found_halved_and_measured(tmp_path):
    network = ("lenet5",)
    config = units.Config(network, "lenet5", (1, 2), rounds=2, measured=network, examples=3, steps=2)
    found = units.measure(config)
    assert (found.traced["lenet5"].groups, found.traced["lenet5"].units) == (3, 20 + 50 + 500)
    halved = 24 * 24 * 25 * 10 + 8 * 8 * 25 * 10 * 25 + 16 * 25 * 250 + 10 * 250
    assert found.halved.multiply_adds == {"dense": 2_293_000, "small": halved, "thin": halved}
    assert found.halved.error < 1e-5
    assert found.halved.instructions["small"] <= found.halved.instructions["thin"], "removal left something to do"
    report = units.describe(found)
    for row in ("| lenet5  |", "| lenet5, small |      1 |", "| lenet5, thin  |      2 |"):
        assert row in report
    drawn, axes = figures.figure("units", columns=2)
    units.draw(*axes, found)
    assert figures.save(drawn, tmp_path / "units.png").stat().st_size > 5000
