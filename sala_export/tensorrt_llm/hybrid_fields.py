"""What TensorRT-LLM reads of a hybrid model's configuration, for a MiniCPM-SALA configuration that does not say it.

TensorRT-LLM knows hybrids by a fixed list, and one entry of it goes by fields instead of a name: a configuration with
`hybrid_override_pattern` has recurrent layers, `M`, and attention layers, `*`, in the order of the pattern. So a
Lightning state is to it the state of a Mamba layer [heads, head dim, state size], and nothing of it must be changed.
"""

from __future__ import annotations

from typing import Any

from ..checkpoint.config import Mixer, SalaConfig
from ..errors import UnsupportedError

_LETTERS = {Mixer.LIGHTNING: "M", Mixer.SPARSE: "*"}
_CONV_KERNEL = 2
"""Rows of the convolution that a Mamba layer has and a Lightning layer does not, and one more. A kernel of 1 would ask
for buffers of no bytes. One row takes 0.4% of the published model's state."""


def hybrid_fields(config: SalaConfig) -> dict[str, Any]:
    """The fields to add, by name. Raises: UnsupportedError for a model without one of the two kinds of layers."""
    missing = [mixer.value for mixer in Mixer if mixer not in config.mixer_types]
    if missing:
        raise UnsupportedError(
            f"mixer_types has no {missing[0]!r}: TensorRT-LLM's hybrid cache needs both kinds of layers, use "
            "sala-export build and run"
        )
    return {
        "hybrid_override_pattern": "".join(_LETTERS[mixer] for mixer in config.mixer_types),
        "mamba_num_heads": config.num_attention_heads,
        "mamba_head_dim": config.head_dim,
        "ssm_state_size": config.head_dim,
        "n_groups": 1,
        "conv_kernel": _CONV_KERNEL,
        "mamba_ssm_cache_dtype": "float32",
    }
