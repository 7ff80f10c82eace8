"""RoIAlign equals torchvision's (tests/references/operators.py wrote the goldens), for degenerate boxes too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import compare, operator_cases

from mediax.operators.roi_align import pyramid_level, roi_align

GOLDEN = compare.load("operators")
BOXES = np.stack([operator_cases.BOXES] * 2)


@pytest.mark.parametrize("name", operator_cases.ROI_ALIGN)
def test_equals_torchvision(name):
    def total(features):
        pyramid = {operator_cases.ROI_STRIDE: features}
        pooled = roi_align(pyramid, BOXES, operator_cases.ROI_SIZE, **operator_cases.ROI_ALIGN[name])
        return jnp.sum(pooled * operator_cases.probe((24, *pooled.shape[2:])).reshape(pooled.shape)), pooled

    # The probe has torch's axes: the boxes of both images in one.
    gradient, pooled = jax.jit(jax.grad(total, has_aux=True))(operator_cases.features())
    compare.assert_close(pooled, GOLDEN[f"roi_align/{name}/value"], 1e-5, name)
    compare.assert_close(gradient, GOLDEN[f"roi_align/{name}/gradient/features"], 1e-5, name)


@pytest.mark.parametrize("ratio", [2, -1])
def test_each_box_reads_its_own_level(ratio):
    """A pyramid gives what each level alone gives, also where levels do not halve exactly."""
    rng = np.random.default_rng(0)
    pyramid = {4: rng.standard_normal((2, 9, 13, 3)), 8: rng.standard_normal((2, 5, 7, 3)), 32: np.ones((2, 2, 2, 3))}
    pyramid = {stride: jnp.asarray(array, jnp.float32) for stride, array in pyramid.items()}
    level = rng.integers(0, 3, BOXES.shape[:2])
    pool = jax.jit(lambda pyramid, level: roi_align(pyramid, BOXES, (3, 2), level=level, sampling_ratio=ratio))
    pooled = pool(pyramid, level)
    for index, (stride, features) in enumerate(pyramid.items()):
        alone = pool({stride: features}, jnp.zeros_like(level))
        np.testing.assert_allclose(pooled[level == index], alone[level == index], atol=1e-5)


@pytest.mark.parametrize("ratio", [2, -1])
def test_undefined_boxes_give_zeros_and_boxes_get_no_gradient(ratio):
    features = jnp.ones((1, 6, 6, 2))
    boxes = jnp.array([[[np.nan] * 4, [0, 0, np.nan, 4], [-np.inf, 0, np.inf, 4], [1, 1, 4, 4]]], jnp.float32)

    def total(features, boxes):
        pooled = roi_align({1: features}, boxes, 2, sampling_ratio=ratio)
        return pooled.sum(), pooled

    gradients, pooled = jax.jit(jax.grad(total, (0, 1), has_aux=True))(features, boxes)
    np.testing.assert_allclose(pooled[0, 3], 1, atol=1e-6)
    np.testing.assert_array_equal(pooled[0, :3], 0)
    assert np.isfinite(gradients[0]).all()
    np.testing.assert_array_equal(gradients[1], np.zeros_like(boxes))


@pytest.mark.parametrize("ratio", [2, -1])
def test_no_boxes(ratio):
    run = jax.jit(lambda features, boxes: roi_align({4: features}, boxes, (7, 7), sampling_ratio=ratio))
    pooled = run(jnp.ones((2, 3, 3, 5)), jnp.zeros((2, 0, 4)))
    assert pooled.shape == (2, 0, 7, 7, 5)


def test_refuses_no_samples():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        roi_align({4: jnp.ones((1, 3, 3, 5))}, jnp.zeros((1, 1, 4)), 7, sampling_ratio=0)


def test_levels_equal_torchvisions():
    levels = pyramid_level(operator_cases.SIZED_BOXES, (4, 8, 16, 32))
    np.testing.assert_array_equal(levels, GOLDEN["pyramid_level/value"])
    undefined = jnp.array([[np.nan, 0, 1, 1], [5, 5, 1, 9]])
    np.testing.assert_array_equal(pyramid_level(undefined, (4, 8)), [0, 0])
