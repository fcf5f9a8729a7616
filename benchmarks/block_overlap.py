"""How many distinct blocks neighbouring tokens of one key head choose together, by sparse layer.

    python -m benchmarks.block_overlap [--model random|passkey|both] [--layers 10] [--context 128K]
        [--figures figures.jsonl] [--step X]

A kernel that attends for several neighbouring tokens at once reads the union of their chosen blocks: the smaller it is,
the less it reads. `random` is the first layers of the published size with random weights over random tokens, `passkey`
the constructed model of tests/support/passkey.py over its prompt.

The blocks are read where the selection kernel left them, after each prefill step of every sparse layer. Only contested
tokens count, those with more candidates than they may choose. Groups of 2, 4, 8 and 16 tokens begin at multiples of
their size; a group counts if all its tokens do, for the quarter of the context that its first token lies in.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.figures import FigureWriter, add_figure_options
from benchmarks.gpu_machine import require_gpu_or_name
from benchmarks.run_header import start_figures
from sala_export.checkpoint.config import SalaConfig, SparseConfig
from sala_export.errors import RequestError, SalaError
from sala_export.model.layers import Cache, DecoderLayer
from sala_export.model_source import ModelSource
from sala_export.specs import Precision, format_tokens, parse_tokens
from sala_export.torch_runtime.kernel_operators import KernelOperators
from sala_export.torch_runtime.load import LoadableModel, assemble
from sala_export.torch_runtime.random_model import RandomModel

# tests/ is no package.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.passkey import needle_positions, passkey_config, passkey_prompt, write_passkey_checkpoint

NEIGHBOURS = (2, 4, 8, 16)
"""Sizes of the groups of tokens."""
PARTS = 4
"""Of the context, equally long."""
MODELS = ("random", "passkey")


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """Means over a part of the context in one layer, over its key heads too."""

    layer: int
    part: str
    """`1/4` is the first quarter of the context; `whole` all of it."""
    neighbours: int
    groups: int
    """Groups of so many neighbours, at least one."""
    union_blocks: float
    """Distinct blocks that a group chooses."""
    chosen_blocks: float
    """Blocks that a token chooses."""
    left_share: float
    """Of a token's blocks, how many its left neighbour chose too."""


def distinct_blocks(chosen: Tensor, neighbours: int) -> Tensor:
    """Distinct blocks of groups of rows, int64 [..., T // neighbours]; what is left of the last rows is not counted.

    Args: `chosen` int32 [..., T, S], -1 where a row has none.
    """
    groups, slots = chosen.shape[-2] // neighbours, chosen.shape[-1]
    rows = chosen[..., : groups * neighbours, :].reshape(*chosen.shape[:-2], groups, neighbours * slots)
    ordered = rows.sort(dim=-1).values
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    return (is_new & (ordered >= 0)).sum(-1)


class LayerCounts:
    """Sums over the steps of one layer, on the device; nothing waits for it."""

    def __init__(self, sparse: SparseConfig, context: int, device: torch.device) -> None:
        self._sparse = sparse
        self._context = context
        self._groups = torch.zeros(len(NEIGHBOURS), PARTS, dtype=torch.int64, device=device)
        self._union = torch.zeros_like(self._groups)
        self._tokens = torch.zeros(PARTS, dtype=torch.int64, device=device)
        self._chosen = torch.zeros_like(self._tokens)
        self._pairs = torch.zeros(PARTS, dtype=torch.int64, device=device)
        self._shares = torch.zeros(PARTS, dtype=torch.float64, device=device)

    def add(self, chosen: Tensor, past_length: Tensor) -> None:
        """Count a step. Args: `chosen` int32 [B, G, T, S]; `past_length` int32 [B]."""
        for row, past in zip(chosen, past_length, strict=True):
            self._add_row(row, past)

    def _add_row(self, chosen: Tensor, past: Tensor) -> None:
        heads, tokens, slots = chosen.shape
        position = past.to(torch.int64) + torch.arange(tokens, device=chosen.device)
        part = (position * PARTS // self._context).clamp(max=PARTS - 1)
        contested = self._candidates(position) > slots
        counts = (chosen >= 0).sum(-1)
        self._tokens.index_add_(0, part, heads * contested)
        self._chosen.index_add_(0, part, contested * counts.sum(0))
        for index, neighbours in enumerate(NEIGHBOURS):
            groups = tokens // neighbours
            whole = contested[: groups * neighbours].view(groups, neighbours).all(-1)
            first = part[: groups * neighbours : neighbours]
            self._groups[index].index_add_(0, first, heads * whole)
            self._union[index].index_add_(0, first, whole * distinct_blocks(chosen, neighbours).sum(0))
        if tokens > 1:
            self._add_pairs(chosen, counts, contested[1:] & contested[:-1], part[1:])

    def _add_pairs(self, chosen: Tensor, counts: Tensor, is_pair: Tensor, part: Tensor) -> None:
        """Args: `is_pair` bool [T - 1], whether a row and its left neighbour count; `part` of the row."""
        both = torch.cat((chosen[:, :-1], chosen[:, 1:]), dim=-1)
        common = counts[:, :-1] + counts[:, 1:] - distinct_blocks(both, 1)
        shares = common.to(torch.float64) / counts[:, 1:].clamp(min=1)
        self._pairs.index_add_(0, part, chosen.shape[0] * is_pair)
        self._shares.index_add_(0, part, is_pair * shares.sum(0))

    def _candidates(self, position: Tensor) -> Tensor:
        """Blocks that a token may choose among: those between the initial and the local ones."""
        sparse = self._sparse
        return position // sparse.block_size - sparse.window_size // sparse.block_size - sparse.init_blocks

    def overlaps(self, layer: int) -> list[Overlap]:
        """Everything counted, by part and size of group, the whole context last. Waits for the device."""
        parts = [(f"{part + 1}/{PARTS}", slice(part, part + 1)) for part in range(PARTS)]
        return [
            overlap
            for (part, of_part), (index, neighbours) in itertools.product(
                (*parts, ("whole", slice(None))), enumerate(NEIGHBOURS)
            )
            if (overlap := self._overlap(layer, part, of_part, index, neighbours)) is not None
        ]

    def _overlap(self, layer: int, part: str, of_part: slice, index: int, neighbours: int) -> Overlap | None:
        """None where no group was counted."""
        groups, union = (int(x[index, of_part].sum()) for x in (self._groups, self._union))
        if groups == 0:
            return None
        tokens, chosen, pairs = (int(x[of_part].sum()) for x in (self._tokens, self._chosen, self._pairs))
        return Overlap(
            layer=layer,
            part=part,
            neighbours=neighbours,
            groups=groups,
            union_blocks=union / groups,
            chosen_blocks=chosen / tokens,
            left_share=float(self._shares[of_part].sum()) / pairs,
        )


class CountingOperators(KernelOperators):
    """The kernels, with a look at the chosen blocks after every prefill step of a sparse layer."""

    def __init__(self, config: SalaConfig, precision: Precision, device: torch.device, context: int) -> None:
        """Args: `context`, tokens of the prompt."""
        super().__init__(config, precision, device)
        self._sparse = config.sparse_config
        self._context = context
        self._order: dict[DecoderLayer, int] = {}
        self.counts: dict[int, LayerCounts] = {}
        """By layer."""

    def bound_mixer(self, layer: DecoderLayer, cache: Cache, buffers: Mapping[str, Tensor]) -> Callable[[], None]:
        run = super().bound_mixer(layer, cache, buffers)
        # A step binds all layers in their order.
        index = self._order.setdefault(layer, len(self._order))
        chosen = buffers.get("chosen")
        # Steps of one token are captured, and have no neighbours.
        if chosen is None or chosen.shape[2] == 1:
            return run
        counts = self.counts.setdefault(index, LayerCounts(self._sparse, self._context, chosen.device))

        def counted() -> None:
            run()
            counts.add(chosen, buffers["past_length"])

        return counted


def measure(
    source: LoadableModel,
    prompt: NDArray[np.int32],
    precision: Precision,
    device: torch.device,
    chunk_tokens: int | None,
) -> list[Overlap]:
    """Prefill `prompt` and count in every sparse layer; on the CPU only where Triton interprets.

    Raises: RequestError if no token of the prompt is contested, else as `load_torch`.
    """
    require_contested(source.config, len(prompt))
    operators = CountingOperators(source.config, precision, device, len(prompt))
    model = assemble(source, precision, device, operators)
    model.session(max_context=len(prompt), chunk_tokens=chunk_tokens).prefill(prompt)
    return [overlap for layer, counts in sorted(operators.counts.items()) for overlap in counts.overlaps(layer)]


def require_contested(config: SalaConfig, context: int) -> None:
    """Raises: RequestError if no token of a context has to choose."""
    sparse = config.sparse_config
    least = max(sparse.dense_len, (sparse.topk + sparse.window_size // sparse.block_size) * sparse.block_size + 1)
    if context < least:
        raise RequestError(f"--context {context}: no token has to choose among blocks before {least} tokens")


def table(overlaps: Sequence[Overlap]) -> str:
    """A row for each layer and part."""
    lines = [f"{'layer':>5} {'part':>5} {'chosen':>7} {'left':>5}" + "".join(f"{f'by {n}':>8}" for n in NEIGHBOURS)]
    for (layer, part), found in itertools.groupby(overlaps, lambda overlap: (overlap.layer, overlap.part)):
        of_part = list(found)
        start = f"{layer:>5} {part:>5} {of_part[0].chosen_blocks:>7.1f} {of_part[0].left_share:>5.0%}"
        lines.append(start + "".join(f"{overlap.union_blocks:>8.1f}" for overlap in of_part))
    return "\n".join(lines)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", choices=(*MODELS, "both"), default="random", help="model to look at (default: random)"
    )
    parser.add_argument(
        "--layers", type=int, default=10, help="layers of the random model, of which 0 and 9 are sparse (default: 10)"
    )
    parser.add_argument("--context", default="128K", help="length of the prompt in tokens (default: 128K)")
    parser.add_argument("--chunk-tokens", type=int, help="tokens per prefill step (default: the engine's)")
    add_figure_options(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, figures: FigureWriter) -> None:
    """Raises: SalaError."""
    require_gpu_or_name(None)
    context, device = parse_tokens(options.context), torch.device("cuda", torch.cuda.current_device())
    for model in MODELS if options.model == "both" else (options.model,):
        with tempfile.TemporaryDirectory() as folder:
            source, prompt = subject(model, options.layers, context, Path(folder), device)
            overlaps = measure(source, prompt, Precision.BF16, device, options.chunk_tokens)
        for overlap in overlaps:
            figures.write("overlap", model=model, context=context, **asdict(overlap))
        heading = (
            f"{model}, {format_tokens(context)}: blocks that a token chose, how many of them its left neighbour chose"
        )
        sys.stdout.write(f"{heading}\ntoo, and distinct blocks of so many neighbours, by part of the context\n")
        sys.stdout.write(f"{table(overlaps)}\n")


def subject(
    model: str, layers: int, context: int, folder: Path, device: torch.device
) -> tuple[LoadableModel, NDArray[np.int32]]:
    """A model of `MODELS` and its prompt."""
    if model == "passkey":
        checkpoint = write_passkey_checkpoint(folder / "passkey", passkey_config())
        return ModelSource.open(checkpoint), passkey_prompt(context, needle_positions(context))[0]
    source = RandomModel.of_preset("9b", layers, seed=0, precision=Precision.BF16, device=device)
    return source, np.random.default_rng(0).integers(0, source.config.vocab_size, context, dtype=np.int32)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    figures = start_figures(options)
    try:
        run(options, figures)
    except SalaError as error:
        figures.write("problem", where="benchmarks.block_overlap", message=str(error))
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
