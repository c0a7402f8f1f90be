/* The part of LiteRT's public C API (litert/c/ in github.com/google-ai-edge/LiteRT, ABI of 2.1.6 to 2.3) that score.c calls, declared here
 * because the ai-edge-litert wheel brings the library but no headers. With LiteRT's own headers at hand, include
 *   litert/c/litert_compiled_model.h, litert_environment.h, litert_model.h, litert_options.h and litert_tensor_buffer.h
 * instead. Every function returns 0 on success.
 */
#ifndef DLRM_TF_EXAMPLES_LITERT_H_
#define DLRM_TF_EXAMPLES_LITERT_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct LiteRtEnvironmentT* LiteRtEnvironment;
typedef struct LiteRtModelT* LiteRtModel;
typedef struct LiteRtOptionsT* LiteRtOptions;
typedef struct LiteRtSignatureT* LiteRtSignature;
typedef struct LiteRtTensorT* LiteRtTensor;
typedef struct LiteRtCompiledModelT* LiteRtCompiledModel;
typedef struct LiteRtTensorBufferT* LiteRtTensorBuffer;

typedef struct {
  unsigned int rank : 7;
  bool has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
} LiteRtLayout;

typedef struct {
  int element_type;
  LiteRtLayout layout;
} LiteRtRankedTensorType;

enum { kLiteRtElementTypeFloat32 = 1, kLiteRtElementTypeInt32 = 2 };
enum { kLiteRtHwAcceleratorCpu = 1 };
enum { kLiteRtTensorBufferTypeHostMemory = 1 };
enum { kLiteRtTensorBufferLockModeRead = 0, kLiteRtTensorBufferLockModeWrite = 1 };

int LiteRtCreateEnvironment(int num_options, const void* options, LiteRtEnvironment* environment);
void LiteRtDestroyEnvironment(LiteRtEnvironment environment);
int LiteRtCreateModelFromFile(LiteRtEnvironment environment, const char* filename, LiteRtModel* model);
void LiteRtDestroyModel(LiteRtModel model);
int LiteRtGetNumModelSignatures(LiteRtModel model, size_t* count);
int LiteRtGetModelSignature(LiteRtModel model, size_t index, LiteRtSignature* signature);
int LiteRtGetSignatureKey(LiteRtSignature signature, const char** key);
int LiteRtGetNumSignatureInputs(LiteRtSignature signature, size_t* count);
int LiteRtGetSignatureInputName(LiteRtSignature signature, size_t index, const char** name);
int LiteRtGetSignatureInputTensorByIndex(LiteRtSignature signature, size_t index, LiteRtTensor* tensor);
int LiteRtGetRankedTensorType(LiteRtTensor tensor, LiteRtRankedTensorType* type);
int LiteRtCreateOptions(LiteRtOptions* options);
void LiteRtDestroyOptions(LiteRtOptions options);
int LiteRtSetOptionsHardwareAccelerators(LiteRtOptions options, int accelerators);
int LiteRtCreateCompiledModel(LiteRtEnvironment environment, LiteRtModel model, LiteRtOptions options, LiteRtCompiledModel* compiled);
void LiteRtDestroyCompiledModel(LiteRtCompiledModel compiled);
int LiteRtCompiledModelResizeInputTensor(LiteRtCompiledModel compiled, size_t signature, size_t input, const int* dims, size_t rank);
int LiteRtRunCompiledModel(LiteRtCompiledModel compiled, size_t signature, size_t num_inputs, LiteRtTensorBuffer* inputs,
                           size_t num_outputs, LiteRtTensorBuffer* outputs);
int LiteRtCreateManagedTensorBuffer(LiteRtEnvironment environment, int buffer_type, const LiteRtRankedTensorType* type,
                                    size_t bytes, LiteRtTensorBuffer* buffer);
void LiteRtDestroyTensorBuffer(LiteRtTensorBuffer buffer);
int LiteRtLockTensorBuffer(LiteRtTensorBuffer buffer, void** address, int mode);
int LiteRtUnlockTensorBuffer(LiteRtTensorBuffer buffer);

#endif
