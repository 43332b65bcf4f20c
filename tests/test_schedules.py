"""Clocks against loops over their steps."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from sparsejax import schedules

RAMPS = [(0, 10, 0.0, 1.0), (3, 20, 0.1, 0.9), (7, 8, 0.3, 0.3), (0, 3, 0.9, 0.2)]


@pytest.mark.parametrize(("start", "end", "initial", "final"), RAMPS)
def test_cubic_is_zhu_and_gupta(start, end, initial, final):
    clock, steps = schedules.cubic(start, end, initial, final), range(end + 5)
    expected = [oracles.zhu_gupta(step, start, end, initial, final) for step in steps]
    np.testing.assert_allclose(jax.jit(jax.vmap(clock))(jnp.arange(end + 5)), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose([clock(step) for step in (start, end)], [initial, final], rtol=1e-7)


@pytest.mark.parametrize(("start", "end", "initial", "final"), RAMPS)
def test_linear_is_interpolation(start, end, initial, final):
    clock = schedules.linear(start, end, initial, final)
    expected = np.interp(np.arange(end + 5), [start, end], [initial, final])
    np.testing.assert_allclose(jax.jit(jax.vmap(clock))(jnp.arange(end + 5)), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ramp", [schedules.linear, schedules.cubic])
def test_ramps_end_exactly_where_they_say(ramp):
    """float32 arithmetic would give 0.1 + (0.7 - 0.1) != 0.7; and steps beyond 2^24 keep their order."""
    clock = ramp(2**24 - 1, 2**24 + 1, 0.1, 0.7)
    values = [float(clock(step)) for step in (0, 2**24 - 1, 2**24, 2**24 + 1)]
    assert values[:2] == [np.float32(0.1)] * 2
    assert values[3] == np.float32(0.7)
    assert values[1] < values[2] < values[3]


@pytest.mark.parametrize(("period", "start", "end"), [(1, 0, None), (10, 3, 25), (10, 0, 20), (7, 5, 5), (100, 0, 250)])
def test_every_strikes_from_start_to_end(period, start, end):
    expected = [s for s in range(300) if s >= start and (s - start) % period == 0 and (end is None or s <= end)]
    if end is not None and end not in expected:
        expected.append(end)
    strikes = np.asarray(jax.jit(jax.vmap(schedules.every(period, start, end)))(jnp.arange(300)))
    assert np.flatnonzero(strikes).tolist() == expected


def test_at_strikes_at_its_steps():
    strikes = jax.vmap(schedules.at(0, 5, 17))(jnp.arange(30))
    assert np.flatnonzero(strikes).tolist() == [0, 5, 17]


WRONG = {
    "ramp of no length": (lambda: schedules.cubic(5, 5), "start=5, end=5"),
    "ramp from before the beginning": (lambda: schedules.linear(-1, 5), "start=-1"),
    "no period": (lambda: schedules.every(0), "period=0"),
    "end before start": (lambda: schedules.every(5, 10, 9), "start=10, end=9"),
    "no steps": (lambda: schedules.at(), "would never strike"),
    "a negative step": (lambda: schedules.at(3, -1), r"steps=\(3, -1\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
