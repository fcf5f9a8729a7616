"""Finds what a checkpoint says of its quantisation, in config.json or in a file of its tool beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from reprlib import repr as shown
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..files import Directory, read_json
from .compressed_tensors_config import ORIGINAL, read_compressed_tensors
from .foreign_quantization import read_awq, read_gptq, read_modelopt
from .quantization import QUANT_METHOD, QUANTIZATION_FIELD, Quantization

Reader = Callable[[Mapping[str, Any]], Quantization]

READERS: Mapping[str, Reader] = {
    QUANT_METHOD: read_compressed_tensors,
    "modelopt": read_modelopt,
    "gptq": read_gptq,
    "awq": read_awq,
}
"""Readers of the fields of each tool, by `quant_method`."""
_FILES: Mapping[str, Reader] = {
    "hf_quant_config.json": read_modelopt,
    "quantize_config.json": read_gptq,
    "quant_config.json": read_awq,
}
"""Files of older versions of the tools, which left config.json alone."""
QUANTIZATION_FILES = tuple(_FILES)
_OLDER_FIELD = "compression_config"


def read_quantization(config_fields: Mapping[str, Any], directory: Directory, config_name: str) -> Quantization | None:
    """How the model in a directory is quantised. None if nothing says so.

    Args: `config_fields`, the object in the file `config_name`.
    Raises: ConfigError for malformed fields, UnsupportedError for another method or scheme; both name file and field.
    """
    for field in (QUANTIZATION_FIELD, _OLDER_FIELD):
        fields = config_fields.get(field)
        if fields is not None:
            return _read(f"{directory.path / config_name}: {field}", fields, _by_method)
    for name, reader in _FILES.items():
        if directory.has(name):
            file = directory.open(name, error=ConfigError)
            return _read(f"{file}: ", read_json(file, error=ConfigError), reader)
    return None


def _read(where: str, fields: Any, reader: Reader) -> Quantization:
    if not isinstance(fields, dict):
        raise ConfigError(f"{where.rstrip(': ')} is {shown(fields)}, expected an object")
    try:
        return reader(fields)
    except (ConfigError, UnsupportedError) as error:
        # A file has no name of its own before the dot of a field.
        text = str(error).removeprefix(".") if where.endswith(" ") else str(error)
        raise type(error)(f"{where}{text}") from None


def _by_method(fields: Mapping[str, Any]) -> Quantization:
    method = fields.get("quant_method")
    if not isinstance(method, str) or method not in READERS:
        raise UnsupportedError(f".quant_method is {shown(method)}: taken are {', '.join(READERS)}; {ORIGINAL}")
    return READERS[method](fields)
