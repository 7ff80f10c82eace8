"""What the detectors' tests give to mediax and tests/references/{detection,dino}.py to the references."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from references import compare, multiply_adds, seeded

from mediax.backbones import resnet

SIZE = (64, 128)
CHANNELS = {4: 6, 8: 8, 16: 10, 32: 12}
CLASSES = 4
BOXES = np.float32([[8, 16, 40, 64], [24, 32, 56, 48], [4, 72, 60, 120], [0, 0, 0, 0]]) / np.float32([*SIZE, *SIZE])


def pyramid(size: tuple[int, int] = SIZE) -> dict[int, np.ndarray]:
    """Noise in place of what a backbone makes of images that are padded to multiples of its coarsest stride."""
    height, width = (side + -side % max(CHANNELS) for side in size)
    return {
        stride: seeded.normal(f"level {stride}", (2, height // stride, width // stride, channels))
        for stride, channels in CHANNELS.items()
    }


def targets() -> dict[str, jax.Array]:
    """Three boxes in the first image, none in the second."""
    return {
        "boxes": jnp.asarray(np.stack([BOXES, 0 * BOXES])),
        "box_labels": jnp.asarray([[1, 3, 0, 0], [0, 0, 0, 0]], jnp.int32),
        "box_valid": jnp.asarray([[True, True, True, False], [False] * 4]),
    }


def run(
    family, golden: dict, loss, *, targets: dict, train: bool = False, dtype=jnp.float64, **options
) -> tuple[dict, dict, dict]:
    """(outputs, gradients of the weights, gradients of the pyramid) of `loss(losses)` on seeded weights."""
    weights = family.translate(seeded.tensors(json.loads(str(golden["shapes"]))))["head"]
    with jax.enable_x64(dtype == jnp.float64):
        # Shapes only: initialising every layer would take longer than the comparison.
        options |= {"dtype": dtype}
        head = nnx.eval_shape(lambda: family.Head(CHANNELS, CLASSES, **options, rngs=nnx.Rngs(0)))
        compare.set_weights(head, weights, "head")
        definition, params = nnx.split(head, nnx.Param)

        def total(params, levels):
            head = nnx.merge(definition, params)
            outputs = head(levels, SIZE, targets, train=train, rngs=nnx.Rngs(0))
            return loss(outputs["losses"]), outputs

        levels = {stride: jnp.asarray(level, dtype) for stride, level in pyramid().items()}
        (slopes, level_slopes), outputs = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, levels)
        return jax.tree.map(np.asarray, (outputs, compare.flat(nnx.to_pure_dict(slopes)), level_slopes))


def on_resnet_50(family, **options) -> tuple[nnx.Module, nnx.Module]:
    """The backbone and a head of 91 classes, as published for COCO; shapes only."""

    def build():
        backbone = resnet.Backbone(variant="50", rngs=nnx.Rngs(0))
        return backbone, family.Head(backbone.channels, 91, **options, rngs=nnx.Rngs(0))

    return nnx.eval_shape(build)


def learned(backbone: nnx.Module, head: nnx.Module) -> int:
    """The number of parameters as the references count them, whose BatchNorm is frozen."""
    kernels = {
        p: leaf for p, leaf in compare.flat(compare.variables_of(backbone)["params"]).items() if p[-1] == "kernel"
    }
    return compare.parameters(head) + sum(leaf.size for leaf in kernels.values())


def assert_cost(backbone: nnx.Module, head: nnx.Module, published: float) -> None:
    """The multiply-adds are the published mean over COCO's images: short sides of 800 pixels, long ones up to 1333."""
    square, longest = (
        multiply_adds.of_backbone(backbone, size) + multiply_adds.of_head(head, backbone.channels, size)
        for size in ((800, 800), (800, 1333))
    )
    assert square < published < longest


def assert_gradients(family, slopes: dict, golden: dict, tolerance: float) -> None:
    """Compares the gradients of all parameters; where the reference has none but rounding, there shall be no more.

    Softmax cancels the keys' bias, and normalisation that of a convolution before it.
    """
    shapes = json.loads(str(golden["shapes"]))
    learns = golden["gradient/norms"] > 1e-9
    fields = {f"gradient/{field}": golden[f"gradient/{field}"][learns] for field in ("names", "norms", "projections")}
    names = fields["gradient/names"].tolist()
    moved = family.translate({name: np.zeros(shapes[name]) for name in names})["head"]
    largest = fields["gradient/norms"].max()
    assert all(np.abs(slope).max() < 1e-6 * largest for path, slope in slopes.items() if path not in moved)
    slopes = {path: slopes[path] for path in moved}
    compare.assert_summary(family, {"backbone": {}, "head": slopes}, golden | fields, "gradient", shapes, tolerance)


def best_pairs(logits: np.ndarray, boxes: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """What a set predictor detects: logits f[B,Q,K], boxes f[B,Q,4] (x, y, width, height) -> the `count` best pairs."""
    scores = 1 / (1 + np.exp(-logits.reshape(len(logits), -1)))
    best = np.argsort(-scores, axis=1)[:, :count]
    query, labels = np.divmod(best, logits.shape[-1])
    x, y, width, height = np.moveaxis(np.take_along_axis(boxes, query[..., None], 1), -1, 0)
    boxes = np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1)
    return {"scores": np.take_along_axis(scores, best, 1), "labels": labels, "boxes": np.clip(boxes, 0, 1)}
