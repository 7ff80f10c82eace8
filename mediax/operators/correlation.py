"""Correlation of two images' descriptors: which place of one looks like a place of the other, and how surely.

Descriptors f[B,h,w,D] have unit length. Points are (y, x) as fractions of the image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mediax.operators.sampling import grid_sample


def cells(height: int, width: int) -> jax.Array:
    """The centres f32[height*width,2] of the cells of a grid, row by row."""
    y, x = (jnp.arange(side) + 0.5 for side in (height, width))
    return jnp.stack(jnp.meshgrid(y / height, x / width, indexing="ij"), axis=-1).reshape(-1, 2)


def sample(features: jax.Array, points: jax.Array) -> jax.Array:
    """Samples f[B,h,w,C] bilinearly at f32[B,...,2] -> f[B,...,C]; outside lie zeros."""
    return grid_sample(features, 2 * points[..., ::-1] - 1)


def log_likelihood(
    moving: jax.Array, image: jax.Array, sharpness: jax.Array, moving_points: jax.Array, points: jax.Array
) -> jax.Array:
    """How likely known matches are, among all cells of the image as places of each moving point.

    f[B,h,w,D] twice, f32[] and f32[B,P,2] twice -> f32[B,P], a softmax's logarithm; between cells that of the four
    around is averaged.
    """
    batch, height, width, depth = image.shape
    similarity = sample(moving, moving_points) @ jnp.swapaxes(image.reshape(batch, -1, depth), 1, 2)
    likelihood = jax.nn.log_softmax(sharpness * similarity).reshape(batch, -1, height, width)
    across, along = (
        jax.nn.relu(1 - jnp.abs(jnp.clip(points[..., axis] * side - 0.5, 0, side - 1)[..., None] - jnp.arange(side)))
        for axis, side in enumerate((height, width))
    )
    return jnp.einsum("bpyx,bpy,bpx->bp", likelihood, across, along)


def match_everywhere(
    moving: jax.Array, image: jax.Array, sharpness: jax.Array, *, reach: float = 1.5
) -> tuple[jax.Array, jax.Array]:
    """For each cell of the moving image, where it lies in the image, whatever the distance, and how surely.

    The cell with the most similar descriptor, then the mean place of those within `reach` cells around it, weighted by
    a softmax over them. Confidence is the product of two softmaxes, over the image's cells and over the moving image's
    (as in LoFTR, arXiv:2104.00680): near 1 where each is the other's only match.

    f[B,h,w,D] twice, f32[] -> f32[B,h*w,2], f32[B,h*w]. Memory: O(B (h w)^2).
    """
    batch, height, width, depth = image.shape
    similarity = sharpness * (moving.reshape(batch, -1, depth) @ jnp.swapaxes(image.reshape(batch, -1, depth), 1, 2))
    confidence = jax.nn.softmax(similarity, axis=2) * jax.nn.softmax(similarity, axis=1)
    best = confidence.argmax(axis=2)
    y, x = jnp.divmod(jnp.arange(height * width), width)
    near = (jnp.abs(y - best[..., None] // width) <= reach) & (jnp.abs(x - best[..., None] % width) <= reach)
    weights = jax.nn.softmax(jnp.where(near, similarity, -jnp.inf), axis=2)
    return weights @ cells(height, width), jnp.take_along_axis(confidence, best[..., None], axis=2)[..., 0]


def match_nearby(
    moving: jax.Array, image: jax.Array, sharpness: jax.Array, *, radius: int
) -> tuple[jax.Array, jax.Array]:
    """For each cell of the moving image, how far off it lies in an image that fits already to `radius` cells.

    The mean offset over the square of cells around, weighted by a softmax of similarity, and as confidence the largest
    of these weights.

    f[B,h,w,D] twice, f32[] -> offsets f32[B,h,w,2] in cells, confidence f32[B,h,w]. Memory: O(B h w (2 radius + 1)^2).
    """
    height, width = image.shape[1:3]
    padded = jnp.pad(image, ((0, 0), (radius, radius), (radius, radius), (0, 0)))
    span = range(2 * radius + 1)
    shifted = (padded[:, y : y + height, x : x + width] for y in span for x in span)
    similarity = jnp.stack([(moving * other).sum(-1) for other in shifted], axis=-1)
    weights = jax.nn.softmax(sharpness * similarity)
    offsets = jnp.stack(jnp.meshgrid(*[jnp.arange(-radius, radius + 1.0)] * 2, indexing="ij"), axis=-1)
    return weights @ offsets.reshape(-1, 2), weights.max(-1)
