// kernels/centre_spread.h on the CPU.
#pragma once

#include "kernels/centre_spread.h"
#include "kernels/cpu/capability.h"
#include "kernels/similarity_loss.h"

namespace ccp {

struct CentreSpreadProblem {
  EmbeddingSide centres;  // [classes · group, dim], a class's one after another
  int64_t dim;
  ParallelFor parallel_for;
};

}  // namespace ccp

CCP_DECLARE_CPU_KERNEL(double, centre_spread, (const CentreSpreadProblem& problem))
// gradient [classes · group, dim] like the centres: `grad` times that of the value.
CCP_DECLARE_CPU_KERNEL(void, centre_spread_backward, (const CentreSpreadProblem& problem, double grad, void* gradient))
