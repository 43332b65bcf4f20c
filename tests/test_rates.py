"""Learning rates and orders of the images against loops over epochs, and names that tell schedules apart."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import methods, names, orders, rates
from experiments.methods import Recipe

STEPS = 3


def cosine(epoch, epochs):
    """Three cycles; epochs count from 1, as in all of these loops."""
    return 0.5 * (1 + math.cos(math.pi * ((epoch - 1) % (epochs // 3)) / (epochs // 3)))


def half(epoch, epochs):
    """The authors' code, line by line."""
    alpha = epoch / epochs
    if alpha <= 0.5:
        return 1.0
    if alpha <= 0.9:
        return 1.0 - (alpha - 0.5) / 0.4 * 0.99
    return 0.01


def dropped(epoch, after, factor):
    value = 1.0
    for completed in after:
        if epoch > completed:
            value *= factor
    return value


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        (rates.cosine_cycles, 120, cosine),
        (rates.constant, 7, lambda epoch, epochs: 1.0),
        *[(rates.half_then_linear, epochs, half) for epochs in (200, 600, 7, 1)],
        (rates.drops((140,)), 180, lambda epoch, _: dropped(epoch, [140], 0.1)),
        (rates.drops([1, 3, 4], 0.5), 7, lambda epoch, _: dropped(epoch, [1, 3, 4], 0.5)),
        (rates.drops(()), 7, lambda epoch, _: 1.0),
        (rates.drops_every(30), 180, lambda epoch, _: dropped(epoch, range(30, 180, 30), 0.1)),
        (rates.geometric(0.01), 7, lambda epoch, _: 10 ** (-2 * (epoch - 1) / 6)),
        (rates.geometric(2.0), 1, lambda epoch, _: 1.0),
        (rates.drops_every(2, 1.5), 7, lambda epoch, _: dropped(epoch, range(2, 7, 2), 1.5)),
    ],
)
def test_rate_of_every_epoch(schedule, epochs, expected):
    recipe = Recipe(epochs=epochs, cycles=3 if schedule is rates.cosine_cycles else 1, learning_rate=0.3)
    steps = jnp.arange(STEPS * epochs, dtype=jnp.int32)
    found = jax.jit(jax.vmap(schedule(recipe, STEPS)))(steps)
    assert found.dtype == jnp.float32
    wanted = [0.3 * expected(1 + step // STEPS, epochs) for step in range(STEPS * epochs)]
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-8)
    # Within an epoch to the last bit, and the same outside jit.
    assert np.all(np.asarray(found).reshape(epochs, STEPS) == np.asarray(found)[::STEPS, None])
    np.testing.assert_allclose(schedule(recipe, STEPS)(STEPS * (epochs - 1)), wanted[-1], rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rates.drops((0,)), r"at: got \(0,\)"),
        (lambda: rates.drops((30, 30)), "one after another"),
        (lambda: rates.drops((60, 30)), "one after another"),
        (lambda: rates.drops((30,), 0.0), "factor: got 0.0"),
        (lambda: rates.drops_every(0), "epochs: got 0"),
        (lambda: rates.geometric(0), "last: got 0"),
        (lambda: rates.drops_every(30, math.nan), "factor: got nan"),
    ],
)
def test_drops_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (rates.cosine_cycles, "cosine_cycles"),
        (rates.half_then_linear, "half_then_linear"),
        (rates.drops([140]), "drops(at=(140,), factor=0.1)"),
        (rates.geometric(0.1), "geometric(last=0.1)"),
        (rates.drops_every(30, 0.5), "drops_every(epochs=30, factor=0.5)"),
    ],
)
def test_a_recipe_names_its_schedule(schedule, name):
    recipe = Recipe(schedule=schedule)
    assert methods.settings(recipe)["schedule"] == name
    assert methods.settings(recipe) | {"schedule": schedule} == {
        field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)
    }
    assert hash(recipe) == hash(dataclasses.replace(recipe))
    assert set(dataclasses.asdict(recipe)) == {field.name for field in dataclasses.fields(recipe)}


def test_drops_of_the_same_settings_are_equal():
    assert rates.drops([140]) == rates.drops((140,))
    assert len({rates.drops((30,)), rates.drops((30,), 0.5), rates.drops_every(30), rates.drops((30,))}) == 3


@pytest.mark.parametrize(
    "schedule",
    [lambda recipe, steps: None, functools.partial(rates.cosine_cycles), object()],
    ids=["lambda", "partial", "object"],
)
def test_a_schedule_without_a_lasting_name_is_refused(schedule):
    with pytest.raises(ValueError, match="no name that says what it computes"):
        Recipe(schedule=schedule)
    with pytest.raises(ValueError, match="at the top of a module"):
        names.of(schedule)


# Orders


KEYS = [jax.random.key(i) for i in range(4)]


def test_shuffled_takes_every_image_at_most_once():
    batches = np.asarray(orders.shuffled(KEYS[0], KEYS[1], 23, 4))
    assert (batches.shape, batches.dtype) == ((5, 4), np.int32)
    assert len(set(batches.ravel()) & set(range(23))) == 20
    np.testing.assert_array_equal(batches, orders.shuffled(KEYS[2], KEYS[1], 23, 4))
    assert (batches != orders.shuffled(KEYS[0], KEYS[3], 23, 4)).any()


@pytest.mark.parametrize(("count", "batch", "turns"), [(24, 4, 3), (23, 4, 2), (22, 5, 2), (9, 4, 1), (7, 4, 0)])
def test_alternating_halves(count, batch, turns):
    seen = [set(), set()]
    for epoch in range(60):
        batches = np.asarray(orders.alternating_halves(KEYS[0], jax.random.key(epoch), count, batch))
        assert (batches.shape, batches.dtype) == ((2 * turns, batch), np.int32)
        for half in (0, 1):
            taken = batches[half::2].ravel().tolist()
            assert len(set(taken)) == len(taken) == turns * batch
            seen[half] |= set(taken)
    assert not seen[0] & seen[1]
    if turns:
        # No image is left out for good: each half drops others every time.
        assert (len(seen[0]), len(seen[1])) == (count // 2, count - count // 2)
        assert seen[0] | seen[1] == set(range(count))


def test_alternating_halves_are_drawn_by_the_run_and_shuffled_by_the_epoch():
    def half(run, epoch):
        return np.asarray(orders.alternating_halves(KEYS[run], KEYS[epoch], 40, 5))[::2].ravel()

    assert set(half(0, 1)) == set(half(0, 2)) != set(half(3, 1))
    assert (half(0, 1) != half(0, 2)).any()
    assert sorted(half(0, 1)) != list(range(20)), "the halves are not drawn"
