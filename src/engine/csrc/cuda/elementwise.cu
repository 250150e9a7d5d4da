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

// Rotates the first 2 · half dimensions of every head of x [tokens, heads, size] by cos and sin [tokens, half], and
// copies the others; direction -1 rotates back. half and size are multiples of 8. `items` is the number of rotated
// and copied eights.
KERNEL(ITEM_THREADS) rope(const bf16* x, const bf16* cos, const bf16* sin, bf16* y, u32 items, u32 heads, u32 size,
                          u32 half, float direction) {
  const u32 turned = half / 8, each = turned + (size - 2 * half) / 8;
  for (u32 i = static_cast<u32>(first_index()); i < items; i += static_cast<u32>(all_threads())) {
    const u32 place = i % each, head = i / each, token = head / heads;
    const i64 start = static_cast<i64>(head) * size;
    if (place >= turned) {
      const i64 at = start + 2 * half + (place - turned) * 8;
      *reinterpret_cast<Eight*>(y + at) = *reinterpret_cast<const Eight*>(x + at);
      continue;
    }
    const i64 at = start + place * 8, angle = static_cast<i64>(token) * half + place * 8;
    float a[8], b[8], c[8], s[8];
    widen(*reinterpret_cast<const Eight*>(x + at), a);
    widen(*reinterpret_cast<const Eight*>(x + at + half), b);
    widen(*reinterpret_cast<const Eight*>(cos + angle), c);
    widen(*reinterpret_cast<const Eight*>(sin + angle), s);
    for (int k = 0; k < 8; ++k) {
      const float first = a[k], second = b[k], turn = s[k] * direction;
      a[k] = first * c[k] - second * turn;
      b[k] = second * c[k] + first * turn;
    }
    *reinterpret_cast<Eight*>(y + at) = narrowed(a);
    *reinterpret_cast<Eight*>(y + at + half) = narrowed(b);
  }
}
