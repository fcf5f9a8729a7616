"""A data loader that gives Polygraphy the inputs of one step of a bundle's model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from polygraphy.datatype import DataType

from ...bundle.reader import Bundle
from ...errors import RequestError
from ...model.signature import BATCH, CAPACITY, MAX_LOGIT_ROWS, PAST, PRESENT, ROWS, TOKENS, cache_sizes
from ...model.token_inputs import Arrays, token_inputs
from ...specs import CpuMath
from ...verification.bundle_weights import BundleWeights
from .failures import told_by_polygraphy
from .session import SessionFromSalaOnnx


def step_weights(bundle: Bundle, tokens: int, past: int) -> BundleWeights:
    """The weights that an engine takes in a step of so many tokens behind others.

    A bundle without an engine gives none, and sets no limit to tokens.

    Raises: RequestError if they do not fit its caches; UnsupportedError if the bundle has no weights.
    """
    if tokens < 1 or past < 0:
        raise RequestError(f"tokens {tokens}, past {past}: expected at least 1 and 0")
    engine = bundle.manifest.engine
    if engine is None:
        return BundleWeights(bundle, ())
    most = engine.profiles["prefill"]
    for name, value, limit in (
        ("tokens", tokens, most[TOKENS].max),
        ("tokens and past together", tokens + past, most[CAPACITY].max),
    ):
        if value > limit:
            raise RequestError(f"{name}: {value}, but {bundle.directory} takes at most {limit}")
    return BundleWeights(bundle, engine.weights)


class StepDataLoader:
    """Inputs of one step: random token ids, and the caches that the tokens before them left.

    It is one iteration. Polygraphy states names and types in `input_metadata` before it asks: inputs come in these
    types, caches in bfloat16 as torch tensors. An engine gets the weights that it takes as inputs. An input that no
    step has, such as the residual stream where a graph was cut, gets normally distributed numbers.
    """

    def __init__(self, bundle: str, *, tokens: int = 16, past: int = 0, seed: int = 0) -> None:
        """Args:
        tokens: of the step. Up to 256 of the last ones get logits.
        past: tokens that ran before. They run in the exact graph for the CPU, in one piece, when inputs are asked for.

        Raises: PolygraphyException if `bundle` is none, or the tokens do not fit its engine's caches.
        """
        with told_by_polygraphy():
            self._bundle = Bundle.open(Path(bundle))
            self._engine_weights = step_weights(self._bundle, tokens, past)
        self.tokens, self.past, self.seed = tokens, past, seed
        self.input_metadata: Mapping[str, Any] | None = None
        self._values: Arrays | None = None

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield self[0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index != 0:
            raise IndexError(index)
        if self._values is None:
            with told_by_polygraphy():
                self._values = self._step()
        if self.input_metadata is None:
            return dict(self._values)
        return {name: self._typed(name, *about) for name, about in self.input_metadata.items()}

    def _sizes(self) -> dict[str, int]:
        """Values of the symbolic dimensions. The caches have room for what the engine asks for at least."""
        manifest = self._bundle.manifest
        least = manifest.engine.profiles["prefill"][CAPACITY].min if manifest.engine else 1
        capacity = max(self.past + self.tokens, least)
        rows = min(self.tokens, MAX_LOGIT_ROWS)
        return {BATCH: 1, TOKENS: self.tokens, ROWS: rows, **cache_sizes(manifest.model.config, capacity)}

    def _step(self) -> Arrays:
        """Every input of a step, caches in fp32."""
        manifest = self._bundle.manifest
        sizes, inv_freq = self._sizes(), manifest.model.inv_freq
        generator = np.random.default_rng(self.seed)
        ids = generator.integers(0, manifest.model.config.vocab_size, (1, self.past + self.tokens), np.int64)
        graph = manifest.graph.cpu.steps()[CpuMath.EXACT]
        caches: Arrays = {
            spec.name: np.zeros(spec.bound(sizes), np.float32) for spec in graph.inputs if spec.name.startswith(PAST)
        }
        if self.past:
            session = SessionFromSalaOnnx(str(self._bundle.directory / graph.file))()
            outputs = [value.name for value in session.get_outputs() if value.name.startswith(PRESENT)]
            found = session.run(outputs, {**token_inputs(ids[:, : self.past], 0, 1, inv_freq), **caches})
            caches = {PAST + name.removeprefix(PRESENT): value for name, value in zip(outputs, found, strict=True)}
        return {**token_inputs(ids[:, self.past :], self.past, sizes[ROWS], inv_freq), **caches}

    def _typed(self, name: str, dtype: Any, shape: Any) -> Any:
        if name in self._engine_weights.inputs:
            with told_by_polygraphy():
                return self._engine_weights.tensor(name)
        values = self._values or {}
        array = values[name] if name in values else self._random(shape)
        kind = DataType.from_dtype(dtype)
        if kind == DataType.BFLOAT16:
            return torch.from_numpy(array).to(torch.bfloat16)
        return array.astype(DataType.to_dtype(kind, "numpy"), copy=False)

    def _random(self, shape: Any) -> NDArray[np.float64]:
        """Numbers for an input that no step has: fp64, of `shape` with its symbolic dimensions bound."""
        sizes = self._sizes()
        extents = [sizes.get(extent, 1) if isinstance(extent, str) else max(extent, 1) for extent in shape]
        return np.random.default_rng(self.seed).standard_normal(extents)
