"""How many blocks of a token bounds leave to be scored exactly, by kind of keys; and that the same blocks are chosen.

    python -m benchmarks.block_bounds [--context 1M] [--tiles 4]
    TRITON_INTERPRET=1 python -m benchmarks.block_bounds       # where there is no GPU

Selection runs on the last tokens of a context whose compressed keys are made up, at the published sizes for one key
head: once with bounds, and once with exact scores alone. A tile of eight tokens falls back to the exact pass if one of
them has more survivors than there is room for. Keys: `gaussian`, whose logits have a standard deviation of 1;
`sharp`, of 3; `topics`, 16 neighbours of which have most in common, and all of them a mean; `outliers`, of three
channels that are 12 times as large, and queries that make up for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.tables import markdown
from sala_export.errors import RequestError, SalaError
from sala_export.ops.common.launch import KernelSet, Launch
from sala_export.ops.common.triton_interpreter import is_interpreted
from sala_export.ops.common.triton_run import bind_kernels
from sala_export.ops.infllmv2_attention import tiles
from sala_export.ops.infllmv2_attention.schema import CONTRACT, PUBLISHED
from sala_export.ops.infllmv2_attention.select_kernel import infllmv2_select_kernel
from sala_export.ops.infllmv2_attention.triton_kernel import KERNELS
from sala_export.specs import format_tokens, parse_tokens

ATTRIBUTES: Mapping[str, int | float] = {**PUBLISHED, "num_heads": 16, "num_kv_heads": 1}
KINDS = ("gaussian", "sharp", "topics", "outliers")
SM = 86
"""Tiles and instructions that any of the GPUs runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survivors:
    """What came of one kind of keys."""

    kind: str
    blocks: int
    """Candidates of a token."""
    counts: tuple[int, ...]
    """Of each tile, the most survivors of a token."""
    differing: int
    """Tokens that chose other blocks than by exact scores alone."""

    @property
    def fallen_back(self) -> float:
        """Share of the tiles that took the exact pass too."""
        return sum(count > tiles.CONSTANTS["SURVIVOR_SLOTS"] for count in self.counts) / len(self.counts)


def bounded_from(blocks: int) -> KernelSet:
    """The kernels, whose tiles take bounds from so many candidates on in chunks of any length; 0 for never."""

    def changed(launch: Launch) -> Launch:
        if "BOUNDED_BLOCKS" not in launch.tile_constants:
            return launch
        constants = {
            sm: replace(tile, constexprs={**tile.constexprs, "BOUNDED_BLOCKS": blocks})
            for sm, tile in launch.tiles.items()
        }
        return replace(launch, tiles=constants)

    prefill = tuple(map(changed, KERNELS.prefill))
    return replace(KERNELS, prefill=prefill, constants={**KERNELS.constants, "BOUNDED_TOKENS": 1})


def made_up(kind: str, keys: int, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Queries [tokens, 16, D] and compressed keys [keys, D] in float32."""
    dim = int(ATTRIBUTES["head_dim"])
    k1 = torch.randn(keys, dim, generator=generator)
    q = torch.randn(tokens, int(ATTRIBUTES["num_heads"]), dim, generator=generator)
    if kind != "gaussian":
        q *= 3
    if kind == "topics":
        topics = torch.randn(-(-keys // 16), dim, generator=generator).repeat_interleave(16, dim=0)[:keys]
        k1 = 0.8 * topics + 0.6 * k1 + torch.randn(dim, generator=generator)
    elif kind == "outliers":
        k1[:, :3] *= 12
        k1 += 2 * torch.randn(dim, generator=generator)
        q[:, :, :3] /= 12
    return q, k1


def made_up_call(kind: str, context: int, tokens: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Inputs of a call for the last `tokens` of a context, whose keys and values are zero: only k1 and k2 are not."""
    size, stride, dim = (int(ATTRIBUTES[name]) for name in ("kernel_size", "kernel_stride", "head_dim"))
    keys, pairs = ((context - f * size) // (f * stride) + 1 for f in (1, 4))
    q, k1 = made_up(kind, keys, tokens, torch.Generator().manual_seed(0))
    # A k2 window is four k1 windows that do not overlap.
    k2 = torch.stack([k1[2 * i :: 4][:pairs] for i in range(4)]).mean(dim=0)
    qkvg = torch.zeros(1, tokens, 2 * (q.shape[1] + 1) * dim, dtype=dtype)
    qkvg[0, :, : q.shape[1] * dim] = q.reshape(tokens, -1)
    lengths = [torch.tensor([n], dtype=torch.int32, device=device) for n in (context - tokens, context)]
    caches = [torch.zeros(1, 1, context, dim, dtype=dtype, device=device) for _ in range(2)]
    compressed = [x[None, None].to(device, dtype).contiguous() for x in (k1, k2)]
    return [qkvg.to(device), *lengths, *caches, *compressed]


def survivors_of(kind: str, context: int, count: int, device: torch.device) -> Survivors:
    """The last `count` tiles of a context of one kind of keys."""
    inputs = made_up_call(kind, context, count * tiles.SELECT_TOKENS, torch.bfloat16, device)
    (chosen, counts), (exact, _) = (_selected(kernels, inputs) for kernels in (bounded_from(1), bounded_from(0)))
    block = int(ATTRIBUTES["block_size"])
    return Survivors(
        kind=kind,
        blocks=(context - 1) // block - int(ATTRIBUTES["window_size"]) // block - int(ATTRIBUTES["init_blocks"]),
        counts=tuple(counts.flatten().tolist()),
        differing=int((chosen != exact).any(dim=-1).sum()),
    )


def _selected(kernels: KernelSet, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    call = bind_kernels(CONTRACT, kernels, inputs, ATTRIBUTES, sm=SM)
    for launch in call.launches:
        if launch.launch.name in ("infllmv2_quantize_keys_kernel", "infllmv2_select_kernel"):
            launch.run()
    return call.buffers["chosen"], call.buffers["survivor_count"]


def page(found: Sequence[Survivors]) -> str:
    """The table as markdown."""
    header = ("keys", "candidates", "survivors, median of tiles", "most", "tiles that fall back", "tokens that differ")
    return markdown(header, list(_lines(found)))


def _lines(found: Sequence[Survivors]) -> Iterator[tuple[str, ...]]:
    for one in found:
        counts = sorted(one.counts)
        median, most = counts[len(counts) // 2], counts[-1]
        yield one.kind, f"{one.blocks:,}", str(median), str(most), f"{one.fallen_back:.0%}", str(one.differing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 if other blocks were chosen, or 2 for options that cannot be served."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.block_bounds", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--context", type=parse_tokens, action="append", help="tokens of the context (default: 256K and 1M)"
    )
    parser.add_argument("--tiles", type=int, default=4, help="tiles of eight tokens to select for (default: 4)")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.tiles < 1:
            raise RequestError(f"--tiles {options.tiles}: at least 1")
        if not is_interpreted(infllmv2_select_kernel) and not torch.cuda.is_available():
            raise RequestError("there is no GPU: set TRITON_INTERPRET=1 to run the kernels on the CPU")
        device = torch.device("cpu" if is_interpreted(infllmv2_select_kernel) else "cuda")
        found = []
        for context in options.context or (256 << 10, 1 << 20):
            for kind in KINDS:
                found.append(survivors_of(kind, context, options.tiles, device))
                print(f"{format_tokens(context)}, {kind}: {found[-1].counts}", file=sys.stderr, flush=True)
    except SalaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page(found))
    return int(any(one.differing for one in found))


if __name__ == "__main__":
    sys.exit(main())
