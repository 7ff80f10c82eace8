"""UPerNet (arXiv:1807.10221): pyramid pooling and a feature pyramid, pyramid -> logits of each pixel.

Follows the decode head of transformers' UperNetForSemanticSegmentation, which is mmsegmentation's UPerHead.
tests/test_upernet.py compares the outputs and the gradients with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import BatchNorm, Conv, average_cells, bilinear, run_block, wide

_kernel_init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class ConvBlock(nnx.Module):
    """Convolution that keeps the size, BatchNorm, ReLU: f[B,H,W,in] -> f[B,H,W,out]."""

    def __init__(self, in_channels: int, out_channels: int, size: int, *, dtype: Any, rngs: nnx.Rngs):
        options = {"padding": size // 2, "use_bias": False, "kernel_init": _kernel_init}
        self.conv = Conv(in_channels, out_channels, size, **options, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x), train))


class Head(nnx.Module):
    """Pyramid {stride: f[B,H/s,W/s,C_s]}, size of the image (H, W) -> logits f32[B,H,W,K].

    The coarsest level is pooled to squares of `pool_sizes` cells and joined with them (PSPNet's module); then the
    levels are added up from coarse to fine, joined at the finest, and the logits resized to the image, all by bilinear
    interpolation. `channels` is the backbone's {stride: C_s}, of which the `levels` coarsest are used; all features
    have `width` channels. `dropout` precedes the last convolution (mmsegmentation's recipes: 0.1).
    `remat` stores one array per convolution for the backward pass and recomputes the rest.
    Raises InputError if the backbone has fewer than two levels.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        classes: int,
        *,
        width: int = 512,
        levels: int = 4,
        pool_sizes: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.strides = tuple(sorted(channels)[-levels:])
        if len(self.strides) < 2:
            raise InputError(f"upernet head: {len(self.strides)} level of the backbone is used; expected at least 2.")
        *fine, coarsest = (channels[stride] for stride in self.strides)
        self.pool_sizes, self.dropout, self.remat = tuple(pool_sizes), dropout, remat

        def block(inputs: int, size: int) -> ConvBlock:
            return ConvBlock(inputs, width, size, dtype=dtype, rngs=rngs)

        self.pools = nnx.List(block(coarsest, 1) for _ in self.pool_sizes)
        self.bottleneck = block(coarsest + len(self.pool_sizes) * width, 3)
        self.laterals = nnx.List(block(inputs, 1) for inputs in fine)
        self.smoothings = nnx.List(block(width, 3) for _ in fine)
        self.fusion = block(len(self.strides) * width, 3)
        init = nnx.initializers.normal(0.01)
        self.output = Conv(width, classes, 1, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, pyramid: Mapping[int, jax.Array], size: tuple[int, int], *, train: bool, rngs: nnx.Rngs | None
    ) -> jax.Array:
        def run(block: ConvBlock, x: jax.Array) -> jax.Array:
            return run_block(block, x, train, remat=self.remat)

        *fine, coarsest = (pyramid[stride] for stride in self.strides)
        pooled = (run(pool, average_cells(coarsest, n)) for n, pool in zip(self.pool_sizes, self.pools))
        context = [coarsest, *(bilinear(x, coarsest.shape[1:3]) for x in pooled)]
        sums = [run(self.bottleneck, jnp.concatenate(context, axis=-1))]
        for x, lateral in reversed(list(zip(fine, self.laterals))):
            x = run(lateral, x)
            sums.insert(0, x + bilinear(sums[0], x.shape[1:3]))
        features = [run(smoothing, x) for smoothing, x in zip(self.smoothings, sums)] + sums[-1:]
        features = [bilinear(x, features[0].shape[1:3]) for x in features]
        x = run(self.fusion, jnp.concatenate(features, axis=-1))
        if train and self.dropout > 0:
            x = nnx.Dropout(self.dropout, deterministic=False)(x, rngs=rngs)
        return bilinear(wide(self.output(x)), size)


_MODULES = {
    r"psp_modules\.(\d+)\.1": r"pools/\1",
    r"bottleneck": "bottleneck",
    r"lateral_convs\.(\d+)": r"laterals/\1",
    r"fpn_convs\.(\d+)": r"smoothings/\1",
    r"fpn_bottleneck": "fusion",
}
_NAMES = (
    *(
        (rf"decode_head\.{published}\.{layer}", f"head/{ours}/{name}")
        for published, ours in _MODULES.items()
        for layer, name in (("conv", "conv"), ("(?:batch_norm|bn)", "norm"))
    ),
    (r"decode_head\.(?:classifier|conv_seg)", r"head/output"),
)


def translate(weights: Mapping[str, np.ndarray]) -> dict[str, dict[Any, np.ndarray]]:
    """Published tensors by name -> {"backbone": {name: array}, "head": {path: array}}.

    Takes the names of transformers and of mmsegmentation. The backbone's tensors keep the names that their own library
    gave them: they are for `translate` of the backbone's file. The auxiliary head, which predictions do not use, is
    dropped. Raises InputError with the names it does not know.
    """
    encoder = {name: array for name, array in weights.items() if name.startswith("backbone.")}
    own = {name: array for name, array in weights.items() if name.startswith("decode_head.")}
    known = len(encoder) + len(own) + sum(name.startswith("auxiliary_head.") for name in weights)
    if known < len(weights):
        others = [name for name in weights if not name.startswith(("backbone.", "decode_head.", "auxiliary_head."))]
        raise InputError(f"upernet: {len(others)} tensors have unknown names, the first is {others[0]!r}.")
    return {
        "backbone": {name.removeprefix("backbone."): array for name, array in encoder.items()},
        "head": pretrained.rename(own, _NAMES)["head"],
    }
