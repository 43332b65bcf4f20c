"""The README's own snippets, run as they stand on a small problem."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import laws
import numpy as np

import sparsejax as sj

README = (Path(__file__).parent.parent / "README.md").read_text()
BOUNDS, MASK, UNITS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_snippets_prune_a_network(capsys):
    x, teacher = laws.weights((256, 30), 30, scale=1.0), laws.weights((30, 40), 31)
    params = {"layer": {"kernel": laws.weights((30, 40), 32), "bias": jnp.zeros(40)}}

    def loss_fn(params, batch):
        return jnp.mean((batch @ params["layer"]["kernel"] + params["layer"]["bias"][None] - batch @ teacher) ** 2)

    scope = {"params": params, "loss_fn": loss_fn, "batches": [x] * 400}
    exec(BOUNDS, scope)
    assert "layer/kernel" in capsys.readouterr().out
    zeros = np.mean(np.asarray(scope["sparse"]["layer"]["kernel"]) == 0)
    np.testing.assert_allclose(zeros, 0.85, atol=0.05)
    assert jax.tree.structure(scope["sparse"]) == jax.tree.structure(params)
    with jax.numpy_dtype_promotion("standard"):  # optax's adamw needs it
        exec(MASK, scope)
    assert np.count_nonzero(scope["params"]["layer"]["kernel"]) == 120
    assert loss_fn(scope["params"], x) < loss_fn(sj.apply(sj.find_mask(scope["state"]), params), x)
    assert re.search(r"layer/kernel \* +30x40 +1,200 +120 +90.00% +90.00%", capsys.readouterr().out)


def test_the_last_snippet_cuts_units_out(capsys):
    def apply_fn(params, inputs):
        return jax.nn.relu(inputs @ params["in"]) @ params["out"]

    params = {"in": laws.weights((6, 9), 33), "out": laws.weights((9, 2), 34)}
    scope = {"apply_fn": apply_fn, "params": params, "inputs": laws.weights((5, 6), 35), "jax": jax, "sj": sj}
    exec(UNITS, scope)
    assert re.search(r"in +9 +yes", capsys.readouterr().out)
    assert jax.tree.map(jnp.shape, scope["small"]) == {"in": (6, 5), "out": (5, 2)}
    masked = sj.apply(scope["graph"].push(scope["kept"]), params)
    np.testing.assert_allclose(scope["outputs"], apply_fn(masked, scope["inputs"]), rtol=1e-5, atol=1e-6)
