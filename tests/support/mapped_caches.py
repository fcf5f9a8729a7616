"""Caches of which only the pages with rows in use can be touched, as a session's memory is: a kernel that reads or
writes anywhere else ends its process.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .triton_interpreter import run_poisoned

_LIBC = ctypes.CDLL(None, use_errno=True)


def mapped(cache: Tensor, rows: int) -> Tensor:
    """A copy of a cache [1, G, capacity, D]; `rows` of each head, and what lies on the same pages, can be touched."""
    size = cache.numel() * cache.element_size()
    pages = mmap.mmap(-1, size)
    copy = torch.frombuffer(pages, dtype=cache.dtype).view(cache.shape)
    copy.copy_(cache)
    head_bytes = size // cache.shape[1]
    used = rows * cache.shape[3] * cache.element_size()
    kept = {page for head in range(cache.shape[1]) for page in _pages(head * head_bytes, head * head_bytes + used)}
    for page in set(_pages(0, size)) - kept:
        if _LIBC.mprotect(ctypes.c_void_p(copy.data_ptr() + page * mmap.PAGESIZE), mmap.PAGESIZE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return copy


def run_on_mapped_rows(
    inputs: Sequence[Tensor], attributes: Mapping[str, int | float], rows: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """`y` of InfLLMv2Attention, and the rows of its caches; of the last four inputs only `rows` can be touched."""
    caches = [mapped(cache, count) for cache, count in zip(inputs[3:], rows, strict=True)]
    result = run_poisoned("infllmv2_attention", [*inputs[:3], *caches], attributes)
    return result["y"].clone(), [cache[:, :, :count].clone() for cache, count in zip(caches, rows, strict=True)]


def _pages(start: int, end: int) -> range:
    return range(start // mmap.PAGESIZE, -(-end // mmap.PAGESIZE))
