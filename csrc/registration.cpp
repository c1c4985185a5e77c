// Every operator of ccp_fast, in one list. Fakes and autograd formulas are registered from Python (ccp_fast/ops/).
#include "ops/ops.h"

STABLE_TORCH_LIBRARY(ccp_fast, m) {
  m.def("build_info() -> str");

  m.def(
      "farthest_points(Tensor points, Tensor offsets, Tensor? seeds, Tensor? seed_offsets, int k, str normalize, "
      "bool pad) -> (Tensor indices, Tensor radii)");

  // Anchors [M, D] against references [N, D] or [C, K, D]; indices count the rows of the latter as [C·K, D].
  m.def(
      "nearest_references(Tensor anchors, Tensor references, int k, str normalize, bool exclude_self, bool allow_tf32) "
      "-> (Tensor indices, Tensor distances)");

  // grads belong to the leading params; the others count in the penalty alone.
  m.def("projection_grad_(Tensor(a!)[] grads, Tensor[] params, Tensor[] previous, float lam) -> Tensor");

  // Samples `anchors` [M, D] against `references`: proxies [C, K, D], or [N, D] with reference_labels. The loss's rows
  // are the samples, or the references with proxy_rows. allow_tf32 lets a GPU round factors to tf32. Returns the loss,
  // and what backward needs.
  m.def(
      "similarity_loss(Tensor anchors, Tensor references, Tensor labels, Tensor? reference_labels, str loss, "
      "float[] parameters, str normalize, str reduction, bool proxy_rows, bool exclude_self, bool allow_tf32) "
      "-> (Tensor loss, Tensor row_state, Tensor normalizer, Tensor active)");
  m.def(
      "similarity_loss_backward(Tensor grad_loss, Tensor anchors, Tensor references, Tensor labels, "
      "Tensor? reference_labels, Tensor row_state, Tensor normalizer, Tensor active, str loss, float[] parameters, "
      "str normalize, str reduction, bool proxy_rows, bool exclude_self, bool allow_tf32, bool need_anchors, "
      "bool need_references) "
      "-> (Tensor grad_anchors, Tensor grad_references)");

  // The same loss where `proxies` [C, K, D] are a shard of all there are. Labels count from the shard's first class;
  // those outside [0, C) are of classes elsewhere. Every shard gathers the states of the loss's rows; `finish` puts the
  // states of all shards together, in the order given, into what backward needs and each row's parts: its positive and
  // negative loss, and the numbers of active and of all terms of either. With rows of samples, triplets need each
  // row's positives, wherever these are: `positives` [M, K] are their distances, and `counts` [M, K], for backward, the
  // pairs they take part in, summed over the shards.
  m.def(
      "similarity_shard_states(Tensor anchors, Tensor proxies, Tensor labels, Tensor? positives, str loss, "
      "float[] parameters, str normalize, bool proxy_rows, bool allow_tf32) -> (Tensor states, Tensor active)");
  m.def(
      "similarity_finish(Tensor states, int columns, str loss, float[] parameters) "
      "-> (Tensor row_state, Tensor row_parts)");
  m.def(
      "similarity_shard_counts(Tensor anchors, Tensor proxies, Tensor labels, Tensor positives, str loss, "
      "float[] parameters, str normalize, bool allow_tf32) -> Tensor");
  m.def(
      "similarity_shard_backward(Tensor grad_loss, Tensor anchors, Tensor proxies, Tensor labels, Tensor? positives, "
      "Tensor? counts, Tensor row_state, Tensor normalizer, Tensor active, str loss, float[] parameters, "
      "str normalize, bool proxy_rows, bool allow_tf32, bool need_anchors, bool need_proxies) "
      "-> (Tensor grad_anchors, Tensor grad_proxies)");

  // The regulariser of soft_triple, of proxies [C, K, D].
  m.def("centre_spread(Tensor proxies) -> Tensor");
  m.def("centre_spread_backward(Tensor grad, Tensor proxies) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ccp_fast, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&ccp::build_info)); }

STABLE_TORCH_LIBRARY_IMPL(ccp_fast, CPU, m) {
  m.impl("centre_spread", TORCH_BOX(&ccp::centre_spread_cpu));
  m.impl("centre_spread_backward", TORCH_BOX(&ccp::centre_spread_backward_cpu));
  m.impl("farthest_points", TORCH_BOX(&ccp::farthest_points_cpu));
  m.impl("nearest_references", TORCH_BOX(&ccp::nearest_references_cpu));
  m.impl("projection_grad_", TORCH_BOX(&ccp::projection_grad_cpu_));
  m.impl("similarity_loss", TORCH_BOX(&ccp::similarity_loss_cpu));
  m.impl("similarity_loss_backward", TORCH_BOX(&ccp::similarity_loss_backward_cpu));
  m.impl("similarity_shard_states", TORCH_BOX(&ccp::similarity_shard_states_cpu));
  m.impl("similarity_finish", TORCH_BOX(&ccp::similarity_finish_cpu));
  m.impl("similarity_shard_counts", TORCH_BOX(&ccp::similarity_shard_counts_cpu));
  m.impl("similarity_shard_backward", TORCH_BOX(&ccp::similarity_shard_backward_cpu));
}

namespace ccp {
namespace {

// Stands in for an operator's CUDA kernel where there is none, so that the error is one sentence.
template <class Function>
struct NoCudaKernel;

template <class Result, class... Arguments>
struct NoCudaKernel<Result(Arguments...)> {
  static Result call(Arguments...) {
    const std::string missing = cuda_missing();
    fail("expected CPU tensors, got CUDA tensors: ",
         missing.empty() ? "this operator has no CUDA kernel" : "this ccp_fast has no CUDA kernels, " + missing);
  }
};

}  // namespace
}  // namespace ccp

#define CCP_NO_CUDA_KERNEL(cpu) TORCH_BOX(&ccp::NoCudaKernel<decltype(ccp::cpu)>::call)

#ifdef CCP_HAVE_CUDA
#define CCP_CUDA_KERNEL(cuda, cpu) TORCH_BOX(&ccp::cuda)
#else
#define CCP_CUDA_KERNEL(cuda, cpu) CCP_NO_CUDA_KERNEL(cpu)
#endif

STABLE_TORCH_LIBRARY_IMPL(ccp_fast, CUDA, m) {
  m.impl("centre_spread", CCP_CUDA_KERNEL(centre_spread_cuda, centre_spread_cpu));
  m.impl("centre_spread_backward", CCP_CUDA_KERNEL(centre_spread_backward_cuda, centre_spread_backward_cpu));
  m.impl("farthest_points", CCP_CUDA_KERNEL(farthest_points_cuda, farthest_points_cpu));
  m.impl("nearest_references", CCP_CUDA_KERNEL(nearest_references_cuda, nearest_references_cpu));
  m.impl("projection_grad_", CCP_CUDA_KERNEL(projection_grad_cuda_, projection_grad_cpu_));
  m.impl("similarity_loss", CCP_CUDA_KERNEL(similarity_loss_cuda, similarity_loss_cpu));
  m.impl("similarity_loss_backward", CCP_CUDA_KERNEL(similarity_loss_backward_cuda, similarity_loss_backward_cpu));
  m.impl("similarity_shard_states", CCP_CUDA_KERNEL(similarity_shard_states_cuda, similarity_shard_states_cpu));
  m.impl("similarity_finish", CCP_CUDA_KERNEL(similarity_finish_cuda, similarity_finish_cpu));
  m.impl("similarity_shard_counts", CCP_CUDA_KERNEL(similarity_shard_counts_cuda, similarity_shard_counts_cpu));
  m.impl("similarity_shard_backward", CCP_CUDA_KERNEL(similarity_shard_backward_cuda, similarity_shard_backward_cpu));
}
