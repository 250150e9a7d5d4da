// Kernels that work on rows or elements independently.
#pragma once

#include "vectors.h"

namespace luthier {
namespace {

template <class T>
void rms_norm_forward(const T* x, const T* weight, T* y, float* scales, int64_t start, int64_t end, int64_t width,
                      float epsilon) {
  const int64_t full = width / LANES * LANES, rest = width - full;
  for (int64_t row = start; row < end; ++row) {
    const T* in = x + row * width;
    T* out = y + row * width;
    const Floats tail = load_part(in + full, rest);
    Floats squares = tail * tail;
    for (int64_t i = 0; i < full; i += LANES) {
      const Floats v = load(in + i);
      squares += v * v;
    }
    const float scale = 1.0f / sqrtf(sum(squares) / static_cast<float>(width) + epsilon);
    scales[row] = scale;
    for (int64_t i = 0; i < full; i += LANES) store(out + i, rounded<T>(load(in + i) * scale) * load(weight + i));
    store_part(out + full, rounded<T>(tail * scale) * load_part(weight + full, rest), rest);
  }
}

// dx = scale · (weight · dy - x̂ · mean(x̂ · weight · dy)) with x̂ = x · scale.
template <class T>
void rms_norm_backward(const T* x, const T* weight, const float* scales, const T* dy, T* dx, int64_t start, int64_t end,
                       int64_t width) {
  const int64_t full = width / LANES * LANES, rest = width - full;
  for (int64_t row = start; row < end; ++row) {
    const T *in = x + row * width, *gradient = dy + row * width;
    T* out = dx + row * width;
    const float scale = scales[row];
    const Floats tail = rounded<T>(load_part(weight + full, rest) * load_part(gradient + full, rest));
    Floats products = tail * load_part(in + full, rest);
    for (int64_t i = 0; i < full; i += LANES)
      products += load(in + i) * rounded<T>(load(weight + i) * load(gradient + i));
    const float shared = sum(products) / static_cast<float>(width) * scale * scale;
    for (int64_t i = 0; i < full; i += LANES)
      store(out + i, (rounded<T>(load(weight + i) * load(gradient + i)) - load(in + i) * shared) * scale);
    store_part(out + full, (tail - load_part(in + full, rest) * shared) * scale, rest);
  }
}

INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

template <class T>
INLINE Floats swiglu(Floats gate, Floats up) {
  return rounded<T>(gate * sigmoid(gate)) * up;
}

template <class T>
void swiglu_forward(const T* gate, const T* up, T* y, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(y + i, swiglu<T>(load(gate + i), load(up + i)));
  const int64_t rest = count - i;
  if (rest > 0) store_part(y + i, swiglu<T>(load_part(gate + i, rest), load_part(up + i, rest)), rest);
}

// Gradients of gate and up.
template <class T>
INLINE void swiglu_slopes(Floats gate, Floats up, Floats dy, Floats* dgate, Floats* dup) {
  const Floats s = sigmoid(gate);
  *dup = dy * rounded<T>(gate * s);
  *dgate = rounded<T>(dy * up) * (s * (1.0f + gate * (1.0f - s)));
}

template <class T>
void swiglu_backward(const T* gate, const T* up, const T* dy, T* dgate, T* dup, int64_t count) {
  Floats g, u;
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    swiglu_slopes<T>(load(gate + i), load(up + i), load(dy + i), &g, &u);
    store(dgate + i, g);
    store(dup + i, u);
  }
  const int64_t rest = count - i;
  if (rest == 0) return;
  swiglu_slopes<T>(load_part(gate + i, rest), load_part(up + i, rest), load_part(dy + i, rest), &g, &u);
  store_part(dgate + i, g, rest);
  store_part(dup + i, u, rest);
}

// Rotates the pair (low, high) by an angle with the given cosine and sine.
template <class T>
INLINE void turn(Floats* low, Floats* high, Floats cos, Floats sin) {
  const Floats turned = rounded<T>(*low * cos) - rounded<T>(*high * sin);
  *high = rounded<T>(*high * cos) + rounded<T>(*low * sin);
  *low = turned;
}

template <class T>
void rope(const T* x, const T* cos, const T* sin, T* y, int64_t start, int64_t end, int64_t heads, int64_t size,
          int64_t half, float direction) {
  const int64_t full = half / LANES * LANES, part = half - full;
  for (int64_t token = start; token < end; ++token) {
    const T *c = cos + token * half, *s = sin + token * half;
    for (int64_t head = 0; head < heads; ++head) {
      const T* in = x + (token * heads + head) * size;
      T* out = y + (token * heads + head) * size;
      for (int64_t i = 0; i < full; i += LANES) {
        Floats low = load(in + i), high = load(in + half + i);
        turn<T>(&low, &high, load(c + i), load(s + i) * direction);
        store(out + i, low);
        store(out + half + i, high);
      }
      if (part > 0) {
        Floats low = load_part(in + full, part), high = load_part(in + half + full, part);
        turn<T>(&low, &high, load_part(c + full, part), load_part(s + full, part) * direction);
        store_part(out + full, low, part);
        store_part(out + half + full, high, part);
      }
      memcpy(out + 2 * half, in + 2 * half, size_of(size - 2 * half) * sizeof(T));
    }
  }
}

template <class T>
INLINE float maximum(const T* values, int64_t count) {
  Floats best = all(-INFINITY);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats v = load(values + i);
    best = v > best ? v : best;
  }
  const Floats rest = load_part(values + i, count - i);
  float top = best[0];
  for (int64_t lane = 1; lane < LANES; ++lane) top = best[lane] > top ? best[lane] : top;
  for (int64_t lane = 0; lane < count - i; ++lane) top = rest[lane] > top ? rest[lane] : top;
  return top;
}

// exp(value · scale - shift) of `count` values, each passed to `take` with its index; returns their sum.
template <class T, class F>
INLINE float exponentials(const T* values, int64_t count, float scale, float shift, F&& take) {
  Floats sums = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats e = exponential(load(values + i) * scale - shift);
    take(i, e, LANES);
    sums += e;
  }
  if (i == count) return sum(sums);
  const Floats tail = exponential(load_part(values + i, count - i) * scale - shift);
  take(i, tail, count - i);
  float total = sum(sums);
  for (int64_t lane = 0; lane < count - i; ++lane) total += tail[lane];
  return total;
}

// The logits are read again for their gradient, so that no f32 copy is needed.
template <class T>
float cross_entropy(T* logits, int64_t width, int64_t id, bool gradient) {
  const float wanted = load_part(logits + id, 1)[0], top = maximum(logits, width);
  const float total = exponentials(logits, width, 1.0f, top, [](int64_t, Floats, int64_t) {});
  if (gradient) {
    const float share = 1.0f / total;
    const float right = exponentials(logits + id, 1, 1.0f, top, [](int64_t, Floats, int64_t) {}) * share - 1.0f;
    exponentials(logits, width, 1.0f, top, [&](int64_t i, Floats e, int64_t count) {
      if (count == LANES) store(logits + i, e * share);
      else store_part(logits + i, e * share, count);
    });
    store_part(logits + id, all(right), 1);
  }
  return logf(total) + top - wanted;
}

template <class T>
float dot(const T* a, const T* b, int64_t count) {
  Floats products = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) products += load(a + i) * load(b + i);
  return sum(products + load_part(a + i, count - i) * load_part(b + i, count - i));
}

}  // namespace
}  // namespace luthier
