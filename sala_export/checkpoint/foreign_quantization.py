"""How ModelOpt, GPTQ and AWQ say that a checkpoint is quantised, and how they store its tensors.

| tool | says it in | tensors of a module with weight [out, in] |
|---|---|---|
| ModelOpt FP8 | `hf_quant_config.json` or config.json | `weight`, `weight_scale`, `input_scale` |
| ModelOpt MXFP8 | the same | `weight`, `weight_scale` U8 [out, in / 32] |
| ModelOpt NVFP4 | the same | `weight` U8 [out, in / 2], `weight_scale`, `weight_scale_2`, `input_scale` |
| GPTQ | config.json or `quantize_config.json` | `qweight` [in / 8, out], `qzeros`, `scales`, `g_idx` |
| AWQ | config.json or `quant_config.json` | `qweight` [in, out / 8], `qzeros`, `scales` |

Errors begin with the path of the field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from reprlib import repr as shown
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..specs import Precision
from .compressed_tensors_config import ORIGINAL, cache_notes, module_names
from .ignored_modules import PATTERN, require_quick
from .quantization import SCHEMES, Packing, Quantization, TensorLayout

_MODELOPT_SCHEMES = {
    "FP8": SCHEMES[Precision.FP8],
    "FP8_PER_CHANNEL_PER_TOKEN": SCHEMES[Precision.FP8].with_scales_by_token(),
    "MXFP8": SCHEMES[Precision.MXFP8],
    "NVFP4": SCHEMES[Precision.NVFP4],
}
MODELOPT = TensorLayout(
    tool="ModelOpt",
    marker="weight_scale",
    names={
        "weight_packed": "weight",
        "weight_global_scale": "weight_scale_2",
        "input_global_scale": "input_scale",
    },
    scales_divide=False,
)
_GPTQ_ZEROS = {"gptq": 7, "gptq_v2": 8}
"""What is stored for a zero point of 8, by the format of the checkpoint."""


def read_modelopt(fields: Mapping[str, Any]) -> Quantization:
    """Read `hf_quant_config.json`, or the object in config.json.

    Raises: ConfigError for malformed fields, UnsupportedError for an algorithm that is not served.
    """
    inner = fields.get("quantization")
    fields, prefix = (inner, ".quantization.") if isinstance(inner, dict) else (fields, ".")
    algorithm = fields.get("quant_algo")
    if not isinstance(algorithm, str) or algorithm not in _MODELOPT_SCHEMES:
        raise UnsupportedError(
            f"{prefix}quant_algo is {shown(algorithm)}: taken are {', '.join(_MODELOPT_SCHEMES)}; {ORIGINAL}"
        )
    scheme = _MODELOPT_SCHEMES[algorithm]
    if scheme.group:
        _require(fields, prefix, "group_size", (None, scheme.group))
    name = "exclude_modules" if "exclude_modules" in fields else "ignore"
    ignore = tuple(map(_expression, module_names(fields, prefix, name)))
    require_quick(ignore, f"{prefix}{name}")
    cache = "kv_cache_quant_algo" if "kv_cache_quant_algo" in fields else "kv_cache_scheme"
    return Quantization(scheme=scheme, ignore=ignore, layout=MODELOPT, notes=cache_notes(cache, fields.get(cache)))


def read_gptq(fields: Mapping[str, Any]) -> Quantization:
    """Read the object in config.json, or `quantize_config.json`. Raises: UnsupportedError for what is not served."""
    _require(fields, ".", "bits", (4,))
    _require_groups(fields, "group_size")
    _require(fields, ".", "sym", (True, None))
    _require(fields, ".", "desc_act", (False, None))
    _require(fields, ".", "is_marlin_format", (False, None))
    _require(fields, ".", "pack_dtype", ("int32", None))
    _require(fields, ".", "checkpoint_format", (*_GPTQ_ZEROS, None))
    if fields.get("dynamic"):
        raise UnsupportedError(f".dynamic is given: all projections are quantised alike, {ORIGINAL}")
    zero = _GPTQ_ZEROS[fields.get("checkpoint_format") or "gptq"]
    sources = ("qweight", "scales", "qzeros", "g_idx")
    layout = TensorLayout(tool="GPTQ", marker="qweight", sources=sources, packing=Packing.ROWS, zero=zero)
    return Quantization(scheme=SCHEMES[Precision.INT4], layout=layout)


def read_awq(fields: Mapping[str, Any]) -> Quantization:
    """Read the object in config.json, or `quant_config.json`. Raises: UnsupportedError for what is not served."""
    _require(fields, ".", "w_bit" if "w_bit" in fields else "bits", (4,))
    _require_groups(fields, "q_group_size" if "q_group_size" in fields else "group_size")
    version = fields.get("version")
    if version is not None and str(version).lower() != "gemm":
        raise UnsupportedError(f".version is {shown(version)}: only 'gemm' is taken; {ORIGINAL}")
    layout = TensorLayout(
        tool="AWQ", marker="qweight", sources=("qweight", "scales", "qzeros"), packing=Packing.COLUMNS, zero=8
    )
    return Quantization(scheme=SCHEMES[Precision.INT4], layout=layout)


def _require(fields: Mapping[str, Any], prefix: str, name: str, accepted: tuple[object, ...]) -> None:
    value = fields.get(name)
    if not any(type(value) is type(each) and value == each for each in accepted):
        wanted = " or ".join(repr(each) for each in accepted if each is not None)
        raise UnsupportedError(f"{prefix}{name} is {shown(value)}: only {wanted} is taken; {ORIGINAL}")


def _require_groups(fields: Mapping[str, Any], name: str) -> None:
    """A scale for each output, or for groups that are made of the scheme's."""
    size, group = fields.get(name), SCHEMES[Precision.INT4].group or 1
    if type(size) is not int:
        raise ConfigError(f".{name} is {shown(size)}, expected an integer")
    if size != -1 and (size <= 0 or size % group):
        raise UnsupportedError(f".{name} is {size}: only multiples of {group}, or -1, are taken; {ORIGINAL}")


def _expression(entry: str) -> str:
    """A wildcard of ModelOpt, which names a module or all below one, as an expression of compressed-tensors."""
    pattern = re.escape(entry).replace(r"\*", ".*").replace(r"\?", ".")
    return rf"{PATTERN}{pattern}(\.|$)"
