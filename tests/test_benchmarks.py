"""Benchmarks with tiny settings: what they count and print, never how long it takes."""

import numpy as np
import pytest

from benchmarks import inference, step, units
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


def test_products_store_what_they_should_and_are_measured(tmp_path, capsys):
    blocks, ways = ((16, 16), (8, 32)), ["dense", "smaller", "blocks 16x16", "blocks 8x32"]
    config = inference.Config((64,), blocks, (1, 3), (0.5, 0.75), by_entry_from=0.75, rounds=2, results=tmp_path)
    found = inference.measure(config)
    assert {key: list(taken) for key, taken in found.stored.items()} == {
        (64, 0.5): ways,
        (64, 0.75): [*ways, "BCOO", "BCSR"],
    }
    assert found.stored[64, 0.75].pop("dense") == 1.0
    assert set(found.stored[64, 0.75].values()) == {0.25}
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    products = {name: np.asarray(way(x, w)) for name, (way, w) in inference.matrices(config, 64, 0.75)[0].items()}
    for name in ("BCOO", "BCSR"):
        np.testing.assert_allclose(products[name], products["dense"], atol=1e-4)
    inference.main(config)
    printed = capsys.readouterr().out
    assert (tmp_path / "inference.md").read_text() in printed
    for row in (
        "| 64   |     1 |      50% |  blocks 8x32 |  50.0% |",
        "| 64   |     3 |      75% |         BCSR |  25.0% |",
    ):
        assert row in printed
    assert (tmp_path / "inference-64.png").stat().st_size > 5000


@pytest.mark.slow
def test_training_steps_are_timed(capsys):
    step.main(step.Config(("lenet5",), rounds=1, batch_size=2))
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()[2:]]
    names = ["dense", "budget-wavg", "budget-counted", "fixed-GA", "fixed-BS"]
    assert [[cell.strip() for cell in row] for row in rows] == [["lenet5", name] for name in names]
