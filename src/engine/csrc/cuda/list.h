// Every kernel: its program (the file that it is in) and its name.
#pragma once

#define LUTHIER_KERNELS(X)            \
  X(elementwise, swiglu_forward)      \
  X(elementwise, swiglu_backward)     \
  X(elementwise, rope)                \
  X(elementwise, rope_into_cache)     \
  X(norm, rms_norm_forward)           \
  X(norm, rms_norm_backward)          \
  X(cross_entropy, compare_rows)      \
  X(adamw, adamw_by_bf16)             \
  X(adamw, adamw_by_f32)              \
  X(nf4, nf4_to_bf16)                 \
  X(nf4, nf4_to_f32)                  \
  X(nf4, nf4_product_1)               \
  X(nf4, nf4_product_8)               \
  X(nf4, nf4_encode)                  \
  X(blocks, blocks_to_bf16)           \
  X(blocks, blocks_to_f32)            \
  X(blocks, blocks_product_1)         \
  X(blocks, blocks_product_8)
