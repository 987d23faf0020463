/* Types shared by all models that tvm-deploy compiled: include it once, or many times. */
#ifndef TVM_DEPLOY_H
#define TVM_DEPLOY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum tvm_deploy_dtype {
  TVM_DEPLOY_BOOL = 0,
  TVM_DEPLOY_INT8 = 1,
  TVM_DEPLOY_UINT8 = 2,
  TVM_DEPLOY_INT16 = 3,
  TVM_DEPLOY_UINT16 = 4,
  TVM_DEPLOY_INT32 = 5,
  TVM_DEPLOY_UINT32 = 6,
  TVM_DEPLOY_INT64 = 7,
  TVM_DEPLOY_UINT64 = 8,
  TVM_DEPLOY_FLOAT16 = 9,
  TVM_DEPLOY_FLOAT32 = 10,
  TVM_DEPLOY_FLOAT64 = 11
};

/* What a call returns: 0, or the reason why nothing was computed. */
enum tvm_deploy_status {
  TVM_DEPLOY_OK = 0,
  TVM_DEPLOY_NULL_POINTER = 1,     /* an input, an output or the arena is NULL */
  TVM_DEPLOY_ARENA_TOO_SMALL = 2,  /* fewer bytes than the model's ARENA_BYTES */
  TVM_DEPLOY_ARENA_MISALIGNED = 3, /* not on a multiple of ARENA_ALIGNMENT bytes */
  TVM_DEPLOY_MISALIGNED = 4,       /* an input or output not on a multiple of its element's size */
  TVM_DEPLOY_WRONG_COUNT = 5,      /* not as many inputs or outputs as the model has */
  TVM_DEPLOY_WRONG_DTYPE = 6,      /* an element type that is not the model's */
  TVM_DEPLOY_WRONG_SHAPE = 7,      /* a shape that is not the model's */
  TVM_DEPLOY_NO_THREADS = 8        /* the thread pool could not be started */
};

/* A dense, row-major tensor in the caller's memory. */
typedef struct tvm_deploy_tensor {
  void *data;
  const int64_t *shape;
  int32_t ndim;
  int32_t dtype; /* enum tvm_deploy_dtype */
} tvm_deploy_tensor;

/* What a model takes and gives; `scale` is 0 where a tensor is not quantized. */
typedef struct tvm_deploy_tensor_info {
  const char *name;
  const int64_t *shape;
  int32_t ndim;
  int32_t dtype;
  size_t bytes;
  double scale;
  int32_t zero_point;
} tvm_deploy_tensor_info;

typedef struct tvm_deploy_model_info {
  const char *name;
  int32_t input_count;
  int32_t output_count;
  const tvm_deploy_tensor_info *inputs;
  const tvm_deploy_tensor_info *outputs;
  size_t arena_bytes;
  size_t arena_alignment;
  size_t weight_bytes;
  int32_t threads;
} tvm_deploy_model_info;

#ifdef __cplusplus
}
#endif
#endif
