// The most multiply-adds a core can do: independent chains of fused multiply-adds in registers, nothing else.
#include <stdint.h>

#if defined(__AVX512F__)
#define BYTES 64
#define CHAINS 16
#elif defined(__AVX__)
#define BYTES 32
#define CHAINS 10
#elif defined(__aarch64__)
#define BYTES 16
#define CHAINS 16
#else
#define BYTES 16
#define CHAINS 8
#endif

typedef float Vector __attribute__((vector_size(BYTES)));

// Does `steps` rounds and returns the floating-point operations done, two for each multiply-add.
double multiply_add(int64_t steps, float* sink) {
  const Vector x = (Vector){} + 0.999f, y = (Vector){} + 0.001f;
  Vector chain[CHAINS];
  for (int c = 0; c < CHAINS; ++c) chain[c] = (Vector){} + (float)c;
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 16
    for (int c = 0; c < CHAINS; ++c) chain[c] = chain[c] * x + y;
  }
  Vector sum = chain[0];
  for (int c = 1; c < CHAINS; ++c) sum += chain[c];
  *sink = sum[0];
  return 2.0 * (double)steps * CHAINS * (BYTES / sizeof(float));
}
