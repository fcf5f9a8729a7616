"""Quantises one decoder layer: records the inputs of its products, and computes their quantised weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from ..checkpoint.config import SalaConfig
from ..checkpoint.quantization import SCHEMES
from ..errors import RequestError
from ..numerics.weights import (
    int4_scale,
    largest_magnitude,
    nvfp4_global_scale,
    per_tensor_scale,
    quantize_int4,
    quantize_nvfp4,
    quantize_per_tensor,
)
from ..specs import Precision
from .gptq import gptq, inverse_factor
from .ranges import input_scale
from .sites import Site, fold, layer_sites
from .smoothing import awq_scale, nvfp4_scale, smoothquant_scale

_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Parts of a group's largest magnitude that int4 tries as its range."""


_SMOOTHING = {
    Precision.INT8: smoothquant_scale,
    Precision.INT4: awq_scale,
    Precision.NVFP4: nvfp4_scale,
}


class Algorithm(StrEnum):
    """Algorithms that round weights."""

    RTN = "rtn"
    """Rounding to nearest."""
    SMOOTHQUANT = "smoothquant"
    """For int8 and NVFP4: the ranges of activations are evened out first."""
    AWQ = "awq"
    """For int4: important channels are enlarged first, and scales of groups are chosen by their error."""
    GPTQ = "gptq"
    """For int4: as AWQ, and the columns that follow make up for each rounding error."""


ALGORITHMS: Mapping[Precision, tuple[Algorithm, ...]] = {
    Precision.FP8: (Algorithm.RTN,),
    Precision.MXFP8: (Algorithm.RTN,),
    Precision.INT8: (Algorithm.SMOOTHQUANT, Algorithm.RTN),
    Precision.INT4: (Algorithm.AWQ, Algorithm.GPTQ, Algorithm.RTN),
    Precision.NVFP4: (Algorithm.SMOOTHQUANT, Algorithm.RTN),
}
"""Algorithms of each scheme, the default first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationRecipe:
    """The choices by which layers are quantised."""

    precision: Precision
    algorithm: Algorithm
    include_gates: bool
    """Quantise `z_proj` and `o_gate` too."""

    def __post_init__(self) -> None:
        known = ALGORITHMS[self.precision]
        if self.algorithm not in known:
            raise RequestError(
                f"--algorithm {self.algorithm}: {self.precision} is quantised by {' or '.join(known)}; leave it out "
                f"for {known[0]}"
            )

    @property
    def needs_samples(self) -> bool:
        """True if the result depends on text that runs through the model. MXFP8 takes its scales from the weights, and
        those of activations at run time."""
        return self.precision is not Precision.MXFP8

    @classmethod
    def from_options(
        cls, precision: str, *, algorithm: str | None = None, include_gates: bool | None = None
    ) -> QuantizationRecipe:
        """Make a recipe from command-line options. What is None becomes the best algorithm of the precision, and its
        default choice of gates."""
        known = [each for each in ALGORITHMS if each == precision]
        if not known:
            raise RequestError(f"--precision {precision}: expected one of {', '.join(ALGORITHMS)}")
        names = [each.value for each in Algorithm]
        if algorithm is not None and algorithm not in names:
            raise RequestError(f"--algorithm {algorithm}: expected one of {', '.join(names)}")
        chosen = ALGORITHMS[known[0]][0] if algorithm is None else Algorithm(algorithm)
        gates = SCHEMES[known[0]].with_gates if include_gates is None else include_gates
        return cls(precision=known[0], algorithm=chosen, include_gates=gates)


class SiteInputs:
    """Inputs of a layer's products while samples run through it."""

    def __init__(self, sites: Sequence[Site], rows: int) -> None:
        self._sites = sites
        self._rows = rows
        self._seen: dict[str, Tensor] = {}
        self._filled: dict[str, int] = {}

    @contextmanager
    def record(self, layer: nn.Module) -> Iterator[None]:
        """Keep the input of the first projection of each site."""
        handles = [
            layer.get_submodule(site.projections[0]).register_forward_pre_hook(self._hook(site.projections[0]))
            for site in self._sites
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def take(self, site: Site) -> Tensor:
        """All inputs of `site`, fp32 [N, in]; given out once, so that they go when they have served."""
        return self._seen.pop(site.projections[0])

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def keep(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].flatten(0, -2)
            if name not in self._seen:
                self._seen[name] = torch.empty(self._rows, x.shape[-1])
                self._filled[name] = 0
            start = self._filled[name]
            self._seen[name][start : start + len(x)] = x
            self._filled[name] = start + len(x)

        return keep


def quantize_layer(
    config: SalaConfig, layer: int, weights: dict[str, Tensor], inputs: SiteInputs, recipe: QuantizationRecipe
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Quantise the projections of a layer.

    Args: `weights` fp32 by module within the layer; changed in place where scales are folded into them.
    Returns: tensors by module, of the quantised projections; the exponents of the scales by site, where there are any.
    """
    found: dict[str, dict[str, Tensor]] = {}
    exponents: dict[str, float] = {}
    sites = layer_sites(config, layer, include_gates=recipe.include_gates)
    kept_inputs = []
    # All scales before all rounding: a site's scales change the weights of others.
    for site in sites:
        x = inputs.take(site)
        if recipe.algorithm is not Algorithm.RTN:
            smoothing = _SMOOTHING[recipe.precision](site, x, weights, config.head_dim)
            fold(weights, site, smoothing.scale, config.head_dim)
            x.div_(smoothing.scale)
            exponents[site.projections[0]] = smoothing.exponent
        kept_inputs.append(x)
    while kept_inputs:
        x = kept_inputs.pop()
        site = sites[len(kept_inputs)]
        found |= _quantize_site(site, x, {name: weights[name] for name in site.projections}, recipe)
    return found, exponents


def _quantize_site(
    site: Site, x: Tensor, weights: Mapping[str, Tensor], recipe: QuantizationRecipe
) -> dict[str, dict[str, Tensor]]:
    shared = input_scale(x, recipe.precision, calibrated=recipe.algorithm is not Algorithm.RTN)
    match recipe.precision:
        case Precision.FP8 | Precision.INT8:
            # One scale for all of a packed product is what docs/calibration.md measures.
            scale = per_tensor_scale(_largest(weights), recipe.precision)
            found = {name: quantize_per_tensor(weight, scale, recipe.precision) for name, weight in weights.items()}
        case Precision.NVFP4:
            scale = nvfp4_global_scale(_largest(weights))
            found = {name: quantize_nvfp4(weight, scale) for name, weight in weights.items()}
        case Precision.INT4:
            found = _quantize_int4(x, weights, recipe.algorithm)
    return {name: {**tensors, **shared} for name, tensors in found.items()}


def _largest(weights: Mapping[str, Tensor]) -> float:
    return max(largest_magnitude(weight) for weight in weights.values())


def _quantize_int4(x: Tensor, weights: Mapping[str, Tensor], algorithm: Algorithm) -> dict[str, dict[str, Tensor]]:
    if algorithm is Algorithm.RTN:
        even = torch.ones(x.shape[-1])
        return {name: quantize_int4(weight, int4_scale(weight, even)) for name, weight in weights.items()}
    importance = x.square().sum(0)
    if algorithm is Algorithm.AWQ:
        return {
            name: quantize_int4(weight, int4_scale(weight, importance, _SHRINKS)) for name, weight in weights.items()
        }
    factor = inverse_factor(x.t() @ x)
    return {name: gptq(weight, factor, importance, _SHRINKS) for name, weight in weights.items()}
