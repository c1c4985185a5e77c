// The driver makes the maps. The runtime hands out its function, so that nothing is linked with the driver's library.
#include "kernels/cuda/tensor_map.h"

#if defined(CCP_HOST_EMU)

#include <stdexcept>

namespace ccp {
namespace cuda {

cudaError_t make_tensor_map(const void* data, int64_t rows, int64_t columns, int box_rows, TensorMap* map) {
  if (reinterpret_cast<uintptr_t>(data) % 16 || columns % 8 || columns < 1 || rows < 1 || box_rows > 256)
    throw std::runtime_error("the driver refuses such a tensor map");
  *map = {static_cast<const unsigned char*>(data), columns, rows, box_rows};
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace ccp

#else

#include <cudaTypedefs.h>

namespace ccp {
namespace cuda {

namespace {

PFN_cuTensorMapEncodeTiled_v12000 encode_tiled() {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &status);
#endif
    const bool there = error == cudaSuccess && status == cudaDriverEntryPointSuccess;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(there ? found : nullptr);
  }();
  return function;
}

}  // namespace

// Both 16-bit types are copied as they are, so the map says bfloat16 of either.
cudaError_t make_tensor_map(const void* data, int64_t rows, int64_t columns, int box_rows, TensorMap* map) {
  if (!encode_tiled()) return cudaErrorNotSupported;
  const cuuint64_t sizes[2] = {cuuint64_t(columns), cuuint64_t(rows)}, strides[1] = {cuuint64_t(columns) * 2};
  const cuuint32_t box[2] = {kBoxColumns, cuuint32_t(box_rows)}, steps[2] = {1, 1};
  const CUresult result = encode_tiled()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes,
                                         strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                         CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace ccp

#endif
