// Gated activation and rotary embedding, bf16. All arithmetic is in f32 and is rounded once.

DEVICE float sigmoid(float x) { return 1 / (1 + __expf(-x)); }

// y = silu(gate) · up.
KERNEL(ITEM_THREADS) swiglu_forward(const Eight* gate, const Eight* up, Eight* y, i64 eights) {
  for (i64 i = first_index(); i < eights; i += all_threads()) {
    float g[8], u[8];
    widen(gate[i], g);
    widen(up[i], u);
    for (int k = 0; k < 8; ++k) g[k] = g[k] * sigmoid(g[k]) * u[k];
    y[i] = narrowed(g);
  }
}

KERNEL(ITEM_THREADS) swiglu_backward(const Eight* gate, const Eight* up, const Eight* dy, Eight* dgate, Eight* dup,
                                     i64 eights) {
  for (i64 i = first_index(); i < eights; i += all_threads()) {
    float g[8], u[8], d[8];
    widen(gate[i], g);
    widen(up[i], u);
    widen(dy[i], d);
    for (int k = 0; k < 8; ++k) {
      const float s = sigmoid(g[k]), active = g[k] * s, slope = s * (1 + g[k] * (1 - s));
      g[k] = d[k] * u[k] * slope;
      u[k] = d[k] * active;
    }
    dgate[i] = narrowed(g);
    dup[i] = narrowed(u);
  }
}

// Rotates the eight elements at `from` and those `half` further by the angles at cos and sin; direction -1 rotates back.
DEVICE void turn(const bf16* from, const bf16* cos, const bf16* sin, bf16* to, u32 half, float direction) {
  float a[8], b[8], c[8], s[8];
  load_eight(from, a);
  load_eight(from + half, b);
  load_eight(cos, c);
  load_eight(sin, s);
  for (int k = 0; k < 8; ++k) {
    const float first = a[k], second = b[k], turn = s[k] * direction;
    a[k] = first * c[k] - second * turn;
    b[k] = second * c[k] + first * turn;
  }
  store_eight(to, a);
  store_eight(to + half, b);
}

DEVICE void copy_eight(const bf16* from, bf16* to) {
  *reinterpret_cast<Eight*>(to) = *reinterpret_cast<const Eight*>(from);
}

// One of a head's rotated and copied eights: the first 2 · half dimensions are rotated by cos and sin [half].
DEVICE void turn_part(const bf16* head, const bf16* cos, const bf16* sin, bf16* to, u32 part, u32 half,
                      float direction) {
  const u32 turned = half / 8;
  if (part < turned) return turn(head + 8 * part, cos + 8 * part, sin + 8 * part, to + 8 * part, half, direction);
  const u32 at = 2 * half + 8 * (part - turned);
  copy_eight(head + at, to + at);
}

// Rotates the first 2 · half dimensions of every head of x [tokens, heads, size] by cos and sin [tokens, half], and
// copies the others; direction -1 rotates back. half and size are multiples of 8. `items` is the number of rotated
// and copied eights.
KERNEL(ITEM_THREADS) rope(const bf16* x, const bf16* cos, const bf16* sin, bf16* y, u32 items, u32 heads, u32 size,
                          u32 half, float direction) {
  const u32 each = (size - half) / 8;
  for (u32 i = static_cast<u32>(first_index()); i < items; i += static_cast<u32>(all_threads())) {
    const u32 part = i % each, head = i / each;
    const i64 start = static_cast<i64>(head) * size, angle = static_cast<i64>(head / heads) * half;
    turn_part(x + start, cos + angle, sin + angle, y + start, part, half, direction);
  }
}

// Rotates queries [rows · width, heads, size] as `rope` does, to y, and keys [rows · width, groups, size], to `keys`
// [rows, groups, capacity, size]; copies values to `values`. `items` is the number of rotated and copied eights.
KERNEL(ITEM_THREADS) rope_into_cache(const bf16* query, const bf16* key, const bf16* value, const bf16* cos,
                                     const bf16* sin, bf16* y, bf16* keys, bf16* values, u32 items,
                                     NewTokens tokens) {
  const u32 each = (tokens.size - tokens.half) / 8, of_queries = tokens.heads * each;
  const u32 of_keys = tokens.groups * each, whole = tokens.size / 8, all = of_queries + of_keys + tokens.groups * whole;
  for (u32 i = static_cast<u32>(first_index()); i < items; i += static_cast<u32>(all_threads())) {
    const u32 token = i / all, row = token / tokens.width, column = token % tokens.width;
    const i64 angle = static_cast<i64>(token) * tokens.half;
    u32 part = i % all;
    if (part < of_queries) {
      const i64 head = (static_cast<i64>(token) * tokens.heads + part / each) * tokens.size;
      turn_part(query + head, cos + angle, sin + angle, y + head, part % each, tokens.half, 1);
      continue;
    }
    part -= of_queries;
    const i64* places = static_cast<const i64*>(tokens.places);
    const i64 place = places ? places[row * tokens.stride + column] : tokens.start + column;
    const bool is_key = part < of_keys;
    const u32 group = is_key ? part / each : (part - of_keys) / whole;
    const i64 from = (static_cast<i64>(token) * tokens.groups + group) * tokens.size;
    const i64 to = ((static_cast<i64>(row) * tokens.groups + group) * tokens.capacity + place) * tokens.size;
    if (is_key) {
      turn_part(key + from, cos + angle, sin + angle, keys + to, part % each, tokens.half, 1);
    } else {
      const u32 at = 8 * ((part - of_keys) % whole);
      copy_eight(value + from + at, values + to + at);
    }
  }
}
