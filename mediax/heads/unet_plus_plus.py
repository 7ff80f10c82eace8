"""U-Net++ (arXiv:1807.10165, 1912.05074) for any backbone: nested, dense skips, pyramid -> logits of each pixel.

Follows segmentation-models-pytorch's UnetPlusPlus, to which the paper's deep supervision is added.
tests/test_unet_plus_plus.py compares the outputs and the gradients with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import Conv, ConvPair, bilinear, nearest, run_block, wide


class Node(ConvPair):
    """Nearest upsampling to the size of the skips, two 3x3 convolutions with BatchNorm and ReLU.

    f[B,h,w,in] and skips f[B,H,W,...] of `skip_channels` in all -> f[B,H,W,out].
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(in_channels + skip_channels, out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, skips: list[jax.Array], size: tuple[int, int], train: bool) -> jax.Array:
        return self.convolve(jnp.concatenate([nearest(x, size), *skips], axis=-1), train)


class Head(nnx.Module):
    """Pyramid {stride: f[B,H/s,W/s,C_s]}, size of the image (H, W) -> logits f32[B,H,W,K].

    A node of row r and column c stands at row r's level (row 0 is the second coarsest). It sees the node of the same
    column in the row before, and of its own row all nodes nearer to the backbone, and the backbone's level. Column 0 is
    farthest from the backbone: its nodes have `widths[row]` channels, all others those of their level. From the finest
    level on, plain blocks lead to stride 1. `widths` are coarse to fine, by default 16 at stride 1 and twice as many at
    each stride before.

    With `deep_supervision` the result is f32[D,B,H,W,K]: the logits of the nodes of the finest row, whose losses, and
    whose probabilities, are to be averaged (the paper's "accurate mode"); all but the last are 1x1 convolutions,
    resized to the image where the finest level is coarser. `remat` stores one array per node for the backward pass and
    recomputes the rest.
    Raises InputError for levels that are not one power of two after the other, or for a wrong number of widths.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        classes: int,
        *,
        widths: tuple[int, ...] = (),
        deep_supervision: bool = False,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        levels = sorted(channels, reverse=True)
        finest = levels[-1]
        if len(levels) < 2 or levels != [finest * 2**power for power in reversed(range(len(levels)))]:
            raise InputError(f"unet_plus_plus head: strides {levels}; expected two or more, each half the one before.")
        strides = [2**power for power in reversed(range(levels[0].bit_length() - 1))]
        widths = tuple(widths) or tuple(16 * stride for stride in strides)
        if len(widths) != len(strides):
            raise InputError(
                f"unet_plus_plus head: widths={widths}; expected {len(strides)}, one for each of the strides {strides}."
            )
        self.levels, self.remat = tuple(levels), remat
        self.tail_strides = tuple(strides[len(levels) - 1 :])
        self.rows = nnx.List()
        for row, level in enumerate(levels[1:]):
            nodes, skip = nnx.List(), channels[level]
            for column in range(row + 1):  # column 0 is the last node of its row: it comes from the coarsest level
                before = channels[levels[row]] if column or row == 0 else widths[row - 1]
                out = skip if column else widths[row]
                nodes.append(Node(before, skip * (row + 1 - column), out, dtype=dtype, rngs=rngs))
            self.rows.append(nodes)
        tail = widths[len(levels) - 2 :]
        self.tail = nnx.List(Node(before, 0, out, dtype=dtype, rngs=rngs) for before, out in pairwise(tail))
        self.output = _output(widths[-1], classes, 3, dtype, rngs)
        branches = len(levels) - 2 if deep_supervision else 0
        self.branches = nnx.List(_output(channels[finest], classes, 1, dtype, rngs) for _ in range(branches))

    def __call__(
        self, pyramid: Mapping[int, jax.Array], size: tuple[int, int], *, train: bool, rngs: nnx.Rngs | None
    ) -> jax.Array:
        above: list[jax.Array] = []  # the nodes of the row before, by column
        for row, level in enumerate(self.levels[1:]):
            sources = [*above, pyramid[self.levels[row]]]
            skips, current = [pyramid[level]], []
            for source, node in reversed(list(zip(sources, self.rows[row]))):
                x = run_block(node, source, skips, skips[0].shape[1:3], train, remat=self.remat)
                # The newest node first and the backbone's level last, which is the order of the published kernels.
                skips, current = [x, *skips], [x, *current]
            above = current
        x = above[0]
        for stride, node in zip(self.tail_strides, self.tail):
            level = tuple(-(-side // stride) for side in size)
            x = run_block(node, x, [], level, train, remat=self.remat)
        logits = [branch(node) for branch, node in zip(self.branches, reversed(above))] + [self.output(x)]
        logits = [bilinear(wide(x), size) for x in logits]
        return jnp.stack(logits) if self.branches else logits[0]


def _output(in_channels: int, classes: int, size: int, dtype: Any, rngs: nnx.Rngs) -> Conv:
    init = nnx.initializers.xavier_uniform()
    return Conv(in_channels, classes, size, padding=size // 2, kernel_init=init, dtype=dtype, rngs=rngs)


_NAMES = (
    *(
        (rf"decoder\.blocks\.x_(\d+)_(\d+)\.conv{index + 1}\.{layer}", rf"head/rows/\2/\1/{ours}/{index}")
        for index in range(2)
        for layer, ours in ((0, "convs"), (1, "norms"))
    ),
    (r"segmentation_head\.0", r"head/output"),
)


def translate(weights: Mapping[str, np.ndarray]) -> dict[str, dict[Any, np.ndarray]]:
    """Published tensors by name -> {"backbone": {name: array}, "head": {path: array}}.

    Takes UnetPlusPlus of segmentation-models-pytorch. The backbone's tensors keep the names that their own library gave
    them: they are for `translate` of the backbone's file. Raises InputError with the names it does not know.
    """
    encoder = {name: array for name, array in weights.items() if name.startswith("encoder.")}
    own = {name: array for name, array in weights.items() if name not in encoder}
    head = pretrained.rename(own, _NAMES)["head"]
    # The published network names the block to full size as one more row.
    last = max((path[1] for path in head if path[0] == "rows"), default=0)
    return {
        "backbone": {name.removeprefix("encoder."): array for name, array in encoder.items()},
        "head": {("tail", 0, *path[3:]) if path[:2] == ("rows", last) else path: array for path, array in head.items()},
    }
