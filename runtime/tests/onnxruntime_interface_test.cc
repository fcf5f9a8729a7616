// The engine's own declarations of ONNX Runtime's C interface against the published header. They are compared while
// this file is compiled; without the header (CMakeLists.txt says where it is looked for) the test says so and is
// skipped.

#include <gtest/gtest.h>

#include "engines/onnxruntime/interface.h"

#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>

#include <type_traits>

// The header's functions ask that their result is used. What is compared are types, which cannot ask.
#pragma GCC diagnostic ignored "-Wignored-attributes"

namespace {

/// A type of the header in our own declarations.
template <class T>
struct Ours {
  using type = T;
};
template <class T>
using OursT = typename Ours<T>::type;

template <class T>
struct Ours<T*> {
  using type = OursT<T>*;
};
template <class T>
struct Ours<const T> {
  using type = const OursT<T>;
};
template <class Result, class... Arguments>
struct Ours<Result(Arguments...)> {
  using type = OursT<Result>(OursT<Arguments>...);
};
template <class Result, class... Arguments>
struct Ours<Result(Arguments...) noexcept> {
  using type = OursT<Result>(OursT<Arguments>...);
};

#define SALA_TYPE(name)        \
  template <>                  \
  struct Ours<::name> {        \
    using type = ::sala::name; \
  };

SALA_TYPE(OrtApi)
SALA_TYPE(OrtApiBase)
SALA_TYPE(OrtCustomOp)

// An enumeration too has to be passed alike.
#define SALA_ENUMERATION(name) \
  SALA_TYPE(name)              \
  static_assert(std::is_same_v<std::underlying_type_t<::name>, std::underlying_type_t<::sala::name>>);

SALA_ENUMERATION(OrtErrorCode)
SALA_ENUMERATION(OrtLoggingLevel)
SALA_ENUMERATION(OrtAllocatorType)
SALA_ENUMERATION(OrtMemType)
SALA_ENUMERATION(OrtCustomOpInputOutputCharacteristic)
SALA_ENUMERATION(ONNXTensorElementDataType)

#define SALA_MEMBER(table, member)                                                                 \
  static_assert(offsetof(::table, member) == offsetof(::sala::table, member), #table "." #member); \
  static_assert(std::is_same_v<OursT<decltype(::table::member)>, decltype(::sala::table::member)>, #table "." #member);

SALA_MEMBER(OrtApiBase, GetApi)
SALA_MEMBER(OrtApiBase, GetVersionString)

SALA_MEMBER(OrtApi, CreateStatus)
SALA_MEMBER(OrtApi, GetErrorMessage)
SALA_MEMBER(OrtApi, CreateEnv)
SALA_MEMBER(OrtApi, CreateSessionFromArray)
SALA_MEMBER(OrtApi, CreateSessionOptions)
SALA_MEMBER(OrtApi, DisableMemPattern)
SALA_MEMBER(OrtApi, SetIntraOpNumThreads)
SALA_MEMBER(OrtApi, CreateCustomOpDomain)
SALA_MEMBER(OrtApi, CustomOpDomain_Add)
SALA_MEMBER(OrtApi, AddCustomOpDomain)
SALA_MEMBER(OrtApi, SessionGetInputCount)
SALA_MEMBER(OrtApi, SessionGetInputName)
SALA_MEMBER(OrtApi, CreateTensorWithDataAsOrtValue)
SALA_MEMBER(OrtApi, GetTensorMutableData)
SALA_MEMBER(OrtApi, GetTensorElementType)
SALA_MEMBER(OrtApi, GetDimensionsCount)
SALA_MEMBER(OrtApi, GetDimensions)
SALA_MEMBER(OrtApi, GetTensorTypeAndShape)
SALA_MEMBER(OrtApi, CreateCpuMemoryInfo)
SALA_MEMBER(OrtApi, AllocatorFree)
SALA_MEMBER(OrtApi, GetAllocatorWithDefaultOptions)
SALA_MEMBER(OrtApi, KernelInfoGetAttribute_float)
SALA_MEMBER(OrtApi, KernelInfoGetAttribute_int64)
SALA_MEMBER(OrtApi, KernelInfoGetAttribute_string)
SALA_MEMBER(OrtApi, KernelContext_GetInputCount)
SALA_MEMBER(OrtApi, KernelContext_GetInput)
SALA_MEMBER(OrtApi, KernelContext_GetOutput)
SALA_MEMBER(OrtApi, ReleaseEnv)
SALA_MEMBER(OrtApi, ReleaseStatus)
SALA_MEMBER(OrtApi, ReleaseMemoryInfo)
SALA_MEMBER(OrtApi, ReleaseSession)
SALA_MEMBER(OrtApi, ReleaseValue)
SALA_MEMBER(OrtApi, ReleaseTensorTypeAndShapeInfo)
SALA_MEMBER(OrtApi, ReleaseSessionOptions)
SALA_MEMBER(OrtApi, ReleaseCustomOpDomain)
SALA_MEMBER(OrtApi, RunWithBinding)
SALA_MEMBER(OrtApi, CreateIoBinding)
SALA_MEMBER(OrtApi, ReleaseIoBinding)
SALA_MEMBER(OrtApi, BindInput)
SALA_MEMBER(OrtApi, BindOutput)
SALA_MEMBER(OrtApi, RegisterCustomOpsLibrary_V2)
SALA_MEMBER(OrtApi, KernelContext_ParallelFor)

SALA_MEMBER(OrtCustomOp, version)
SALA_MEMBER(OrtCustomOp, CreateKernel)
SALA_MEMBER(OrtCustomOp, GetName)
SALA_MEMBER(OrtCustomOp, GetExecutionProviderType)
SALA_MEMBER(OrtCustomOp, GetInputType)
SALA_MEMBER(OrtCustomOp, GetInputTypeCount)
SALA_MEMBER(OrtCustomOp, GetOutputType)
SALA_MEMBER(OrtCustomOp, GetOutputTypeCount)
SALA_MEMBER(OrtCustomOp, KernelCompute)
SALA_MEMBER(OrtCustomOp, KernelDestroy)
SALA_MEMBER(OrtCustomOp, GetInputCharacteristic)
SALA_MEMBER(OrtCustomOp, GetOutputCharacteristic)
SALA_MEMBER(OrtCustomOp, GetInputMemoryType)
SALA_MEMBER(OrtCustomOp, GetVariadicInputMinArity)
SALA_MEMBER(OrtCustomOp, GetVariadicInputHomogeneity)
SALA_MEMBER(OrtCustomOp, GetVariadicOutputMinArity)
SALA_MEMBER(OrtCustomOp, GetVariadicOutputHomogeneity)
SALA_MEMBER(OrtCustomOp, CreateKernelV2)
SALA_MEMBER(OrtCustomOp, KernelComputeV2)
SALA_MEMBER(OrtCustomOp, InferOutputShapeFn)
SALA_MEMBER(OrtCustomOp, GetStartVersion)
SALA_MEMBER(OrtCustomOp, GetEndVersion)
SALA_MEMBER(OrtCustomOp, GetMayInplace)
SALA_MEMBER(OrtCustomOp, ReleaseMayInplace)
SALA_MEMBER(OrtCustomOp, GetAliasMap)
SALA_MEMBER(OrtCustomOp, ReleaseAliasMap)

#if ORT_API_VERSION == 21
// A later version may have more at the end.
static_assert(sizeof(::OrtCustomOp) == sizeof(sala::OrtCustomOp));
#endif

#define SALA_VALUE(name) static_assert(static_cast<int>(::name) == static_cast<int>(::sala::name), #name);

SALA_VALUE(ORT_FAIL)
SALA_VALUE(ORT_INVALID_ARGUMENT)
SALA_VALUE(ORT_RUNTIME_EXCEPTION)
SALA_VALUE(ORT_LOGGING_LEVEL_FATAL)
SALA_VALUE(OrtDeviceAllocator)
SALA_VALUE(OrtMemTypeDefault)
SALA_VALUE(INPUT_OUTPUT_REQUIRED)
SALA_VALUE(INPUT_OUTPUT_REQUIRED)
SALA_VALUE(INPUT_OUTPUT_VARIADIC)
SALA_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED)
SALA_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
SALA_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
SALA_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8)
SALA_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)
SALA_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
SALA_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16)
SALA_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16)
SALA_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN)

}  // namespace

TEST(OnnxRuntimeInterface, IsDeclaredAsInTheHeader) { EXPECT_GE(ORT_API_VERSION + 0U, sala::kOrtApiVersion); }

#else

TEST(OnnxRuntimeInterface, IsDeclaredAsInTheHeader) {
  GTEST_SKIP()
      << "NOT COMPARED with the header of ONNX Runtime, which is not here: install libonnxruntime-dev, or give "
         "its directory as -D ONNXRUNTIME_INCLUDE_DIR=DIR";
}

#endif
