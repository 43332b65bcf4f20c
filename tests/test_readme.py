"""The README's own snippets, run as they stand on a small problem."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import laws
import numpy as np

import sparsejax as sj

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_snippets_prune_a_network(capsys):
    bounds, mask = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    x, teacher = laws.weights((256, 30), 30, scale=1.0), laws.weights((30, 40), 31)
    params = {"layer": {"kernel": laws.weights((30, 40), 32), "bias": jnp.zeros(40)}}

    def loss_fn(params, batch):
        return jnp.mean((batch @ params["layer"]["kernel"] + params["layer"]["bias"][None] - batch @ teacher) ** 2)

    scope = {"params": params, "loss_fn": loss_fn, "batches": [x] * 400}
    exec(bounds, scope)
    assert "layer/kernel" in capsys.readouterr().out
    zeros = np.mean(np.asarray(scope["sparse"]["layer"]["kernel"]) == 0)
    np.testing.assert_allclose(zeros, 0.85, atol=0.05)
    assert jax.tree.structure(scope["sparse"]) == jax.tree.structure(params)
    with jax.numpy_dtype_promotion("standard"):  # optax's adamw needs it
        exec(mask, scope)
    assert np.count_nonzero(scope["params"]["layer"]["kernel"]) == 120
    assert loss_fn(scope["params"], x) < loss_fn(sj.apply(sj.find_mask(scope["state"]), params), x)
    assert re.search(r"layer/kernel \* +30x40 +1,200 +120 +90.00% +90.00%", capsys.readouterr().out)
