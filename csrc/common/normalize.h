// How embeddings are normalised inside an op.
#pragma once

namespace ccp {

enum class Normalize : int {
  kNone,
  kUnit,  // v / ‖v‖, and zero for ‖v‖ <= 1e-12
  kBall,  // v / max(1, ‖v‖)
};

}  // namespace ccp
