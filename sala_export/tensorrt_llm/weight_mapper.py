"""How TensorRT-LLM finds the weights of a MiniCPM-SALA checkpoint. Names of modules are the checkpoint's.

`HfWeightMapper` packs q, k and v into `qkv_proj`, and gate and up into `gate_up_proj`. Only scales have other names.
"""

from __future__ import annotations

from typing import Any

from tensorrt_llm._torch.models.checkpoints.hf.weight_mapper import HfWeightMapper
from tensorrt_llm._torch.models.modeling_utils import register_mapper

from ..checkpoint.config import ARCHITECTURE
from .scale_names import modelopt_tensors


@register_mapper("HF", ARCHITECTURE)
class MiniCPMSALAWeightMapper(HfWeightMapper):
    """Maps bf16, fp8 and nvfp4 checkpoints, with the names of ModelOpt or of compressed-tensors."""

    def preprocess_weights(self, weights: Any, **options: Any) -> dict[str, Any]:
        """Rename what `scale_names.modelopt_tensors` renames. Raises: as it.

        Args: `options`, of newer versions, none of which concerns names.
        """
        return modelopt_tensors(weights)
