"""Where keys, values and compressed keys of a request lie in TensorRT-LLM's pages, and how they move in and out.

P tokens of a page, n requests, C tokens that their pages hold, G key heads, D head dim.

A compressed key lies in the page of the last key that it averages. So a page that is full, with all that it holds,
depends on the tokens up to its end alone: pages that requests share may be shared whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.config import SparseConfig
from ..errors import UnsupportedError
from ..model.layers import Cache


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowRows:
    """Compressed keys of one kind, k1 or k2: `kernel_size` and `kernel_stride` of their windows, and rows of a page."""

    size: int
    stride: int
    first_row: int
    rows: int

    def count(self, tokens: int) -> int:
        """Complete windows among `tokens` keys."""
        return max(0, (tokens - self.size) // self.stride + 1)

    def place(self, window: Tensor, page_tokens: int) -> tuple[Tensor, Tensor]:
        """Page of the request, counted from 0, and row of that page, for windows int64 [m]."""
        last = window * self.stride + self.size - 1
        return last // page_tokens, self.first_row + last % page_tokens // self.stride


@dataclass(frozen=True, kw_only=True, slots=True)
class PageLayout:
    """Rows of a page's compressed keys: those of k1, then those of k2."""

    page_tokens: int
    k1: WindowRows
    k2: WindowRows

    @classmethod
    def of(cls, sparse: SparseConfig, page_tokens: int) -> PageLayout:
        """Raises: UnsupportedError if windows of `sparse` do not fall into pages of this size in the same way."""
        stride = sparse.kernel_stride
        for each in (stride, 4 * stride):
            if page_tokens % each and each % page_tokens:
                raise UnsupportedError(
                    f"kv_cache_config.tokens_per_block is {page_tokens}: it must be a multiple of kernel_stride "
                    f"{stride}, and {4 * stride} of it or it of {4 * stride}; 32 or 64 serve the published model"
                )
        rows = [-(-page_tokens // each) for each in (stride, 4 * stride)]
        return cls(
            page_tokens=page_tokens,
            k1=WindowRows(size=sparse.kernel_size, stride=stride, first_row=0, rows=rows[0]),
            k2=WindowRows(size=4 * sparse.kernel_size, stride=4 * stride, first_row=rows[0], rows=rows[1]),
        )

    @property
    def rows(self) -> int:
        """Compressed keys that a page has room for."""
        return self.k1.rows + self.k2.rows


@dataclass(frozen=True, kw_only=True, slots=True)
class SparsePool:
    """The pages of one sparse layer."""

    keys_values: Tensor
    """X [pages, 2, G, P, D], any strides."""
    compressed: Tensor
    """X [slots, rows, G, D], any strides. Page `page_scale * slot` of `keys_values` belongs to slot `slot`."""
    page_scale: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NewWindows:
    """Compressed keys that a step completes, int64 [m] each."""

    request: Tensor
    window: Tensor
    slot: Tensor
    row: Tensor

    @classmethod
    def of(cls, kind: WindowRows, lengths: Iterable[tuple[int, int]], slots: Tensor, page_tokens: int) -> NewWindows:
        """Args: `lengths`, tokens of each request before and after the step; `slots` int64 [n, pages] of them."""
        pairs = [
            (request, window)
            for request, (before, after) in enumerate(lengths)
            for window in range(kind.count(before), kind.count(after))
        ]
        request, window = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).to(slots.device).unbind(1)
        page, row = kind.place(window, page_tokens)
        return cls(request=request, window=window, slot=slots[request, page], row=row)


def gather(pool: SparsePool, slots: Tensor, layout: PageLayout) -> Cache:
    """Copy what the pages of n requests hold, `slots` int64 [n, pages], into caches of the operator's layout.

    Returns: keys and values X [n, G, C, D]; k1 and k2 X [n, G, their windows among C, D], of one window at least. Rows
    that no step has written hold anything.
    """
    heads = torch.arange(pool.keys_values.shape[2], device=slots.device)
    pages = (slots * pool.page_scale)[:, None, :]
    keys, values = (pool.keys_values[:, each][pages, heads[None, :, None]].flatten(2, 3) for each in (0, 1))
    compressed = (_compressed(pool, slots, kind, layout.page_tokens, heads) for kind in (layout.k1, layout.k2))
    return (keys, values, *compressed)


def _compressed(pool: SparsePool, slots: Tensor, kind: WindowRows, page_tokens: int, heads: Tensor) -> Tensor:
    count = kind.count(slots.shape[1] * page_tokens)
    if not count:
        return pool.compressed.new_zeros(len(slots), len(heads), 1, pool.compressed.shape[-1])
    page, row = kind.place(torch.arange(count, device=slots.device), page_tokens)
    return pool.compressed[slots[:, None, page], row[None, None, :], heads[None, :, None]]


def scatter(
    pool: SparsePool, slots: Tensor, positions: Tensor, windows: Sequence[NewWindows], cache: Cache, page_tokens: int
) -> None:
    """Write what a step added to gathered caches back to the pages.

    Args: `positions` int64 [n, T] of the step's tokens; `windows`, the new k1 and k2.
    """
    request = torch.arange(len(slots), device=slots.device)[:, None]
    pages = slots[request, positions // page_tokens] * pool.page_scale
    for each, rows in enumerate(cache[:2]):
        pool.keys_values[:, each][pages, :, positions % page_tokens] = rows[request, :, positions]
    for new, rows in zip(windows, cache[2:], strict=True):
        pool.compressed[new.slot, new.row] = rows[new.request, :, new.window]
