// The update of parameters that are trained in f32 beside a working copy in bf16.

template <class Gradient>
DEVICE void update(const Gradient* gradient, float* parameter, float* first, float* second, bf16* working,
                   const float* step, const float* scale, const float* left_out, i64 eights, const AdamWSettings& settings) {
  if (*left_out == 1) return;
  const float by = scale ? *scale : 1;
  // 1 - beta^step, exact also where beta^step is nearly 1.
  const float size = settings.learning_rate / -expm1f(*step * settings.log_beta1);
  const float root = sqrtf(-expm1f(*step * settings.log_beta2));
  for (i64 i = first_index(); i < eights; i += all_threads()) {
    float g[8], p[8], m[8], v[8];
    load_eight(gradient + 8 * i, g);
    load_eight(parameter + 8 * i, p);
    load_eight(first + 8 * i, m);
    load_eight(second + 8 * i, v);
    for (int k = 0; k < 8; ++k) {
      g[k] *= by;
      p[k] -= settings.learning_rate * settings.weight_decay * p[k];
      m[k] = settings.beta1 * m[k] + settings.rest1 * g[k];
      v[k] = settings.beta2 * v[k] + settings.rest2 * g[k] * g[k];
      p[k] -= size * m[k] / (sqrtf(v[k]) / root + settings.epsilon);
    }
    store_eight(parameter + 8 * i, p);
    store_eight(first + 8 * i, m);
    store_eight(second + 8 * i, v);
    store_eight(working + 8 * i, p);
  }
}

// One AdamW update (arXiv 1711.05101, algorithm 2) of a parameter and its moments, in place, from its gradient times
// `scale` (or as it is, without), and the working copy of the new parameter. `step` counts this update. Nothing changes if
// *left_out is 1.
KERNEL(ITEM_THREADS) adamw_by_bf16(const bf16* gradient, float* parameter, float* first, float* second, bf16* working,
                                   const float* step, const float* scale, const float* left_out, i64 eights,
                                   AdamWSettings settings) {
  update(gradient, parameter, first, second, working, step, scale, left_out, eights, settings);
}

KERNEL(ITEM_THREADS) adamw_by_f32(const float* gradient, float* parameter, float* first, float* second, bf16* working,
                                  const float* step, const float* scale, const float* left_out, i64 eights,
                                  AdamWSettings settings) {
  update(gradient, parameter, first, second, working, step, scale, left_out, eights, settings);
}
