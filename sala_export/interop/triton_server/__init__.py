"""A model of Triton Inference Server, which has nothing to do with Triton, the language of the kernels.

`repository.py` writes the folder that the server loads. `model.py` is what its Python backend runs.
"""
