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
