"""Names, selection and replacement, on every tree."""

import jax
import jax.numpy as jnp
import laws
import pytest

from sparsejax import tree

PARAMS = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
    "Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "steps": jnp.arange(6).reshape(2, 3),
}


@pytest.mark.parametrize("view", laws.TREES)
def test_default_selection_is_float_matrices_of_every_tree(view):
    make, names = laws.TREES[view]
    params = make(jnp.bfloat16)
    assert list(tree.select(params)) == names
    assert list(tree.select(jax.eval_shape(lambda: params))) == names


SELECTIONS = {
    "default": (None, ["Conv_0/kernel", "Dense_0/kernel"]),
    "a part of the name": ("Conv", ["Conv_0/bias", "Conv_0/kernel"]),
    "anchored": ("^Dense_0/kernel$", ["Dense_0/kernel"]),
    "all but one": ("^(?!Dense).*kernel", ["Conv_0/kernel"]),
    "predicate": (lambda name, leaf: leaf.size == 3, ["Dense_0/bias"]),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_select(name):
    where, expected = SELECTIONS[name]
    assert sorted(tree.select(PARAMS, where)) == sorted(expected)


def test_replace_keeps_structure_and_other_leaves():
    new = tree.replace(PARAMS, {"Dense_0/kernel": jnp.zeros((2, 3))})
    assert jax.tree.structure(new) == jax.tree.structure(PARAMS)
    assert new["Conv_0"]["kernel"] is PARAMS["Conv_0"]["kernel"]
    assert not new["Dense_0"]["kernel"].any()


WRONG = {
    "no match": (lambda: tree.select(PARAMS, "LSTM"), "where='LSTM' matches no leaf.*'Conv_0/kernel'"),
    "no match by predicate": (lambda: tree.select(PARAMS, lambda n, x: False), "matches no leaf"),
    "not a selector": (lambda: tree.select(PARAMS, 3), "where=3 must be None, a regular expression"),
    "integers": (lambda: tree.select(PARAMS, "steps"), "leaf 'steps' has dtype int32"),
    "nothing": (lambda: tree.select({}), "no float leaf has rank >= 2"),
    "same name twice": (lambda: tree.named({"a/b": 1, "a": {"b": 2}}), "both called 'a/b'"),
    "unknown name": (lambda: tree.replace(PARAMS, {"Dense": 1}), "'Dense' that is not a leaf of params"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
