"""Attention within windows of an image (Swin, Swin V2): windows and their shift, position biases, the attention."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# What the published models add where two pixels are not neighbours: their weights were trained with it, not with -inf.
_APART = -100.0


def in_windows(
    x: jax.Array,
    attend: Callable[[jax.Array, jax.Array | None], jax.Array],
    *,
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
) -> jax.Array:
    """Applies `attend` to the windows of an image of any size: f[B,H,W,C] -> f[B,H,W,C'].

    `attend(windows f[B,n,N,C], mask f32[n,N,N] or None) -> f[B,n,N,C']`, N pixels in each of n windows. Zeros at bottom
    and right fill the last windows; as in the published models, they take part in the attention. `shift` moves the
    windows down and right (cyclically; the mask keeps apart what the image does not join); along an axis with a single
    window it is ignored. Memory: the padded image and the mask, n*N*N.
    """
    height, width = x.shape[1:3]
    padded = tuple(-(-size // side) * side for size, side in zip((height, width), window))
    shift = tuple(0 if size <= side else by for size, side, by in zip(padded, window, shift))
    x = jnp.pad(x, ((0, 0), (0, padded[0] - height), (0, padded[1] - width), (0, 0)))
    mask = None
    if any(shift):
        x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))
        mask = jnp.asarray(shift_mask(padded, window, shift))
    x = join(attend(split(x, window), mask), padded, window)
    if any(shift):
        x = jnp.roll(x, shift, (1, 2))
    return x[:, :height, :width]


def split(x: jax.Array | np.ndarray, window: tuple[int, int]) -> jax.Array | np.ndarray:
    """Cuts an image, whose size the window divides, into windows, row by row: [B,H,W,C] -> [B,n,N,C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window[0], window[0], width // window[1], window[1], channels)
    return x.swapaxes(2, 3).reshape(batch, -1, window[0] * window[1], channels)


def join(windows: jax.Array, size: tuple[int, int], window: tuple[int, int]) -> jax.Array:
    """The image that `split` cut into windows: [B,n,N,C] -> [B,H,W,C]."""
    batch, channels = windows.shape[0], windows.shape[-1]
    rows, columns = size[0] // window[0], size[1] // window[1]
    x = windows.reshape(batch, rows, columns, *window, channels)
    return x.swapaxes(2, 3).reshape(batch, *size, channels)


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """What to add to the logits of an image that was rolled by `-shift`: f32[n,N,N], 0 or -100 between strangers.

    After the roll a window of the last row or column holds pixels of two opposite sides of the image.
    """
    rows, columns = (
        np.arange(length) >= length - by if by else np.zeros(length, bool) for length, by in zip(size, shift)
    )
    side = 2 * rows[:, None] + columns
    side = split(side[None, :, :, None], window)[0, :, :, 0]
    return np.where(side[:, :, None] == side[:, None], 0, _APART).astype(np.float32)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias: jax.Array,
    mask: jax.Array | None = None,
    logit_scale: jax.Array | None = None,
) -> jax.Array:
    """Attention of heads in windows: f[B,n,N,heads,d] three times -> f[B,n,N,heads*d].

    bias: f32[heads,N,N]; mask: f32[n,N,N], see `in_windows`. Logits are products scaled by 1/sqrt(d) (Swin,
    arXiv:2103.14030), or with `logit_scale` f32[heads] cosines times exp(logit_scale), at most 100 (Swin V2,
    arXiv:2111.09883). Softmax in at least f32. Memory: the logits, B*n*heads*N*N.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    if logit_scale is None:
        query = query * query.shape[-1] ** -0.5
        logits = jnp.einsum("bwqhd,bwkhd->bwhqk", query, key, preferred_element_type=wide)
    else:
        logits = jnp.einsum("bwqhd,bwkhd->bwhqk", _unit(query), _unit(key), preferred_element_type=wide)
        logits = logits * jnp.exp(jnp.minimum(logit_scale, np.log(100.0)))[:, None, None]
    logits = logits + bias
    if mask is not None:
        logits = logits + mask[:, None]
    weights = jax.nn.softmax(logits, -1).astype(value.dtype)
    return jnp.einsum("bwhqk,bwkhd->bwqhd", weights, value).reshape(*value.shape[:3], -1)


def _unit(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.maximum(jnp.sum(wide**2, -1, keepdims=True), 1e-24))).astype(x.dtype)


class RelativeBias(nnx.Module):
    """Swin's bias, one number for each head and each difference of positions: () -> f32[heads,N,N].

    `table` is f32[(2h-1)*(2w-1),heads], as in microsoft/Swin-Transformer (row by row of differences).
    """

    def __init__(self, window: tuple[int, int], heads: int, *, rngs: nnx.Rngs):
        entries = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.table = nnx.Param(nnx.initializers.truncated_normal(0.02)(rngs.params(), (entries, heads), jnp.float32))
        self.window = window

    def __call__(self) -> jax.Array:
        return _by_pair(self.table[...], self.window)


class ContinuousBias(nnx.Module):
    """Swin V2's bias, a small network of the log-spaced difference of positions: () -> f32[heads,N,N], 0 to 16.

    `pretrained` is the window that the weights were trained with, if it differs: differences are then measured in it.
    As in microsoft/Swin-Transformer: Linear(2, 512), ReLU, Linear(512, heads) without a bias, 16 * sigmoid.
    """

    def __init__(
        self,
        window: tuple[int, int],
        heads: int,
        *,
        pretrained: tuple[int, int] | None = None,
        hidden: int = 512,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.truncated_normal(0.02)
        self.hidden = nnx.Linear(2, hidden, kernel_init=init, rngs=rngs)
        self.out = nnx.Linear(hidden, heads, use_bias=False, kernel_init=init, rngs=rngs)
        self.window, self.pretrained = window, pretrained or window

    def __call__(self) -> jax.Array:
        table = self.out(nnx.relu(self.hidden(jnp.asarray(log_differences(self.window, self.pretrained)))))
        return 16 * nnx.sigmoid(_by_pair(table, self.window))


def log_differences(window: tuple[int, int], pretrained: tuple[int, int]) -> np.ndarray:
    """All differences of positions, row by row, on a logarithmic scale: f32[(2h-1)*(2w-1),2].

    A difference of the whole (pretrained) window becomes log(9) / log(8), and signs are kept.
    """
    axes = [np.arange(1 - side, side) * 8 / max(other - 1, 1) for side, other in zip(window, pretrained)]
    differences = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    return (np.sign(differences) * np.log1p(np.abs(differences)) / np.log(8)).astype(np.float32)


def _by_pair(table: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Looks up the difference of each pair of pixels: [(2h-1)*(2w-1),heads] -> [heads,N,N]."""
    positions = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1).reshape(-1, 2)
    row, column = np.moveaxis(positions[:, None] - positions, -1, 0)
    index = (row + window[0] - 1) * (2 * window[1] - 1) + column + window[1] - 1
    return jnp.moveaxis(table[index], -1, 0)
