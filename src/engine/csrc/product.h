// Matrix products. The summed dimension is counted in units of 32 bits: one f32 number, or two consecutive bf16
// numbers, which AVX512_BF16 multiplies and adds at once. The left operand is read in place, one unit at a time for
// a whole vector of columns. The right operand is copied first, a panel of columns at a time, so that the innermost
// loop reads it sequentially (Goto and van de Geijn, ACM TOMS 34(3), 2008, with the panel in the second-level
// cache).
#pragma once

#include "vectors.h"

namespace luthier {
namespace {

// Numbers in one unit.
template <class T>
constexpr int64_t PACK = static_cast<int64_t>(sizeof(Unit) / sizeof(T));

// Rows of the left operand and vectors of columns whose sums are kept in registers.
constexpr int64_t TILE_ROWS = LANES == 16 ? 8 : 4;
constexpr int64_t TILE_VECTORS = 3;

// A product of up to DEPTH units is computed panel by panel. A deeper one is computed SLICE units at a time, for
// all panels of a task before the next slice, so that the right operand, which is too large for any cache, is read
// from memory once.
constexpr int64_t DEPTH = 768, SLICE = 256;

INLINE Ints load_units(const Unit* from) {
  Ints v;
  memcpy(&v, from, sizeof v);
  return v;
}

INLINE Unit load_unit(const void* from) {
  Unit unit;
  memcpy(&unit, from, sizeof unit);
  return unit;
}

// sums + a · b, unit by unit.
template <class T>
INLINE Floats fuse(Floats sums, Ints a, Ints b);

template <>
inline __attribute__((always_inline)) Floats fuse<float>(Floats sums, Ints a, Ints b) {
  return sums + (Floats)a * (Floats)b;
}

template <>
inline __attribute__((always_inline)) Floats fuse<bf16>(Floats sums, Ints a, Ints b) {
#if defined(__AVX512BF16__)
  return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
  const Words upper = Words{} + 0xFFFF0000u;
  sums += (Floats)((Words)a << 16) * (Floats)((Words)b << 16);
  return sums + (Floats)((Words)a & upper) * (Floats)((Words)b & upper);
#endif
}

// c [ROWS, VECTORS · LANES] (+)= a · b over `depth` units. a(i, u) = a[i · row + u · step] in units; b is a panel.
template <class T, int64_t ROWS, int64_t VECTORS>
void tile(const Unit* a, int64_t row, int64_t step, const Unit* b, int64_t depth, float* c, int64_t c_row, bool add) {
  Floats sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int64_t i = 0; i < ROWS; ++i)
#pragma GCC unroll 3
    for (int64_t j = 0; j < VECTORS; ++j) sums[i][j] = Floats{};
  for (int64_t u = 0; u < depth; ++u) {
    Ints right[VECTORS];
#pragma GCC unroll 3
    for (int64_t j = 0; j < VECTORS; ++j) right[j] = load_units(b + j * LANES);
#pragma GCC unroll 8
    for (int64_t i = 0; i < ROWS; ++i) {
      const Ints left = Ints{} + load_unit(a + i * row);
#pragma GCC unroll 3
      for (int64_t j = 0; j < VECTORS; ++j) sums[i][j] = fuse<T>(sums[i][j], left, right[j]);
    }
    a += step;
    b += VECTORS * LANES;
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < ROWS; ++i)
#pragma GCC unroll 3
    for (int64_t j = 0; j < VECTORS; ++j) {
      float* to = c + i * c_row + j * LANES;
      store(to, add ? load(to) + sums[i][j] : sums[i][j]);
    }
}

template <class T, int64_t VECTORS>
INLINE void tile_rows(int64_t rows, const Unit* a, int64_t row, int64_t step, const Unit* b, int64_t depth, float* c,
                      int64_t c_row, bool add) {
  int64_t i = 0;
  for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
    tile<T, TILE_ROWS, VECTORS>(a + i * row, row, step, b, depth, c + i * c_row, c_row, add);
  if (TILE_ROWS > 4 && i + 4 <= rows) {
    tile<T, 4, VECTORS>(a + i * row, row, step, b, depth, c + i * c_row, c_row, add);
    i += 4;
  }
  for (; i < rows; ++i) tile<T, 1, VECTORS>(a + i * row, row, step, b, depth, c + i * c_row, c_row, add);
}

// The same for any number of rows, with a panel of `vectors` vectors.
template <class T>
void multiply_panel(int64_t rows, int64_t vectors, const Unit* a, int64_t row, int64_t step, const Unit* b,
                    int64_t depth, float* c, int64_t c_row, bool add) {
  switch (vectors) {
    case 1: return tile_rows<T, 1>(rows, a, row, step, b, depth, c, c_row, add);
    case 2: return tile_rows<T, 2>(rows, a, row, step, b, depth, c, c_row, add);
    default: return tile_rows<T, 3>(rows, a, row, step, b, depth, c, c_row, add);
  }
}

// Vectors in each panel of a matrix of `columns` columns, split as evenly as possible.
INLINE int64_t panel_vectors(int64_t columns) {
  return ceiling(columns, LANES * ceiling(columns, LANES * TILE_VECTORS));
}

template <class T>
INLINE int64_t units(int64_t depth) {
  return ceiling(depth, PACK<T>);
}

// ---- Copies of the right operand: out[u · width + j] is unit u of column j; anything outside it is zero.

// Column j is a row of memory: b(l, j) = b[j · row + l].
template <class T>
void pack_rows(const T* b, int64_t row, int64_t depth, int64_t columns, int64_t width, Unit* out) {
  const int64_t whole = depth / PACK<T>, all_units = units<T>(depth);
  int64_t j = 0;
#if defined(__AVX512F__)
  // Blocks of 16 × 16 units are transposed in registers, by swaps over distances 8, 4, 2, 1.
  for (; j + 16 <= columns; j += 16) {
    int64_t u = 0;
    for (; u + 16 <= whole; u += 16) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) v[i] = _mm512_loadu_si512(b + (j + i) * row + u * PACK<T>);
#pragma GCC unroll 4
      for (int64_t distance = 8; distance > 0; distance /= 2) {
        const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m512i over = _mm512_set1_epi32(static_cast<int>(distance));
        const __mmask16 upper = _mm512_test_epi32_mask(lane, over);
        // Lane numbers from 16 refer to the second operand.
        const __m512i first = _mm512_mask_add_epi32(lane, upper, lane, _mm512_sub_epi32(_mm512_set1_epi32(16), over));
        const __m512i second =
            _mm512_mask_add_epi32(_mm512_add_epi32(lane, over), upper, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i) {
          if (i & distance) continue;
          const __m512i one = v[i], other = v[i + distance];
          v[i] = _mm512_permutex2var_epi32(one, first, other);
          v[i + distance] = _mm512_permutex2var_epi32(one, second, other);
        }
      }
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) _mm512_storeu_si512(out + (u + i) * width + j, v[i]);
    }
    for (; u < whole; ++u)
      for (int64_t i = 0; i < 16; ++i) out[u * width + j + i] = load_unit(b + (j + i) * row + u * PACK<T>);
  }
#endif
  for (; j < columns; ++j)
    for (int64_t u = 0; u < whole; ++u) out[u * width + j] = load_unit(b + j * row + u * PACK<T>);
  if (whole < all_units) {
    for (j = 0; j < columns; ++j) {
      T last[PACK<T>] = {};
      last[0] = b[j * row + depth - 1];
      out[whole * width + j] = load_unit(last);
    }
  }
  if (columns == width) return;
  for (int64_t u = 0; u < all_units; ++u) memset(out + u * width + columns, 0, size_of(width - columns) * sizeof(Unit));
}

INLINE void pair(const bf16* first, const bf16* second, Unit* out) {
  Halves low, high;
  memcpy(&low, first, sizeof low);
  memcpy(&high, second, sizeof high);
  const Words both = __builtin_convertvector(low, Words) | (__builtin_convertvector(high, Words) << 16);
  memcpy(out, &both, sizeof both);
}

// Rows fetched ahead of use.
constexpr int64_t ROWS_AHEAD = 16;

// Row l is contiguous: b(l, j) = b[l · row + j].
template <class T>
void pack_columns(const T* b, int64_t row, int64_t depth, int64_t columns, int64_t width, Unit* out) {
  for (int64_t u = 0; u < units<T>(depth); ++u) {
    Unit* to = out + u * width;
    const T* first = b + u * PACK<T> * row;
    // Hardware prefetching does not follow rows that are far apart.
    for (int64_t ahead = 0; ahead < PACK<T>; ++ahead)
      for (int64_t j = 0; j < columns; j += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(first + (ROWS_AHEAD + ahead) * row + j, 0, 3);
    if (PACK<T> == 1) {
      memcpy(to, first, size_of(columns) * sizeof(Unit));
    } else {
      const bool alone = u * PACK<T> + 1 == depth;
      const bf16 *low = reinterpret_cast<const bf16*>(first), *high = low + row;
      int64_t j = 0;
      for (; !alone && j + LANES <= columns; j += LANES) pair(low + j, high + j, to + j);
      for (; j < columns; ++j) {
        const bf16 both[2] = {low[j], alone ? bf16{} : high[j]};
        to[j] = load_unit(both);
      }
    }
    memset(to + columns, 0, size_of(width - columns) * sizeof(Unit));
  }
}

// Adds a finished row of sums to the result.
template <class T>
INLINE void finish(const float* sums, int64_t count, float scale, bool add, T* to) {
  int64_t j = 0;
  for (; j + LANES <= count; j += LANES) {
    const Floats v = load(sums + j) * scale;
    store(to + j, add ? load(to + j) + v : v);
  }
  if (j == count) return;
  const Floats v = load_part(sums + j, count - j) * scale;
  store_part(to + j, add ? load_part(to + j, count - j) + v : v, count - j);
}

template <class T>
INLINE int64_t slice(const Product<T>& p) {
  const int64_t depth = units<T>(p.depth);
  return depth <= DEPTH ? depth : SLICE;
}

// Copies `columns` columns of a right operand from `start`, numbers [at, at + count) of each.
template <class T>
INLINE void pack(const T* right, int64_t row, bool by_rows, int64_t start, int64_t at, int64_t count, int64_t columns,
                 int64_t width, Unit* space) {
  if (by_rows) pack_rows(right + start * row + at, row, count, columns, width, space);
  else pack_columns(right + at * row + start, row, count, columns, width, space);
}

// One task of a product: rows [first, last) of some panels of columns. `space` has a slice of a panel, a panel of
// the second right operand, then sums.
template <class T>
void product(const Product<T>& p, int64_t first_panel, int64_t last_panel, int64_t first, int64_t last, Unit* space) {
  const int64_t vectors = panel_vectors(p.columns), width = vectors * LANES;
  const int64_t depth = units<T>(p.depth), step = slice(p), more_depth = units<T>(p.more_depth);
  Unit* more = space + step * width;
  float* sums = reinterpret_cast<float*>(more + more_depth * width);
  for (int64_t u = 0; u < depth; u += step) {
    const int64_t part = smaller(step, depth - u), at = u * PACK<T>, numbers = smaller(part * PACK<T>, p.depth - at);
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t start = panel * width, columns = smaller(width, p.columns - start);
      const bool complete = u + part == depth;
      pack(p.right, p.right_row, p.right_by_rows, start, at, numbers, columns, width, space);
      if (complete && more_depth > 0)
        pack(p.more_right, p.more_right_row, p.more_right_by_rows, start, 0, p.more_depth, columns, width, more);
      for (int64_t i = first; i < last; i += TILE_ROWS) {
        const int64_t rows = smaller(TILE_ROWS, last - i);
        const Unit* left = p.left + i * p.left_row + u * p.left_step;
        // Sums that are completed here stay in the first-level cache until they are written.
        float* here = step == depth ? sums : sums + ((panel - first_panel) * (last - first) + i - first) * width;
        multiply_panel<T>(rows, vectors, left, p.left_row, p.left_step, space, part, here, width, u > 0);
        if (!complete) continue;
        if (more_depth > 0)
          multiply_panel<T>(rows, vectors, p.more_left + i * p.more_left_row, p.more_left_row, 1, more, more_depth, here,
                            width, true);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t to = (i + r) * p.out_row + start;
          if (p.total) finish(here + r * width, columns, p.scale, p.add, p.total + to);
          else finish(here + r * width, columns, p.scale, p.add, p.out + to);
        }
      }
    }
  }
}

template <class T>
ProductShape product_shape(const Product<T>& p) {
  const int64_t width = panel_vectors(p.columns) * LANES, step = slice(p);
  const int64_t panels = (step + units<T>(p.more_depth)) * width;
  return {ceiling(p.columns, width), TILE_ROWS, step < units<T>(p.depth), panels, width};
}

// A transposed left operand: out(i, u) = out[u · rows + i].
template <class T>
void pack_left(const T* from, int64_t row, int64_t depth, int64_t rows, Unit* out, int64_t start, int64_t end) {
  for (int64_t u = start; u < end; ++u) {
    const int64_t at = u * PACK<T>;
    pack_columns(from + at * row, row, smaller(PACK<T>, depth - at), rows, rows, out + u * rows);
  }
}

// Few rows times a matrix [rows, columns], where reading the matrix dominates: y [tokens, rows] = x · weightᵀ for
// rows [start, end).
template <class T, int TOKENS>
INLINE void some_rows(const float* x, const T* weight, T* y, int64_t columns, int64_t rows, int64_t start, int64_t end) {
  // Prefetched in software, because hardware prefetching stops at each page.
  constexpr int64_t ahead = 4096 / static_cast<int64_t>(sizeof(T));
  for (int64_t row = start; row < end; ++row) {
    const T* from = weight + row * columns;
    Floats totals[TOKENS][2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= columns; i += 2 * LANES) {
      __builtin_prefetch(from + i + ahead, 0, 0);
      const Floats low = load(from + i), high = load(from + i + LANES);
      for (int m = 0; m < TOKENS; ++m) {
        totals[m][0] += low * load(x + m * columns + i);
        totals[m][1] += high * load(x + m * columns + i + LANES);
      }
    }
    for (; i < columns; i += LANES) {
      const int64_t part = smaller(LANES, columns - i);
      for (int m = 0; m < TOKENS; ++m) totals[m][0] += load_part(from + i, part) * load_part(x + m * columns + i, part);
    }
    for (int m = 0; m < TOKENS; ++m) store_part(y + m * rows + row, all(sum(totals[m][0] + totals[m][1])), 1);
  }
}

template <class T>
void rows_product(const float* x, const T* weight, T* y, int64_t tokens, int64_t columns, int64_t rows, int64_t start,
                  int64_t end) {
  int64_t m = 0;
  const auto at = [&](int64_t token) { return x + token * columns; };
  for (; m + 4 <= tokens; m += 4) some_rows<T, 4>(at(m), weight, y + m * rows, columns, rows, start, end);
  for (; m + 2 <= tokens; m += 2) some_rows<T, 2>(at(m), weight, y + m * rows, columns, rows, start, end);
  for (; m < tokens; ++m) some_rows<T, 1>(at(m), weight, y + m * rows, columns, rows, start, end);
}

}  // namespace
}  // namespace luthier
