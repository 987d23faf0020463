/* Lets TVM call the model: tvm.runtime.load_module("libmodel.so")["<name>"](input..., output...).
 *
 * Compile with -DMODEL_FFI=__tvm_ffi_<name>, -DMODEL_CALL=<name>_call, -DMODEL_DESCRIBE=<name>_describe,
 * -DMODEL_STATUS_TEXT=<name>_status_text, -DMODEL_TENSORS=<inputs + outputs>, -DMODEL_INPUTS=<inputs>. (The names come
 * whole, because a name alone may be a macro, as `linux` is.) The only TVM symbol it refers to, for the text of an
 * error, is weak: without TVM in the process nothing is missing.
 */
#include <stdlib.h>
#include <string.h>

#include <tvm/ffi/c_api.h>

#include "model.h"

#define EXPORT __attribute__((visibility("default")))

#pragma weak TVMFFIErrorSetRaisedFromCStr

static int fail(const char *kind, const char *message) {
  if (TVMFFIErrorSetRaisedFromCStr) TVMFFIErrorSetRaisedFromCStr(kind, message);
  return -1;
}

static int32_t dtype_of(DLDataType type) {
  if (type.lanes != 1) return -1;
  switch (type.code * 256 + type.bits) {
    case kDLBool * 256 + 8: return TVM_DEPLOY_BOOL;
    case kDLInt * 256 + 8: return TVM_DEPLOY_INT8;
    case kDLUInt * 256 + 8: return TVM_DEPLOY_UINT8;
    case kDLInt * 256 + 16: return TVM_DEPLOY_INT16;
    case kDLUInt * 256 + 16: return TVM_DEPLOY_UINT16;
    case kDLInt * 256 + 32: return TVM_DEPLOY_INT32;
    case kDLUInt * 256 + 32: return TVM_DEPLOY_UINT32;
    case kDLInt * 256 + 64: return TVM_DEPLOY_INT64;
    case kDLUInt * 256 + 64: return TVM_DEPLOY_UINT64;
    case kDLFloat * 256 + 16: return TVM_DEPLOY_FLOAT16;
    case kDLFloat * 256 + 32: return TVM_DEPLOY_FLOAT32;
    case kDLFloat * 256 + 64: return TVM_DEPLOY_FLOAT64;
    default: return -1;
  }
}

static const DLTensor *tensor_of(const TVMFFIAny *value) {
  if (value->type_index == kTVMFFIDLTensorPtr) return value->v_ptr;
  if (value->type_index == kTVMFFITensor) return (const DLTensor *)((const char *)value->v_obj + sizeof(TVMFFIObject));
  return NULL;
}

static int is_dense(const DLTensor *tensor) {
  int64_t step = 1;
  if (tensor->strides == NULL) return 1;
  for (int32_t d = tensor->ndim - 1; d >= 0; --d) {
    if (tensor->shape[d] != 1 && tensor->strides[d] != step) return 0;
    step *= tensor->shape[d];
  }
  return 1;
}

static int convert(const TVMFFIAny *arguments, tvm_deploy_tensor *tensors) {
  for (int i = 0; i < MODEL_TENSORS; ++i) {
    const DLTensor *tensor = tensor_of(&arguments[i]);
    if (tensor == NULL) return fail("TypeError", "every argument must be a tensor: the inputs, then the outputs");
    if (tensor->device.device_type != kDLCPU) return fail("ValueError", "tensors must be in CPU memory");
    if (!is_dense(tensor)) return fail("ValueError", "tensors must be dense and row-major");
    tensors[i].data = (char *)tensor->data + tensor->byte_offset;
    tensors[i].shape = tensor->shape;
    tensors[i].ndim = tensor->ndim;
    tensors[i].dtype = dtype_of(tensor->dtype);
  }
  return 0;
}

EXPORT int MODEL_FFI(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result) {
  (void)self;
  tvm_deploy_tensor tensors[MODEL_TENSORS];
  const tvm_deploy_model_info *info = MODEL_DESCRIBE();
  if (count != MODEL_TENSORS) return fail("TypeError", "expected the model's inputs, then its outputs, as tensors");
  if (convert(arguments, tensors) != 0) return -1;
  size_t bytes = (info->arena_bytes / info->arena_alignment + 1u) * info->arena_alignment;
  void *arena = aligned_alloc(info->arena_alignment, bytes);
  if (arena == NULL) return fail("MemoryError", "no memory for the arena");
  int32_t status = MODEL_CALL(tensors, MODEL_INPUTS, tensors + MODEL_INPUTS, MODEL_TENSORS - MODEL_INPUTS, arena,
                              info->arena_bytes);
  free(arena);
  if (status != TVM_DEPLOY_OK) return fail("ValueError", MODEL_STATUS_TEXT(status));
  result->type_index = kTVMFFINone;
  result->zero_padding = 0;
  result->v_int64 = 0;
  return 0;
}
