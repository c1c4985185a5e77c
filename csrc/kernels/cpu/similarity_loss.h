#pragma once

#include "kernels/cpu/capability.h"
#include "kernels/similarity_loss.h"

CCP_DECLARE_CPU_KERNEL(void, similarity_loss_forward, (const SimilarityProblem&, const SimilarityForward&))
CCP_DECLARE_CPU_KERNEL(void, similarity_loss_backward, (const SimilarityProblem&, const SimilarityBackward&))
