"""MiniCPM-SALA as a model of TensorRT-LLM, which lives outside TensorRT-LLM (docs/tensorrt_llm.md).

`page_layout.py`, `step_groups.py` and `mixer_steps.py` compute with torch and the operators alone, and so does what
reads configurations and names of tensors. `modeling.py`, `cache_manager.py` and `weight_mapper.py` import TensorRT-LLM.
Only `module/sala_trtllm`, the directory that TensorRT-LLM is told to import, imports them.
"""
