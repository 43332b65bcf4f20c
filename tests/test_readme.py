"""The README's own snippet, run as it stands on a small problem."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import laws
import numpy as np

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_snippet_prunes_a_network(capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    x, teacher = laws.weights((256, 30), 30, scale=1.0), laws.weights((30, 40), 31)
    params = {"layer": {"kernel": laws.weights((30, 40), 32), "bias": jnp.zeros(40)}}

    def loss_fn(params, batch):
        return jnp.mean((batch @ params["layer"]["kernel"] + params["layer"]["bias"][None] - batch @ teacher) ** 2)

    scope = {"params": params, "loss_fn": loss_fn, "batches": [x] * 400}
    exec(snippet, scope)
    assert "layer/kernel" in capsys.readouterr().out
    zeros = np.mean(np.asarray(scope["sparse"]["layer"]["kernel"]) == 0)
    np.testing.assert_allclose(zeros, 0.85, atol=0.05)
    assert jax.tree.structure(scope["sparse"]) == jax.tree.structure(params)
