"""What HTTP costs: tokens per second of `sala-export serve`, beside the runtime alone.

    python -m benchmarks.serve_cost [--model medium] [--tokens 200] [--rounds 5]

A step of `medium` takes about 10 ms on two cores, as long as one of 9B on an RTX 5090 (predicted). Its weights are
random. `passkey` has steps of half a millisecond: there HTTP takes most of the time. One request, then eight at once,
by the scheduler in this process, and as streams from a server in another. The two take turns, and ratios are of
medians. The clients run on the same cores as the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx2
import torch
from safetensors.torch import save_file

import sala_export
from sala_export.checkpoint.config import SalaConfig
from sala_export.checkpoint.keymap import weights
from sala_export.machine import describe_machine
from sala_export.runtime.model import Model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.checkpoints import tiny_checkpoint
from support.passkey_text import passkey_text_bundle
from support.serve_process import server_process
from support.text_bundles import write_text_bundle

SIZES = (1, 8)
_PROMPT_TOKENS = 8
_LAYERS = 8


def bundle_of(name: str, folder: Path) -> Path:
    """The bundle to serve."""
    return passkey_text_bundle() if name == "passkey" else write_text_bundle(_medium(folder), folder / "model.sala")


def _medium(folder: Path) -> Path:
    """A checkpoint of eight layers with random weights, and the tokenizer of the tiny one."""
    tiny = SalaConfig.from_dict(json.loads((tiny_checkpoint() / "config.json").read_text(encoding="utf-8")))
    mixers = (*tiny.mixer_types, *tiny.mixer_types)[:_LAYERS]
    config = replace(tiny, hidden_size=512, intermediate_size=2048, mixer_types=mixers, residual_depth=_LAYERS)
    directory = Path(shutil.copytree(tiny_checkpoint(), folder / "checkpoint"))
    for old in directory.glob("*.safetensors*"):
        old.unlink()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        weight.name: torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5
        for weight in weights(config)
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return directory


def alone(model: Model, prompts: Sequence[list[int]], tokens: int) -> float:
    """Tokens per second of the runtime."""
    with model.scheduler() as scheduler:
        start = time.perf_counter()
        answers = [
            scheduler.submit_tokens(model.session(), prompt, max_new_tokens=tokens, stop_tokens=[])
            for prompt in prompts
        ]
        count = sum(len(list(answer)) for answer in answers)
        return count / (time.perf_counter() - start)


async def through_http(url: str, prompts: Sequence[list[int]], tokens: int) -> float:
    """Tokens per second of a server, as its clients see them."""

    async def ask(client: httpx2.AsyncClient, prompt: list[int]) -> int:
        request = {"model": "model", "prompt": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True}
        count = 0
        async with client.stream("POST", "/v1/completions", json={**request, "temperature": 0}) as answer:
            answer.raise_for_status()
            async for data in answer.aiter_raw():
                count += data.count(b"data: {")
        # The first and the last chunk bring no token.
        return count

    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
        start = time.perf_counter()
        await asyncio.gather(*(ask(client, prompt) for prompt in prompts))
        return tokens * len(prompts) / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["medium", "passkey"], default="medium", help="the model to serve")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5, help="times that each way is measured")
    options = parser.parse_args(arguments)
    print(f"machine: {describe_machine()}")
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_of(options.model, Path(folder))
        model = sala_export.load(bundle, runtime="onnxruntime")
        with server_process(bundle, "--max-contexts", "0") as (url, _):
            for size in SIZES:
                prompts = [[3 + place] * _PROMPT_TOKENS for place in range(size)]
                rates: dict[str, list[float]] = {"alone": [], "http": []}
                for _ in range(options.rounds + 1):  # the first warms up
                    rates["alone"].append(alone(model, prompts, options.tokens))
                    rates["http"].append(asyncio.run(through_http(url, prompts, options.tokens)))
                medians = {way: statistics.median(of_way[1:]) for way, of_way in rates.items()}
                print(
                    f"{size} at once: {medians['alone']:.1f} tokens/s alone, {medians['http']:.1f} through HTTP, "
                    f"{medians['http'] / medians['alone']:.1%}"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
