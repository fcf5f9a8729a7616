"""The `quantization_config` of compressed-tensors: which of its schemes are served, and what else it may say.

Errors begin with the path of the field below `quantization_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as shown
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..specs import Precision
from .ignored_modules import require_quick
from .quantization import SCHEMES, Quantization, Scheme

ORIGINAL = "take the original model and quantise it with sala-export quantize"
"""What to do about a quantised model that is not served."""

_BY_FORMAT = {scheme.format: scheme for scheme in SCHEMES.values()}
_NAIVE = "naive-quantized"
_UNDECIDED = (None, _NAIVE, "mixed-precision")
"""What older versions, and those that name a format in each group, have in place of a format."""
_GROUPS = ".config_groups"


def read_compressed_tensors(fields: Mapping[str, Any]) -> Quantization:
    """Read the object. Raises: ConfigError for malformed fields, UnsupportedError for what is not served."""
    _require_format(fields.get("format"))
    _refuse_transforms(fields)
    groups = fields.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ConfigError(f"{_GROUPS} is {shown(groups)}, expected an object that names a group")
    schemes = {name: _scheme(f"{_GROUPS}.{name}", group, fields.get("format")) for name, group in groups.items()}
    first, *others = schemes
    for other in others:
        if schemes[other] != schemes[first]:
            raise UnsupportedError(
                f"{_GROUPS}.{other} is not what {first} is: all projections are quantised alike, {ORIGINAL}"
            )
    targets = [name for group, each in groups.items() for name in module_names(each, f"{_GROUPS}.{group}.", "targets")]
    return Quantization(
        scheme=schemes[first],
        targets=tuple(dict.fromkeys(targets)),
        ignore=tuple(module_names(fields, ".", "ignore")),
        notes=cache_notes("kv_cache_scheme", fields.get("kv_cache_scheme")),
    )


def cache_notes(field: str, value: object) -> tuple[str, ...]:
    """What to say of a `field` that asks for caches of fewer bits."""
    if value is None:
        return ()
    return (f"{field} is {shown(value)}, but caches have 16 bits here: k_scale and v_scale are not read",)


def module_names(fields: Mapping[str, Any], prefix: str, name: str) -> list[str]:
    """A list of modules. Raises: ConfigError, also for expressions that may match for ever."""
    value = fields.get(name) or []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ConfigError(f"{prefix}{name} is {shown(value)}, expected a list of module names")
    require_quick(value, f"{prefix}{name}")
    return value


def _refuse_transforms(fields: Mapping[str, Any]) -> None:
    """Raises: UnsupportedError for what changes weights or activations beyond their codes."""
    sparsity = fields.get("sparsity_config")
    form = sparsity.get("format", "dense") if isinstance(sparsity, dict) else sparsity
    if form not in (None, "dense"):
        raise UnsupportedError(f".sparsity_config.format is {shown(form)}: only dense weights are taken, {ORIGINAL}")
    transform = fields.get("transform_config")
    if transform and (not isinstance(transform, dict) or transform.get("config_groups")):
        raise UnsupportedError(f".transform_config is given: activations are not transformed here, {ORIGINAL}")


def _scheme(where: str, group: Any, common_format: Any) -> Scheme:
    if not isinstance(group, dict):
        raise ConfigError(f"{where} is {shown(group)}, expected an object")
    weights = _arguments(f"{where}.weights", group.get("weights"))
    scheme = _scheme_of_format(group.get("format") or common_format, weights)
    _check(f"{where}.weights", _finest(weights, scheme), scheme.weights, channels=scheme.group is None)
    if group.get("output_activations") is not None:
        raise UnsupportedError(f"{where}.output_activations is given: results of products stay in 16 bits, {ORIGINAL}")
    return _with_activations(f"{where}.input_activations", group.get("input_activations"), scheme)


def _scheme_of_format(form: Any, weights: Mapping[str, Any]) -> Scheme:
    """The scheme that `format` names, or that the weights have where it says nothing."""
    if form in _UNDECIDED:
        kind = (weights["num_bits"], weights["type"])
        found = [each for each in SCHEMES.values() if (each.weights["num_bits"], each.weights["type"]) == kind]
        if form == _NAIVE:
            # It has one code in an element, and floating-point scales.
            found = [each for each in found if each.group is None]
        if found:
            size = weights.get("group_size")
            return next((each for each in found if each.weights.get("group_size") == size), found[0])
        raise UnsupportedError(
            f".config_groups: weights of {kind[0]!r} bits and type {kind[1]!r} in the format {form!r} are not served: "
            f"known are {', '.join(_BY_FORMAT)}"
        )
    _require_format(form)
    return _BY_FORMAT[form]


def _require_format(form: Any) -> None:
    if form not in _UNDECIDED and (not isinstance(form, str) or form not in _BY_FORMAT):
        raise UnsupportedError(f".format is {shown(form)}: known are {', '.join(_BY_FORMAT)}")


def _arguments(where: str, given: Any) -> dict[str, Any]:
    """A group's arguments, with what compressed-tensors takes for those that are left out."""
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is {shown(given)}, expected an object")
    stated = {field: value for field, value in given.items() if value is not None}
    size = stated.get("group_size")
    strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": False, **stated}


def _finest(weights: dict[str, Any], scheme: Scheme) -> dict[str, Any]:
    """int4: a scale for more weights than a group of the scheme has stands for one for each of its groups."""
    if scheme.precision is not Precision.INT4 or scheme.group is None:
        return weights
    size = weights.get("group_size")
    whole = isinstance(size, int) and size > 0 and size % scheme.group == 0
    if weights["strategy"] == "channel" or (weights["strategy"] == "group" and whole):
        return {**weights, "strategy": "group", "group_size": scheme.group}
    return weights


def _with_activations(where: str, given: Any, scheme: Scheme) -> Scheme:
    """The scheme with scales of activations as they are asked for."""
    if scheme.input_activations is None:
        if given is not None:
            raise UnsupportedError(f"{where} is given, but weights of this format go with activations of 16 bits")
        return scheme
    if given is None:
        raise UnsupportedError(
            f"{where} is None: products of {scheme.precision} quantise their activations too, only int4 quantises "
            f"weights alone; {ORIGINAL}"
        )
    arguments = _arguments(where, given)
    if scheme.group is None and arguments["strategy"] == "token":
        scheme = scheme.with_scales_by_token()
    _check(where, arguments, scheme.input_activations or {})
    return scheme


def _check(where: str, given: Mapping[str, Any], expected: Mapping[str, Any], *, channels: bool = False) -> None:
    for field, value in expected.items():
        accepted = [value, "channel"] if field == "strategy" and channels else [value]
        if given.get(field) not in accepted:
            wanted = " or ".join(map(repr, accepted))
            raise UnsupportedError(f"{where}.{field} is {shown(given.get(field))}: only {wanted} is served")
    if given.get("actorder") not in (None, "weight", "static"):
        raise UnsupportedError(f"{where}.actorder is {shown(given['actorder'])}: columns must stay in their order")
