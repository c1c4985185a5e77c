// A panel: some embeddings of one side, converted to the compute type, normalised, and padded with zeros to whole
// vectors, so that everything after it is plain aligned arithmetic. Panels are small or belong to the shorter side; the
// longer side only ever exists one panel at a time.
#pragma once

#include "common/buffer.h"
#include "common/convert.h"
#include "common/simd.h"
#include "kernels/similarity_loss.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T>
using Integer = typename VecOf<T>::integer;

template <class T>
struct Panel {
  T* values;           // [count, stride] normalised
  T* squared_norm;     // [count] of the normalised vectors
  T* scale;            // [count] normalised = scale · original
  Integer<T>* labels;  // [count]
  Integer<T>* ids;     // [count] index within the side
  int64_t count;
  int64_t stride;  // numbers from vector to vector
  int64_t width;   // of a vector with its padding

  Panel from(int64_t begin, int64_t n) const {
    return {
        values + begin * stride, squared_norm + begin, scale + begin, labels + begin, ids + begin, n, stride, width};
  }
};

// The stride for vectors of this width: an odd number of cache lines. A power of two would put a column of a panel into
// few of the cache's sets, where it does not stay.
template <class T>
constexpr int64_t spread_stride(int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return ((width + kLine - 1) / kLine | 1) * kLine;
}

template <class T>
class PanelStorage {
 public:
  PanelStorage(int64_t capacity, int64_t stride) : PanelStorage(capacity, stride, stride) {}
  PanelStorage(int64_t capacity, int64_t stride, int64_t width)
      : values_(capacity * stride),
        norms_(capacity),
        scales_(capacity),
        labels_(capacity),
        ids_(capacity),
        panel_{values_, norms_, scales_, labels_, ids_, capacity, stride, width} {}
  const Panel<T>& panel() const { return panel_; }

 private:
  Buffer<T> values_, norms_, scales_;
  Buffer<Integer<T>> labels_, ids_;
  Panel<T> panel_;
};

// Halves are added to halves: that takes log2(lanes) steps, where lane after lane would take as many as there are
// lanes.
template <class T, int lanes>
struct VecOfLanes {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};
template <class T, int lanes = kLanes<T>>
CCP_HD T sum_lanes(typename VecOfLanes<T, lanes>::type v) {
  if constexpr (lanes == 2) {
    return v[0] + v[1];
  } else {
    typename VecOfLanes<T, lanes / 2>::type half[2];
    memcpy(half, &v, sizeof(v));
    return sum_lanes<T, lanes / 2>(half[0] + half[1]);
  }
}

template <class T>
CCP_HD T dot(const T* a, const T* b, int64_t width) {
  Vec<T> sum{};
  for (int64_t d = 0; d < width; d += kLanes<T>) sum = sum + load(a + d) * load(b + d);
  return sum_lanes<T>(sum);
}

// ‖v‖, also where the squares leave float's range.
template <class T>
CCP_HD double norm(const T* v, int64_t width) {
  const T squares = dot(v, v, width);
  if (squares > T(1e-30) && squares < T(1e30)) return ::sqrt(double(squares));
  double exact = 0;
  for (int64_t d = 0; d < width; ++d) exact += double(v[d]) * double(v[d]);
  return ::sqrt(exact);
}

template <class T>
CCP_HD T normalizing_scale(Normalize normalize, const T* v, int64_t width) {
  if (normalize == Normalize::kNone) return T(1);
  const double length = norm(v, width);
  if (normalize == Normalize::kBall) return length > 1 ? T(1 / length) : T(1);
  return length > 1e-12 ? T(1 / length) : T(length * 0);  // a zero vector stays zero, NaN stays NaN
}

// Loads items chosen[0..count) (chosen == nullptr: begin..begin + count) of a side, and zeros up to `padded`.
template <class T>
inline void load_panel(const EmbeddingSide& side, int64_t dim, Normalize normalize, const int64_t* chosen,
                       int64_t begin, int64_t count, int64_t padded, const Panel<T>& panel) {
  const int64_t stride = panel.stride, width = panel.width;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t item = chosen ? chosen[begin + i] : begin + i;
    T* v = panel.values + i * stride;
    read_elements(side.data, side.dtype, item * dim, dim, v);
    for (int64_t d = dim; d < width; ++d) v[d] = T(0);
    const T scale = normalizing_scale(normalize, v, width);
    if (scale != T(1))
      for (int64_t d = 0; d < width; d += kLanes<T>) store(v + d, load(v + d) * scale);
    panel.scale[i] = scale;
    panel.squared_norm[i] = dot(v, v, width);
    panel.labels[i] = Integer<T>(side.labels ? side.labels[item] : item / side.group);
    panel.ids[i] = Integer<T>(item);
  }
  for (int64_t i = count; i < padded; ++i) {
    memset(panel.values + i * stride, 0, sizeof(T) * size_t(width));
    panel.scale[i] = panel.squared_norm[i] = T(0);
    panel.labels[i] = panel.ids[i] = Integer<T>(-1);
  }
}

// Writes the gradient with respect to the original v, given the gradient g with respect to the normalised v̂ and the
// multiple `along` of v̂ that is still to be added: scale · (I - v̂v̂ᵀ)(g + along·v̂); without the tangent projection
// where the normalisation was the identity.
template <class T>
inline void store_gradient(T* g, T along, const Panel<T>& panel, int64_t i, Normalize normalize, int64_t dim, void* out,
                           Dtype dtype) {
  const T* v = panel.values + i * panel.stride;
  const T scale = panel.scale[i];
  if (normalize == Normalize::kUnit || (normalize == Normalize::kBall && scale < T(1)))
    along = -dot(g, v, panel.width);  // g + along·v̂ loses its part along v̂, whatever `along` was
  const int64_t begin = int64_t(panel.ids[i]) * dim;
  // Straight to where it belongs, if that takes whole vectors of these numbers.
  const bool direct = dtype == (sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64) && dim == panel.width;
  T* to = direct ? static_cast<T*>(out) + begin : g;
  for (int64_t d = 0; d < panel.width; d += kLanes<T>) store(to + d, (load(g + d) + load(v + d) * along) * scale);
  if (!direct) write_elements(g, dim, out, dtype, begin);
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
