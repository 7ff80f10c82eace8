"""Compares a backbone and a segmentation head with seeded weights with a golden of references/segmentation.py."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from references import compare, seeded


def family(head_module, backbone_module=None):
    """Something with the `translate` that `compare` asks for: published names -> backbone and head."""

    def translate(weights):
        parts = head_module.translate(weights)
        backbone = backbone_module.translate(parts["backbone"])["backbone"] if parts["backbone"] else {}
        return {"backbone": backbone, "head": parts["head"]}

    return SimpleNamespace(translate=translate)


def assert_equals(
    golden: str,
    names,
    head,
    *,
    backbone=None,
    inputs: dict | np.ndarray,
    size: tuple[int, int],
    mode: str = "inference",
    gradients: bool = True,
    dtype=jnp.float64,
    tolerance: float = 1e-6,
) -> None:
    """Logits and the gradients of all parameters agree with the reference, relative to the largest entry.

    `head(dtype)` and `backbone(dtype)` build the modules; without a backbone, `inputs` is the pyramid. Gradients agree
    within ten times the tolerance.
    """
    expected = compare.load(golden)
    shapes = json.loads(str(expected["shapes"]))
    weights = names.translate(seeded.tensors(shapes))
    with jax.enable_x64(dtype == jnp.float64):
        modules = {"head": nnx.eval_shape(lambda: head(dtype))}
        if backbone is not None:
            modules["backbone"] = nnx.eval_shape(lambda: backbone(dtype))
        for part, module in modules.items():
            compare.set_weights(module, weights[part], part)
        graphs, params, stats = {}, {}, {}
        for part, module in modules.items():
            graphs[part], params[part], stats[part] = nnx.split(module, nnx.Param, nnx.BatchStat)
        probe = seeded.normal("probe", expected[f"{mode}/shape"])

        def loss(params, inputs):
            parts = {part: nnx.merge(graphs[part], params[part], stats[part], copy=True) for part in graphs}
            train = mode == "training"
            pyramid = parts["backbone"](inputs, train=train, rngs=None) if backbone is not None else inputs
            logits = parts["head"](pyramid, size, train=train, rngs=None)
            return jnp.sum(logits * probe), logits

        if gradients:
            slopes, logits = jax.jit(jax.grad(loss, has_aux=True))(params, inputs)
        else:
            logits = jax.jit(loss)(params, inputs)[1]
    assert logits.shape == tuple(expected[f"{mode}/shape"])
    sample = np.asarray(logits).reshape(-1)[::7]
    compare.assert_close(sample, expected[f"{mode}/every_7th"], tolerance, f"{golden} {mode} logits")
    if gradients:
        ours = {part: compare.flat(nnx.to_pure_dict(slope)) for part, slope in slopes.items()}
        shapes |= json.loads(str(expected.get("joined", "{}")))
        compare.assert_summary(names, ours, expected, f"{mode}/gradient", shapes, 10 * tolerance)
