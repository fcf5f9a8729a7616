# Defines sala::cuda_headers: cuda.h and cuda_runtime_api.h as Triton's wheel carries them. Triton compiles the kernels
# of this build anyway, so no CUDA toolkit is needed. Nothing of CUDA is linked.

execute_process(
  COMMAND "${Python3_EXECUTABLE}" -c
          "import importlib.util as u; print(u.find_spec('triton').submodule_search_locations[0], end='')"
  OUTPUT_VARIABLE SALA_TRITON_DIR
  RESULT_VARIABLE SALA_TRITON_STATUS
  ERROR_QUIET)
if(NOT SALA_TRITON_STATUS EQUAL 0)
  message(FATAL_ERROR "${Python3_EXECUTABLE} has no triton, which compiles the kernels: install triton>=3.9,<3.10")
endif()

set(SALA_CUDA_INCLUDE_DIR "${SALA_TRITON_DIR}/backends/nvidia/include")
if(NOT EXISTS "${SALA_CUDA_INCLUDE_DIR}/cuda.h")
  message(FATAL_ERROR "triton in ${SALA_TRITON_DIR} carries no CUDA headers: install triton>=3.9,<3.10")
endif()

add_library(sala_cuda_headers INTERFACE)
add_library(sala::cuda_headers ALIAS sala_cuda_headers)
target_include_directories(sala_cuda_headers SYSTEM INTERFACE "${SALA_CUDA_INCLUDE_DIR}")
