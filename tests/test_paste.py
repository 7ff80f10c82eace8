"""Masks of boxes in the image: against torchvision, and their overlap against plain counting."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mediax.operators.paste import class_inside, compare, paste

GOLDEN = Path(__file__).parent / "references" / "goldens" / "paste.npz"


def test_pasted_masks_equal_torchvision():
    golden = np.load(GOLDEN)
    size = golden["pasted"].shape[1:]
    with jax.enable_x64(True):
        found = jax.vmap(lambda mask, box: paste(mask, box, size))(golden["masks"], golden["boxes"])
    np.testing.assert_allclose(found, golden["pasted"], atol=1e-6)


def test_overlap_is_that_of_counted_pixels():
    rng = np.random.default_rng(1)
    size, labels = (24, 29), np.array([0, 1, 1, 0])  # a row is no whole number of octets
    masks = rng.random((4, 6, 6)).repeat(2, 1).repeat(2, 2).astype(np.float32)
    boxes = np.float32([[0.1, 0.1, 0.8, 0.6], [0, 0.2, 0.7, 0.9], [0.5, 0.5, 1, 1], [0.3, 0.3, 0.3, 0.3]])
    true = rng.random((3, *size)) < 0.6
    true[2] = False
    shown = np.array([True, True, False, True])
    packed = np.packbits(true, axis=-1)
    iou, structures = compare(*map(jnp.asarray, (masks, boxes, labels, shown, packed)), size, 2)
    pixels = np.array([*size, *size])
    pasted = [np.asarray(paste(jnp.asarray(mask), jnp.asarray(box * pixels), size)) for mask, box in zip(masks, boxes)]
    called = np.stack(pasted) >= 0.5
    for n, actual in enumerate(true):
        for d in range(4):
            union = (called[d] | actual).sum()
            np.testing.assert_allclose(iou[d, n], (called[d] & actual).sum() / max(union, 1), rtol=1e-6)
    np.testing.assert_array_equal(structures, np.stack([called[[0, 3]].any(0), called[1]], -1))
    assert np.asarray(iou)[:2, :2].min() > 0.02 and called[2].any()


def test_the_stand_in_is_the_class_inside_the_box():
    rng = np.random.default_rng(2)
    masks = (rng.random((24, 29, 2)) < 0.6).astype(np.uint8)
    boxes = np.float32([[0.1, 0.05, 0.7, 0.7], [0.4, 0.4, 1.0, 0.95], [0, 0, 0, 0]])
    found = np.unpackbits(class_inside(*map(jnp.asarray, (masks, boxes, np.array([1, 0, 0])))), axis=-1, count=29)
    rows, columns = (np.arange(length) + 0.5 for length in (24, 29))
    for mask, (ymin, xmin, ymax, xmax), label in zip(found, boxes * [24, 29, 24, 29], (1, 0, 0)):
        inside = ((rows >= ymin) & (rows < ymax))[:, None] & ((columns >= xmin) & (columns < xmax))
        np.testing.assert_array_equal(mask, masks[..., label] & inside)
    assert found[:2].any((1, 2)).all()
