// The part of ONNX Runtime's C interface that the engine and the operators on the CPU use.
//
// Its Python wheels carry the library without a header, and few systems have one. So what is used stands here, and
// nothing has to be fetched. OrtApi is one table of function pointers that only grows at its end: a position that was
// right once stays right in every later release. The same holds for OrtCustomOp, whose `version` says how far the
// caller's table reaches. runtime/tests/onnxruntime_interface_test.cc compares positions, signatures and values with
// the published header.

#pragma once

#include <cstddef>
#include <cstdint>

// Objects of ONNX Runtime, which are handled by pointer alone.
struct OrtAllocator;
struct OrtCustomOpDomain;
struct OrtEnv;
struct OrtIoBinding;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

namespace sala {

/// The version whose tables are declared here. ONNX Runtime 1.21 is the oldest release that has it.
constexpr uint32_t kOrtApiVersion = 21;

// Enumerations, with the values that are used.
enum OrtErrorCode : unsigned { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2, ORT_RUNTIME_EXCEPTION = 6 };
enum OrtLoggingLevel : unsigned { ORT_LOGGING_LEVEL_FATAL = 4 };
enum OrtAllocatorType : int { OrtDeviceAllocator = 0 };
enum OrtMemType : int { OrtMemTypeDefault = 0 };
enum OrtCustomOpInputOutputCharacteristic : unsigned { INPUT_OUTPUT_REQUIRED = 0, INPUT_OUTPUT_VARIADIC = 2 };
enum ONNXTensorElementDataType : unsigned {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN = 17,
};

struct OrtCustomOp;

/// The functions of ONNX Runtime. Those that return a status return null for success. `from_N` is a run of functions
/// that are not used, of which the first is the N-th of the table, counted from 0.
struct OrtApi {
  OrtStatus* (*CreateStatus)(OrtErrorCode code, const char* message);
  void* from_1[1];
  const char* (*GetErrorMessage)(const OrtStatus* status);
  OrtStatus* (*CreateEnv)(OrtLoggingLevel level, const char* name, OrtEnv** created);
  void* from_4[4];
  OrtStatus* (*CreateSessionFromArray)(const OrtEnv* environment, const void* graph, size_t bytes,
                                       const OrtSessionOptions* options, OrtSession** created);
  void* from_9[1];
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** created);
  void* from_11[6];
  OrtStatus* (*DisableMemPattern)(OrtSessionOptions* options);
  void* from_18[6];
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions* options, int threads);
  void* from_25[1];
  OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** created);
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  void* from_29[1];
  OrtStatus* (*SessionGetInputCount)(const OrtSession* session, size_t* count);
  void* from_31[5];
  OrtStatus* (*SessionGetInputName)(const OrtSession* session, size_t index, OrtAllocator* allocator, char** name);
  void* from_37[12];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo* memory, void* data, size_t bytes,
                                               const int64_t* shape, size_t rank, ONNXTensorElementDataType type,
                                               OrtValue** created);
  void* from_50[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** data);
  void* from_52[8];
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* type);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* rank);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* shape, size_t rank);
  void* from_63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** created);
  void* from_66[3];
  OrtStatus* (*CreateCpuMemoryInfo)(OrtAllocatorType allocator, OrtMemType type, OrtMemoryInfo** created);
  void* from_70[6];
  OrtStatus* (*AllocatorFree)(OrtAllocator* allocator, void* memory);
  void* from_77[1];
  OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator** allocator);
  void* from_79[6];
  OrtStatus* (*KernelInfoGetAttribute_float)(const OrtKernelInfo* info, const char* name, float* value);
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name, int64_t* value);
  /// With too little room, an error. With no room at all, success, and `size` is what is needed, its end included.
  OrtStatus* (*KernelInfoGetAttribute_string)(const OrtKernelInfo* info, const char* name, char* value, size_t* size);
  OrtStatus* (*KernelContext_GetInputCount)(const OrtKernelContext* context, size_t* count);
  void* from_89[1];
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** value);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* shape, size_t rank,
                                        OrtValue** value);
  void (*ReleaseEnv)(OrtEnv* object);
  void (*ReleaseStatus)(OrtStatus* object);
  void (*ReleaseMemoryInfo)(OrtMemoryInfo* object);
  void (*ReleaseSession)(OrtSession* object);
  void (*ReleaseValue)(OrtValue* object);
  void* from_97[2];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* object);
  void (*ReleaseSessionOptions)(OrtSessionOptions* object);
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain* object);
  void* from_102[31];
  OrtStatus* (*RunWithBinding)(OrtSession* session, const OrtRunOptions* options, const OrtIoBinding* binding);
  OrtStatus* (*CreateIoBinding)(OrtSession* session, OrtIoBinding** created);
  void (*ReleaseIoBinding)(OrtIoBinding* object);
  OrtStatus* (*BindInput)(OrtIoBinding* binding, const char* name, const OrtValue* value);
  OrtStatus* (*BindOutput)(OrtIoBinding* binding, const char* name, const OrtValue* value);
  void* from_138[90];
  OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions* options, const char* library);
  void* from_229[45];
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*task)(void* data, size_t index),
                                          size_t count, size_t batches, void* data);
};

/// What the exported function OrtGetApiBase returns.
struct OrtApiBase {
  /// The table of a version, of which this release has as many functions or more. Null if the release is older.
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

/// An operator that a library adds to ONNX Runtime. What stays null is not asked for.
struct OrtCustomOp {
  uint32_t version;  // kOrtApiVersion
  void* (*CreateKernel)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info);
  const char* (*GetName)(const OrtCustomOp* op);
  const char* (*GetExecutionProviderType)(const OrtCustomOp* op);
  ONNXTensorElementDataType (*GetInputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp* op);
  ONNXTensorElementDataType (*GetOutputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp* op);
  void (*KernelCompute)(void* kernel, OrtKernelContext* context);
  void (*KernelDestroy)(void* kernel);
  OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp* op);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp* op);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp* op, OrtShapeInferContext* context);
  int (*GetStartVersion)(const OrtCustomOp* op);
  int (*GetEndVersion)(const OrtCustomOp* op);
  /// Returns how many outputs may lie where an input lies, and which, in two arrays that ReleaseMayInplace gets back.
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // namespace sala
