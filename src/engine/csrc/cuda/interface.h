// What kernels share with those who launch them.

// The most threads of a block. The compiler gives a kernel no more registers than so many threads can have, and the shim
// launches none with more.
enum Threads : unsigned {
  // Kernels whose threads take one item after another, and products of few tokens.
  ITEM_THREADS = 256,
  // Norms, whose blocks take one row each.
  NORM_THREADS = 512,
  // Cross entropy, whose rows are a vocabulary long.
  VOCABULARY_THREADS = 1024,
};

// Settings of AdamW. rest1 and rest2 are 1 - beta1 and 1 - beta2, which would lose digits in f32.
struct AdamWSettings {
  float learning_rate, beta1, beta2, rest1, rest2, log_beta1, log_beta2, weight_decay, epsilon;
};

// New tokens [rows, width] for a cache of `groups` heads of `size`, with room for `capacity` tokens a row. Token t of a
// row goes to places[row · stride + t], int64, or to start + t if places is null.
struct NewTokens {
  unsigned width, heads, groups, size, half;
  long long capacity, start, stride;
  const void* places;
};
