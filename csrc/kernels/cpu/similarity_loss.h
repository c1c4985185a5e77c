#pragma once

#include "kernels/cpu/capability.h"
#include "kernels/similarity_loss.h"

CCP_DECLARE_CPU_KERNEL(void, similarity_loss_forward, (const SimilarityProblem&, const SimilarityForward&))
CCP_DECLARE_CPU_KERNEL(void, similarity_loss_finish, (const SimilarityFinish&))
// [rows, known_positives.count]: in how many pairs with these columns each of a row's positives takes part.
CCP_DECLARE_CPU_KERNEL(void, similarity_loss_count, (const SimilarityProblem&, void*))
CCP_DECLARE_CPU_KERNEL(void, similarity_loss_backward, (const SimilarityProblem&, const SimilarityBackward&))
