"""Structural similarity (SSIM) of images, Wang et al., IEEE TIP 13(4), 2004: luminance, contrast and structure."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from mediax.errors import InputError

TRUNCATE = 3.5  # standard deviations, where the window ends
K1, K2 = 0.01, 0.03


def window(sigma: float) -> jax.Array:
    """The Gaussian weights f32[2r+1] of a window along one axis, of standard deviation `sigma` in pixels."""
    radius = _radius(sigma)
    weights = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1, dtype=jnp.float32) / sigma) ** 2)
    return weights / weights.sum()


def check_window(sigma: float, height: int, width: int, cells: int = 1) -> None:
    """Raises InputError if the windows in images of `height` and `width` pixels are too few for a grid of `cells`."""
    side, shorter = 2 * _radius(sigma) + 1, min(height, width)
    if shorter < side + cells - 1:
        raise InputError(
            f"structural similarity with sigma {sigma:g} has windows of {side} pixels and a grid of {cells}x{cells}: "
            f"images of {height}x{width} pixels are too small. Choose a smaller sigma or grid"
        )


def similarity(first: jax.Array, second: jax.Array, *, sigma: float = 1.5) -> jax.Array:
    """The SSIM f32[B,h,w,C] of images f[B,H,W,C] in [0,1], for every window that lies inside the image.

    Small changes of brightness and contrast count little against those of shape, but where an image is black: there a
    difference of 0.01 halves the similarity. `sigma` in pixels sets the size of what is compared. It takes five
    filtered copies of the images. Follows scikit-image's `structural_similarity` with `gaussian_weights` and population
    covariances. Raises InputError for images smaller than a window, or of different shapes.
    """
    if first.shape != second.shape:
        raise InputError(f"structural similarity of images of shapes {first.shape} and {second.shape}: expected equal")
    check_window(sigma, *first.shape[1:3])
    weights = window(sigma)
    x, y = first.astype(jnp.float32), second.astype(jnp.float32)
    x_mean, y_mean, xx, yy, xy = (_filtered(array, weights) for array in (x, y, x * x, y * y, x * y))
    x_variance, y_variance, covariance = xx - x_mean**2, yy - y_mean**2, xy - x_mean * y_mean
    luminance = (2 * x_mean * y_mean + K1**2) / (x_mean**2 + y_mean**2 + K1**2)
    contrast_and_structure = (2 * covariance + K2**2) / (x_variance + y_variance + K2**2)
    return luminance * contrast_and_structure


def _filtered(image: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted means over the windows inside of f32[B,H,W,C]."""
    batch, height, width, channels = image.shape
    planes = jnp.moveaxis(image, 3, 1).reshape(batch * channels, height, width, 1)
    for kernel in (weights[:, None, None, None], weights[None, :, None, None]):
        # Variances are differences of these means: with the shorter mantissas of accelerators nothing would be left.
        planes = lax.conv_general_dilated(
            planes,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
    return jnp.moveaxis(planes.reshape(batch, channels, *planes.shape[1:3]), 1, 3)


def _radius(sigma: float) -> int:
    return int(TRUNCATE * sigma + 0.5)
