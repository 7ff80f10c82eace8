"""Coarse-to-fine matching of two images of one retina: two pyramids -> the transformation of one onto the other.

Descriptors of all coarse cells are correlated with each other, and a quadratic transformation is fitted to the matches,
each weighted by how sure it is; fine descriptors, brought together by it, are matched again nearby. All of it is
differentiable. The ingredients are those of GLU-Net (arXiv:1912.05524), LoFTR (arXiv:2104.00680) and Can et al. (IEEE
TPAMI 24(3), 2002), none of which is reproduced here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mediax.errors import InputError
from mediax.layers import Conv, nearest, wide
from mediax.operators import correlation, quadratic


class Head(nnx.Module):
    """Pyramids {stride: f[B,H/s,W/s,C_s]} of an image and of the moving image -> transformations and descriptors.

    `channels` is the backbone's {stride: C_s}. Descriptors of `width` numbers are made from the coarsest level down to
    the stride `fine`, each level taking in the one before (arXiv:1612.03144); those at the strides `coarse` and `fine`
    are matched, the fine ones `refinements` times within `radius` cells. A match that is `tolerance` off the fit, as a
    fraction of the image, has a quarter of its weight; of coarse matches, four times as far.

    Returns:
      stages: f32[refinements+1,B,6,2] coefficients of `operators.quadratic`, which move points of the moving image to
        their places in the image: coarse, then finer and finer.
      descriptors, moving_descriptors: f32[B,h,w,width] of unit length, at the stride `coarse`.
      sharpness: f32[], by which their products become logits.

    Raises InputError for strides that the backbone does not have.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        *,
        coarse: int = 8,
        fine: int = 4,
        width: int = 64,
        radius: int = 3,
        refinements: int = 3,
        tolerance: float = 0.01,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, stride in (("coarse", coarse), ("fine", fine)):
            if stride not in channels:
                raise InputError(f"matcher head: {name}={stride}; choose one of the backbone's strides, {[*channels]}")
        if fine > coarse:
            raise InputError(f"matcher head: fine={fine}, coarse={coarse}; expected fine to be the smaller stride")
        self.coarse, self.fine, self.radius, self.refinements = coarse, fine, radius, refinements
        self.tolerance = tolerance
        self.strides = tuple(sorted((stride for stride in channels if stride >= fine), reverse=True))
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        options = {"kernel_init": init, "dtype": dtype, "rngs": rngs}
        self.laterals = nnx.List([Conv(channels[stride], width, 1, **options) for stride in self.strides])
        self.outputs = nnx.List([Conv(width, width, 3, padding=1, **options) for _ in range(2)])
        self.sharpness = nnx.Param(jnp.log(jnp.full(2, 10.0)))

    def __call__(
        self,
        pyramid: Mapping[int, jax.Array],
        moving_pyramid: Mapping[int, jax.Array],
        *,
        train: bool,
        rngs: nnx.Rngs | None,
    ) -> dict[str, jax.Array]:
        image, moving = self._descriptors(pyramid), self._descriptors(moving_pyramid)
        sharpness, fine_sharpness = jnp.exp(self.sharpness[...])
        stages = [self._register(moving[0], image[0], sharpness)]
        for _ in range(self.refinements):
            stages.append(self._refine(jax.lax.stop_gradient(stages[-1]), moving[1], image[1], fine_sharpness))
        return {
            "stages": jnp.stack(stages),
            "descriptors": image[0],
            "moving_descriptors": moving[0],
            "sharpness": sharpness,
        }

    def _descriptors(self, pyramid: Mapping[int, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Descriptors f32[B,h,w,D] at the coarse and at the fine stride."""
        found, x = {}, None
        for stride, lateral in zip(self.strides, self.laterals):
            level = lateral(pyramid[stride])
            x = level if x is None else level + nearest(x, level.shape[1:3])
            found[stride] = x
        coarse, fine = (wide(conv(found[stride])) for conv, stride in zip(self.outputs, (self.coarse, self.fine)))
        return _unit(coarse), _unit(fine)

    def _register(self, moving: jax.Array, image: jax.Array, sharpness: jax.Array) -> jax.Array:
        places, confidence = correlation.match_everywhere(moving, image, sharpness)
        points = jnp.broadcast_to(correlation.cells(*moving.shape[1:3]), places.shape)
        return quadratic.robust_fit(points, places, confidence, tolerance=4 * self.tolerance)

    def _refine(self, coefficients: jax.Array, moving: jax.Array, image: jax.Array, sharpness: jax.Array) -> jax.Array:
        batch, height, width, _ = moving.shape
        points = jnp.broadcast_to(correlation.cells(height, width), (batch, height * width, 2))
        # The image, brought onto the moving one as far as it is known: what is still off are a few cells.
        brought = correlation.sample(image, quadratic.transform(coefficients, points)).reshape(moving.shape)
        offsets, confidence = correlation.match_nearby(moving, brought, sharpness, radius=self.radius)
        offsets = offsets.reshape(points.shape) / jnp.array([height, width])
        places = quadratic.transform(coefficients, points + offsets)
        return quadratic.robust_fit(points, places, confidence.reshape(batch, -1), tolerance=self.tolerance)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)
