// See kernels.h. This file is compiled several times, so the copies must not share anything: no templates or inline
// functions of the standard library, and everything except the table is in the anonymous namespace.

#include "attention.h"
#include "product.h"
#include "rowwise.h"
#include "stored.h"
#include "vectors.h"

namespace luthier {
namespace {

template <class T>
void widen(const T* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
  store_part(to + i, load_part(from + i, count - i), count - i);
}

template <class T>
void narrow(const float* from, T* to, int64_t count) {
  finish(from, count, 1.0f, false, to);
}

template <class T>
constexpr Typed<T> typed() {
  return {
      widen<T>,
      narrow<T>,
      rms_norm_forward<T>,
      rms_norm_backward<T>,
      swiglu_forward<T>,
      swiglu_backward<T>,
      rope<T>,
      cross_entropy<T>,
      product_shape<T>,
      product<T>,
      pack_left<T>,
      rows_product<T>,
      attention_packed<T>,
      attention_pack<T>,
      attention_forward_space<T>,
      attention_forward<T>,
      attention_backward_space<T>,
      attention_backward<T>,
      attend<T>,
  };
}

}  // namespace

const Kernels LUTHIER_TABLE = {LUTHIER_NAME, typed<float>(), typed<bf16>(), stored_product};

}  // namespace luthier
