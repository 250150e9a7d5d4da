// Causal attention, one head of one document at a time. Scores are stored only for a few queries at a time; the
// backward pass computes them again from their normalisers (FlashAttention-2, arXiv 2307.08691, section 3.1). In
// bf16 the weights are rounded before the product with the values, as in PyTorch's CPU kernel; sums are in f32.
#pragma once

#include "product.h"
#include "rowwise.h"

namespace luthier {
namespace {

// A right operand that is used many times, stored as consecutive panels.
struct Panels {
  int64_t columns, depth, vectors;
  const Unit* units;

  int64_t width() const { return vectors * LANES; }
  int64_t count() const { return ceiling(columns, width()); }
  int64_t padded() const { return count() * width(); }
  int64_t size() const { return padded() * depth; }
};

template <class T>
INLINE Panels panels(int64_t columns, int64_t depth, const Unit* at) {
  return {columns, units<T>(depth), panel_vectors(columns), at};
}

// Fills panels; `by_rows` as in Product.
template <class T>
void pack(const Panels& to, const T* from, int64_t row, int64_t depth, bool by_rows) {
  const int64_t width = to.width();
  for (int64_t panel = 0; panel < to.count(); ++panel) {
    const int64_t start = panel * width, columns = smaller(width, to.columns - start);
    Unit* out = const_cast<Unit*>(to.units) + start * to.depth;
    if (by_rows) pack_rows(from + start * row, row, depth, columns, width, out);
    else pack_columns(from + start, row, depth, columns, width, out);
  }
}

// out [rows, padded] (+)= a · panels, over units [first, depth), for columns below `columns`, padded to whole
// panels.
template <class T>
INLINE void multiply(int64_t rows, const Unit* a, int64_t row, int64_t step, const Panels& b, int64_t columns,
                     int64_t first, int64_t depth, float* out, int64_t out_row, bool add) {
  const int64_t width = b.width();
  for (int64_t start = 0; start < columns; start += width)
    multiply_panel<T>(rows, b.vectors, a + first * step, row, step, b.units + start * b.depth + first * width,
                      depth - first, out + start, out_row, add);
}

// Operands shared by all heads of a group, in this order: keys for the scores, then values (forward), or values for
// the gradients of the weights and keys for the gradient of the queries (backward).
template <class T>
struct Packed {
  Panels keys, values, key_columns;

  Packed(int64_t length, int64_t size, bool backward, const Unit* at)
      : keys(panels<T>(length, size, at)),
        values(backward ? panels<T>(length, size, at + keys.size()) : panels<T>(size, length, at + keys.size())),
        key_columns(panels<T>(size, backward ? length : 0, at + keys.size() + values.size())) {}

  int64_t size() const { return keys.size() + values.size() + key_columns.size(); }
};

template <class T>
int64_t attention_packed(int64_t length, int64_t size, bool backward) {
  return Packed<T>(length, size, backward, nullptr).size();
}

template <class T>
void attention_pack(const Head<T>& head, bool backward, Unit* to) {
  const Packed<T> packed(head.length, head.size, backward, to);
  pack(packed.keys, head.key, head.key_row, head.size, true);
  pack(packed.values, head.value, head.key_row, backward ? head.size : head.length, backward);
  if (backward) pack(packed.key_columns, head.key, head.key_row, head.length, false);
}

template <class T>
int64_t attention_forward_space(int64_t length, int64_t size) {
  const int64_t keys = panels<T>(length, size, nullptr).padded(), values = panels<T>(size, length, nullptr).padded();
  return TILE_ROWS * (keys + keys + values);
}

template <class T>
void attention_forward(const Head<T>& head, const Unit* shared, int64_t first, int64_t last, T* out,
                       float* normalisers, int64_t heads, Unit* space) {
  const Packed<T> packed(head.length, head.size, false, shared);
  const int64_t width = packed.keys.padded(), out_width = packed.values.padded();
  float* scores = reinterpret_cast<float*>(space);
  T* weights = reinterpret_cast<T*>(scores + TILE_ROWS * width);
  float* mixed = scores + 2 * TILE_ROWS * width;
  for (int64_t start = first; start < last; start += TILE_ROWS) {
    const int64_t rows = smaller(TILE_ROWS, last - start), keys = start + rows, row = head.query_row / PACK<T>;
    const int64_t query = start - head.before;
    multiply<T>(rows, reinterpret_cast<const Unit*>(head.query + query * head.query_row), row, 1, packed.keys, keys, 0,
                packed.keys.depth, scores, width, false);
    float shares[TILE_ROWS];
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t valid = start + r + 1;
      T* row_weights = weights + r * width;
      const float* row_scores = scores + r * width;
      const float top = maximum(row_scores, valid) * head.scale;
      const float total = exponentials(row_scores, valid, head.scale, top, [&](int64_t i, Floats e, int64_t count) {
        if (count == LANES) store(row_weights + i, e);
        else store_part(row_weights + i, e, count);
      });
      memset(row_weights + valid, 0, size_of(units<T>(keys) * PACK<T> - valid) * sizeof(T));
      shares[r] = 1.0f / total;
      normalisers[(query + r) * heads] = logf(total) + top;
    }
    multiply<T>(rows, reinterpret_cast<const Unit*>(weights), width / PACK<T>, 1, packed.values, head.size, 0,
                units<T>(keys), mixed, out_width, false);
    for (int64_t r = 0; r < rows; ++r)
      finish(mixed + r * out_width, head.size, shares[r], false, out + (query + r) * head.query_row);
  }
}

// Number of queries whose gradients of keys and values are added together.
constexpr int64_t QUERIES = 64;

// Memory of a backward task.
template <class T>
struct Workspace {
  int64_t width, out_width;
  // [TILE_ROWS, width] each: scores; gradients of the weights.
  float *scores, *slopes;
  // Units of consecutive queries, [QUERIES / PACK, width]: weights; gradients of the scores.
  Unit *weights, *changes;
  // Gradients of the scores again, in units of consecutive keys, [QUERIES, width / PACK].
  T* change_rows;
  // Panels [QUERIES, size].
  Unit *queries, *outer;
  // [length, out_width] each.
  float *dkey, *dvalue;
  float* dquery;
  Unit* end;

  Workspace(int64_t length, int64_t size, Unit* at) {
    width = panels<T>(length, size, nullptr).padded();
    const Panels block = panels<T>(size, QUERIES, nullptr);
    out_width = block.padded();
    const auto take = [&](int64_t units) {
      Unit* taken = at;
      at += units;
      return taken;
    };
    scores = reinterpret_cast<float*>(take(TILE_ROWS * width));
    slopes = reinterpret_cast<float*>(take(TILE_ROWS * width));
    weights = take(QUERIES / PACK<T> * width);
    changes = take(QUERIES / PACK<T> * width);
    change_rows = reinterpret_cast<T*>(PACK<T> == 1 ? changes : take(QUERIES / PACK<T> * width));
    queries = take(block.size());
    outer = take(block.size());
    dkey = reinterpret_cast<float*>(take(length * out_width));
    dvalue = reinterpret_cast<float*>(take(length * out_width));
    dquery = reinterpret_cast<float*>(take(TILE_ROWS * out_width));
    end = at;
  }
};

template <class T>
int64_t attention_backward_space(int64_t length, int64_t size) {
  return Workspace<T>(length, size, nullptr).end - static_cast<Unit*>(nullptr);
}

// One query's inputs for the gradients of its scores.
struct Row {
  const float *scores, *slopes;
  // Number of keys that it sees; 0 for padding.
  int64_t valid;
  float normaliser, shared;
};

// Weights of keys [i, i + LANES), and the gradients of their scores.
INLINE void slopes_of(const Row& row, int64_t i, float scale, Floats* weights, Floats* changes) {
  Ints lane;
  for (int64_t j = 0; j < LANES; ++j) lane[j] = static_cast<int32_t>(j);
  const Ints seen = lane < static_cast<int32_t>(row.valid - i);
  const Floats nothing = {};
  const Floats p = exponential(load(row.scores + i) * scale - row.normaliser);
  *weights = seen ? p : nothing;
  *changes = seen ? p * (load(row.slopes + i) - row.shared) * scale : nothing;
}

INLINE void store_pair(Unit* to, Floats first, Floats second) {
  const Words both = __builtin_convertvector(narrowed(first), Words) | (__builtin_convertvector(narrowed(second), Words) << 16);
  memcpy(to, &both, sizeof both);
}

template <class T>
void attention_backward(const Head<T>& head, const Unit* shared, const T* out, const T* dout, const float* normalisers,
                        int64_t heads, T* dquery, float* dkey, float* dvalue, Unit* space) {
  const Packed<T> packed(head.length, head.size, true, shared);
  const Workspace<T> memory(head.length, head.size, space);
  const int64_t width = memory.width, out_width = memory.out_width, row = head.query_row / PACK<T>;
  memset(memory.dkey, 0, size_of(head.length * out_width) * sizeof(float));
  memset(memory.dvalue, 0, size_of(head.length * out_width) * sizeof(float));
  for (int64_t first = head.before; first < head.length; first += QUERIES) {
    const int64_t count = smaller(QUERIES, head.length - first), seen = first + count, query = first - head.before;
    for (int64_t start = 0; start < count; start += TILE_ROWS) {
      const int64_t rows = smaller(TILE_ROWS, count - start), at = (query + start) * head.query_row;
      const int64_t keys = first + start + rows;
      multiply<T>(rows, reinterpret_cast<const Unit*>(head.query + at), row, 1, packed.keys, keys, 0,
                  packed.keys.depth, memory.scores, width, false);
      multiply<T>(rows, reinterpret_cast<const Unit*>(dout + at), row, 1, packed.values, keys, 0, packed.values.depth,
                  memory.slopes, width, false);
      const auto describe = [&](int64_t r) {
        if (r >= rows) return Row{memory.scores, memory.slopes, 0, 0, 0};
        const int64_t own = query + start + r, place = own * head.query_row;
        return Row{memory.scores + r * width, memory.slopes + r * width, head.before + own + 1, normalisers[own * heads],
                   dot(dout + place, out + place, head.size)};
      };
      for (int64_t r = 0; r < rows; r += PACK<T>) {
        const int64_t to = (start + r) / PACK<T> * width;
        const Row one = describe(r), other = describe(r + 1);
        int64_t i = 0;
        for (; i < keys; i += LANES) {
          Floats p, q, d, e;
          slopes_of(one, i, head.scale, &p, &d);
          if constexpr (PACK<T> == 1) {
            store(reinterpret_cast<float*>(memory.weights + to + i), p);
            store(reinterpret_cast<float*>(memory.changes + to + i), d);
          } else {
            slopes_of(other, i, head.scale, &q, &e);
            store_pair(memory.weights + to + i, p, q);
            store_pair(memory.changes + to + i, d, e);
            store(memory.change_rows + (start + r) * width + i, d);
            store(memory.change_rows + (start + r + 1) * width + i, e);
          }
        }
        // Later queries of the block see more keys than this tile.
        const int64_t unseen = larger(0, seen - i);
        memset(memory.weights + to + i, 0, size_of(unseen) * sizeof(Unit));
        memset(memory.changes + to + i, 0, size_of(unseen) * sizeof(Unit));
      }
      multiply<T>(rows, reinterpret_cast<const Unit*>(memory.change_rows + start * width), width / PACK<T>, 1,
                  packed.key_columns, head.size, 0, units<T>(keys), memory.dquery, out_width, false);
      for (int64_t r = 0; r < rows; ++r)
        finish(memory.dquery + r * out_width, head.size, 1.0f, false, dquery + at + r * head.query_row);
    }
    const Panels queries = panels<T>(head.size, count, memory.queries), outer = panels<T>(head.size, count, memory.outer);
    pack(queries, head.query + query * head.query_row, head.query_row, count, false);
    pack(outer, dout + query * head.query_row, head.query_row, count, false);
    for (int64_t key = 0; key < seen; key += TILE_ROWS) {
      // Queries before these keys do not see them.
      const int64_t rows = smaller(TILE_ROWS, seen - key), from = larger(0, key - first) / PACK<T>;
      multiply<T>(rows, memory.weights + key, 1, width, outer, head.size, from, outer.depth,
                  memory.dvalue + key * out_width, out_width, true);
      multiply<T>(rows, memory.changes + key, 1, width, queries, head.size, from, queries.depth,
                  memory.dkey + key * out_width, out_width, true);
    }
  }
  for (int64_t token = 0; token < head.length; ++token) {
    memcpy(dkey + token * head.query_row, memory.dkey + token * out_width, size_of(head.size) * sizeof(float));
    memcpy(dvalue + token * head.query_row, memory.dvalue + token * out_width, size_of(head.size) * sizeof(float));
  }
}

// One query of each head of a group against a cache.
template <class T>
void attend(const T* query, const T* keys, const T* values, float* scores, T* out, int64_t queries, int64_t size,
            int64_t count, float scale) {
  for (int64_t key = 0; key < count; ++key)
    for (int64_t q = 0; q < queries; ++q) scores[q * count + key] = dot(query + q * size, keys + key * size, size);
  for (int64_t q = 0; q < queries; ++q) {
    float* weights = scores + q * count;
    const float top = maximum(weights, count) * scale;
    const float total = exponentials(weights, count, scale, top, [&](int64_t i, Floats e, int64_t part) {
      store_part(weights + i, rounded<T>(e), part);
    });
    const float share = 1.0f / total;
    for (int64_t i = 0; i < size; i += 2 * LANES) {
      const int64_t part = smaller(LANES, size - i), rest = larger(0, smaller(LANES, size - i - LANES));
      Floats low = {}, high = {};
      if (rest == LANES) {
        for (int64_t key = 0; key < count; ++key) {
          low += load(values + key * size + i) * weights[key];
          high += load(values + key * size + i + LANES) * weights[key];
        }
      } else {
        for (int64_t key = 0; key < count; ++key) {
          low += load_part(values + key * size + i, part) * weights[key];
          if (rest > 0) high += load_part(values + key * size + i + LANES, rest) * weights[key];
        }
      }
      store_part(out + q * size + i, low * share, part);
      if (rest > 0) store_part(out + q * size + i + LANES, high * share, rest);
    }
  }
}

}  // namespace
}  // namespace luthier
