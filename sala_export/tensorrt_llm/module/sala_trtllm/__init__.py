"""What `--custom_module_dirs` imports: the model registers itself with TensorRT-LLM while it is imported.

TensorRT-LLM puts the folder around this one on `sys.path`, and imports this one by its name. So nothing else may be
beside it.
"""

from sala_export.tensorrt_llm.modeling import MiniCPMSALAForCausalLM

__all__ = ["MiniCPMSALAForCausalLM"]
