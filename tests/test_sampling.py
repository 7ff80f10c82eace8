"""Sampling, deformable attention and DCNv3 equal their references (tests/references/operators.py) and stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from references import compare, operator_cases
from references.operator_goldens import assert_equals_golden

from mediax.operators.dcnv3 import dcnv3
from mediax.operators.deformable_attention import deformable_attention
from mediax.operators.sampling import grid_sample, weighted_samples


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_grid_sample_equals_torch(padding, align_corners):
    def function(image, grid):
        return grid_sample(image, grid, padding=padding, align_corners=align_corners)

    assert_equals_golden(f"grid_sample/{padding}/{align_corners}", function, operator_cases.grid_sample())


def test_deformable_attention_equals_deformable_detr():
    arguments = operator_cases.deformable_attention()
    levels = [name for name in arguments if name.startswith("value")]  # in their order: jax sorts what it passes on

    def function(locations, weights, **values):
        return deformable_attention([values[name] for name in levels], locations, weights)

    assert_equals_golden("deformable_attention", function, arguments)


@pytest.mark.parametrize("name", operator_cases.DCNV3)
def test_dcnv3_equals_internimage(name):
    settings = operator_cases.DCNV3[name]

    def function(x, offsets, masks):
        return dcnv3(x, offsets, masks, **settings)

    assert_equals_golden(f"dcnv3/{name}", function, operator_cases.dcnv3(**settings))


def random_samples(rng, dtype=np.float64):
    levels = [rng.standard_normal((2, h, w, 2, 3)).astype(dtype) for h, w in ((4, 5), (3, 7))]
    # Away from whole pixels, where the slope jumps.
    y, x = (rng.integers(-2, 5, (2, 3, 2, 4)) + rng.uniform(0.1, 0.9, (2, 3, 2, 4)) for _ in range(2))
    return levels, y, x, rng.standard_normal((2, 3, 2, 4)), rng.integers(0, 2, (2, 3, 2, 4))


def test_gradients_agree_with_finite_differences():
    *arguments, level = random_samples(np.random.default_rng(0))
    with jax.enable_x64(True):
        check_grads(jax.jit(lambda *a: weighted_samples(*a, level=level)), arguments, order=1, modes="rev", eps=1e-4)


def test_agrees_with_an_independent_definition():
    levels, y, x, weights, level = random_samples(np.random.default_rng(1), np.float32)
    expected = np.zeros((2, 3, 2, 3))
    for b, q, g, k in np.ndindex(y.shape):
        image = levels[level[b, q, g, k]][b, :, :, g]
        rows, columns = np.arange(image.shape[0]), np.arange(image.shape[1])
        tent = np.maximum(1 - abs(rows - y[b, q, g, k]), 0)[:, None] * np.maximum(1 - abs(columns - x[b, q, g, k]), 0)
        expected[b, q, g] += weights[b, q, g, k] * np.einsum("hw,hwc->c", tent, image)
    samples = jax.jit(weighted_samples)(levels, y, x, weights, level)
    compare.assert_close(samples, expected, 1e-5, "samples")


def test_far_and_undefined_samples_are_zero_and_give_no_gradient():
    image = jnp.ones((1, 3, 3, 1, 2))
    y = jnp.array([1.0, np.nan, np.inf, -np.inf, 1e30, -1e30, 3.0, -1.0, 1.0])[None, :, None, None]
    x = jnp.ones_like(y).at[0, 8].set(np.nan)

    def total(image, y, x):
        samples = weighted_samples([image], y, x, jnp.ones_like(y))
        return samples.sum(), samples

    gradients, samples = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(image, y, x)
    np.testing.assert_array_equal(samples[0, :, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(gradients[0][0, :, :, 0, 0], np.eye(3)[1][:, None] * np.eye(3)[1])
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_bfloat16_sums_in_f32():
    levels, *samples = random_samples(np.random.default_rng(2), np.float32)
    rounded = [jnp.asarray(level, jnp.bfloat16) for level in levels]

    def total(levels):
        value = weighted_samples(levels, *samples)
        return jnp.sum(value.astype(jnp.float32) ** 2), value

    run = jax.jit(jax.grad(total, has_aux=True))
    gradient, value = run(rounded)
    exact_gradient, exact = run([level.astype(jnp.float32) for level in rounded])
    assert value.dtype == gradient[0].dtype == jnp.bfloat16
    compare.assert_close(value, exact, 2**-8, "value")
    compare.assert_close(gradient[0], exact_gradient[0], 2**-6, "gradient")  # its argument was rounded as well


def test_works_under_vmap_and_remat():
    levels, *samples = random_samples(np.random.default_rng(3), np.float32)

    def total(level):
        return jnp.sum(weighted_samples([level, levels[1]], *samples) ** 2)

    images = jnp.stack([levels[0], 2 * levels[0]])
    mapped = jax.jit(jax.vmap(jax.grad(jax.checkpoint(total))))(images)
    slope = jax.jit(jax.grad(total))
    compare.assert_close(mapped, jnp.stack([slope(image) for image in images]), 1e-5, "gradients")


def test_refuses_what_does_not_fit():
    x, offsets, masks = jnp.zeros((1, 4, 4, 6)), jnp.zeros((1, 4, 4, 2, 9, 2)), jnp.zeros((1, 4, 4, 2, 9))
    with pytest.raises(ValueError, match="expected masks"):
        dcnv3(x, offsets, masks, stride=2)
    with pytest.raises(ValueError, match="no centre"):
        dcnv3(x, offsets, masks, kernel_size=2, remove_center=True)
    with pytest.raises(ValueError, match="5 channels into 2"):
        dcnv3(x[..., :5], offsets, masks)
    with pytest.raises(ValueError, match="1 levels"):
        deformable_attention([jnp.zeros((1, 4, 4, 2, 3))], jnp.zeros((1, 3, 2, 2, 4, 2)), jnp.zeros((1, 3, 2, 2, 4)))
    with pytest.raises(ValueError, match="'reflection'"):
        grid_sample(x, jnp.zeros((1, 2, 2)), padding="reflection")
