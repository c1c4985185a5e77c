// ldmatrix: a warp loads four 8×8 matrices of 16-bit numbers from shared memory at once (sm_75 and up), as the PTX
// manual lays them out (section "ldmatrix"). Lane i says where row i % 8 of matrix i / 8 begins, eight numbers on a
// 16-byte boundary. With g = lane / 4 and t = lane % 4 a lane then has two elements of each matrix, the first in the
// lower half:
//   (g, 2t) and (g, 2t + 1), or transposed (2t, g) and (2t + 1, g).
#pragma once

#include <cstdint>

#include "common/cuda.h"

namespace ccp {

struct FourMatrices {
  uint32_t v[4];
};

template <bool transposed>
CCP_DEVICE FourMatrices load_matrices(const void* row) {
  FourMatrices mine;
#if defined(CCP_HOST_EMU)
  emu::check_matrix_row(row);
  const int g = emu::lane() / 4, t = emu::lane() % 4;
  emu::exchange(static_cast<const uint16_t*>(row), [&](auto of) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      emu::count_matrix(of, matrix);
      const auto element = [&](int r, int c) { return uint32_t(of(matrix * 8 + r)[c]); };
      mine.v[matrix] = transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                                  : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
    }
    return 0;
  });
#else
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(mine.v[0]), "=r"(mine.v[1]), "=r"(mine.v[2]), "=r"(mine.v[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(mine.v[0]), "=r"(mine.v[1]), "=r"(mine.v[2]), "=r"(mine.v[3])
                 : "r"(from)
                 : "memory");
#endif
  return mine;
}

}  // namespace ccp
