"""Pruned networks run in less time where that is possible, and a report of where it is not.

A mask makes nothing faster by itself: matrices are multiplied as fast with zeros in them as without. Three things do.
Units that are cut out (`sparsejax.shrink`): always, convolutions included. Blocks of zeros, in matrices: `compile`
finds them and multiplies by the others (`sparsejax.block_sparse`). Single zeros, from 90% of them and for batches, on
a CPU. `compile` times what there is against the dense product and takes what is faster, or leaves it.

    fast = sj.inference.compile(apply_fn, params, inputs)
    outputs = fast(inputs)
    print(fast.report)

Zeros in blocks come from `sparsejax.recipes.balanced_blocks`, or any rule with `select.block(8, 128)` as its grain and
`select.per(-1)` as its scope. To do both, shrink first: units all of whose weights are zero can go exactly.

    alive = {name: sizes > 0 for name, sizes in graph.pull(jax.tree.map(jnp.abs, params)).items()}
    fast = sj.inference.compile(graph.small(alive), sj.shrink(graph, params, alive), inputs)
"""

from sparsejax.inference.choices import Choices, Layer
from sparsejax.inference.compiling import Compiled, compile
from sparsejax.inference.rules import Candidate, Verdict, fastest, smallest

__all__ = ["Candidate", "Choices", "Compiled", "Layer", "Verdict", "compile", "fastest", "smallest"]
