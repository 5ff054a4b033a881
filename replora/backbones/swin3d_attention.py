"""Video Swin's attention with projections that are called, so that layers put in their place act by themselves.

torchvision's own hands the weights of `qkv` and `proj` to a function. Whatever stands in their place is then not
called: PEFT's layers have no effect at all, input dropout has none, and a low-rank update has to be formed as a whole
weight. Here they are called; parameters, their names and the outputs are torchvision's (a test compares them).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

SEPARATED = -100.0  # added to the score of two tokens that only the cyclic shift made neighbors, as in the original


class CallingAttention3d(ShiftedWindowAttention3d):  # type: ignore[misc]
    """`ShiftedWindowAttention3d`, (B, T, H, W, C) -> (B, T, H, W, C), by calls of `qkv` and `proj`."""

    def forward(self, x: Tensor) -> Tensor:
        batch, *sizes, width = x.shape
        # A window larger than the input shrinks to it and is not shifted.
        window = [min(own, size) for own, size in zip(self.window_size, sizes, strict=True)]
        shift = [s if size > w else 0 for s, w, size in zip(self.shift_size, self.window_size, sizes, strict=True)]
        padding = [-size % w for size, w in zip(sizes, window, strict=True)]
        x = F.pad(x, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
        padded = list(x.shape[1:4])
        if any(shift):
            x = x.roll([-s for s in shift], dims=(1, 2, 3))
        tokens = windows_of(x, window)  # (B, windows, N, C)
        count, length = tokens.shape[1:3]

        bias = self.get_relative_position_bias(window)  # (1, heads, N, N)
        heads, size = self.num_heads, width // self.num_heads
        qkv = self.qkv(tokens).view(batch, count, length, 3, heads, size).permute(3, 0, 1, 4, 2, 5)
        if any(shift):  # each window has a mask of its own: windows and heads side by side, masks alike for all videos
            mask = bias + separations(padded, window, shift, x.device)[:, None]  # (windows, heads, N, N)
            mask = mask.flatten(0, 1)[None]
            q, k, v = qkv.reshape(3, batch, count * heads, length, size)
        else:
            mask = bias
            q, k, v = qkv.reshape(3, batch * count, heads, length, size)
        dropped = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask.to(q.dtype), dropped)
        y = y.reshape(batch, count, heads, length, size).transpose(2, 3).reshape(batch, count, length, width)

        y = F.dropout(self.proj(y), self.dropout, self.training)
        y = whole_of(y, padded, window)
        if any(shift):
            y = y.roll(shift, dims=(1, 2, 3))
        t, h, w = sizes
        return y[:, :t, :h, :w].contiguous()


def calling_block(*args: Any, **options: Any) -> SwinTransformerBlock:
    """torchvision's block of a Swin, with this attention; what `SwinTransformer3d` takes as `block`."""
    return SwinTransformerBlock(*args, **(options | {"attn_layer": CallingAttention3d}))


def windows_of(x: Tensor, window: list[int]) -> Tensor:
    """(B, T, H, W, ...) -> (B, windows, N, ...), N = t h w tokens of a window."""
    t, h, w = window
    batch, T, H, W = x.shape[:4]
    x = x.reshape(batch, T // t, t, H // h, h, W // w, w, -1).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, -1, t * h * w, x.shape[-1])


def whole_of(tokens: Tensor, sizes: list[int], window: list[int]) -> Tensor:
    """The inverse: (B, windows, N, C) -> (B, T, H, W, C)."""
    (T, H, W), (t, h, w) = sizes, window
    x = tokens.reshape(-1, T // t, H // h, W // w, t, h, w, tokens.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(-1, T, H, W, tokens.shape[-1])


def separations(sizes: list[int], window: list[int], shift: list[int], device: torch.device) -> Tensor:
    """What is added to the scores inside shifted windows: (windows, N, N), 0 or `SEPARATED`.

    After the cyclic shift the last window along an axis holds tokens from both ends of it.
    """
    region = torch.zeros(1, *sizes, 1, device=device)
    for axis, (size, w, s) in enumerate(zip(sizes, window, shift, strict=True)):
        if s:
            at = torch.arange(size, device=device)
            number = (at >= size - w).float() + (at >= size - s)
            region = 3 * region + number.view([-1 if i == axis + 1 else 1 for i in range(5)])
    regions = windows_of(region, window)[0, ..., 0]  # (windows, N)
    return (regions[:, :, None] != regions[:, None, :]) * SEPARATED
