// Every operator's C++ entry point; csrc/registration.cpp binds them to the schemas.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/stable_abi.h"
#include "ops/tensor.h"

namespace ccp {

std::string build_info();
const char* cuda_architectures();  // "80,90a"; empty without CUDA kernels
const char* cuda_missing();        // the reason for that, in words

Tensor centre_spread_cpu(const Tensor& proxies);
Tensor centre_spread_cuda(const Tensor& proxies);
Tensor centre_spread_backward_cpu(const Tensor& grad, const Tensor& proxies);
Tensor centre_spread_backward_cuda(const Tensor& grad, const Tensor& proxies);

std::tuple<Tensor, Tensor> farthest_points_cpu(const Tensor& points, const Tensor& offsets,
                                               const std::optional<Tensor>& seeds,
                                               const std::optional<Tensor>& seed_offsets, int64_t k,
                                               const OpString& normalize, bool pad);

std::tuple<Tensor, Tensor> farthest_points_cuda(const Tensor& points, const Tensor& offsets,
                                                const std::optional<Tensor>& seeds,
                                                const std::optional<Tensor>& seed_offsets, int64_t k,
                                                const OpString& normalize, bool pad);

std::tuple<Tensor, Tensor> nearest_references_cpu(const Tensor& anchors, const Tensor& references, int64_t k,
                                                  const OpString& normalize, bool exclude_self, bool allow_tf32);

std::tuple<Tensor, Tensor> nearest_references_cuda(const Tensor& anchors, const Tensor& references, int64_t k,
                                                   const OpString& normalize, bool exclude_self, bool allow_tf32);

Tensor projection_grad_cpu_(const std::vector<Tensor>& grads, const std::vector<Tensor>& params,
                            const std::vector<Tensor>& previous, double lam);

Tensor projection_grad_cuda_(const std::vector<Tensor>& grads, const std::vector<Tensor>& params,
                             const std::vector<Tensor>& previous, double lam);

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_loss_cpu(
    const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const OpString& loss, const std::vector<double>& parameters,
    const OpString& normalize, const OpString& reduction, bool proxy_rows, bool exclude_self, bool allow_tf32);

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_loss_cuda(
    const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const OpString& loss, const std::vector<double>& parameters,
    const OpString& normalize, const OpString& reduction, bool proxy_rows, bool exclude_self, bool allow_tf32);

std::tuple<Tensor, Tensor> similarity_loss_backward_cpu(
    const Tensor& grad_loss, const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const Tensor& row_state, const Tensor& normalizer,
    const Tensor& active, const OpString& loss, const std::vector<double>& parameters, const OpString& normalize,
    const OpString& reduction, bool proxy_rows, bool exclude_self, bool allow_tf32, bool need_anchors,
    bool need_references);

std::tuple<Tensor, Tensor> similarity_loss_backward_cuda(
    const Tensor& grad_loss, const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const Tensor& row_state, const Tensor& normalizer,
    const Tensor& active, const OpString& loss, const std::vector<double>& parameters, const OpString& normalize,
    const OpString& reduction, bool proxy_rows, bool exclude_self, bool allow_tf32, bool need_anchors,
    bool need_references);

std::tuple<Tensor, Tensor> similarity_shard_states_cpu(const Tensor& anchors, const Tensor& proxies,
                                                       const Tensor& labels, const std::optional<Tensor>& positives,
                                                       const OpString& loss, const std::vector<double>& parameters,
                                                       const OpString& normalize, bool proxy_rows, bool allow_tf32);

std::tuple<Tensor, Tensor> similarity_finish_cpu(const Tensor& states, int64_t columns, const OpString& loss,
                                                 const std::vector<double>& parameters);

Tensor similarity_shard_counts_cpu(const Tensor& anchors, const Tensor& proxies, const Tensor& labels,
                                   const Tensor& positives, const OpString& loss, const std::vector<double>& parameters,
                                   const OpString& normalize, bool allow_tf32);

std::tuple<Tensor, Tensor> similarity_shard_backward_cpu(
    const Tensor& grad_loss, const Tensor& anchors, const Tensor& proxies, const Tensor& labels,
    const std::optional<Tensor>& positives, const std::optional<Tensor>& counts, const Tensor& row_state,
    const Tensor& normalizer, const Tensor& active, const OpString& loss, const std::vector<double>& parameters,
    const OpString& normalize, bool proxy_rows, bool allow_tf32, bool need_anchors, bool need_proxies);

std::tuple<Tensor, Tensor> similarity_shard_states_cuda(const Tensor& anchors, const Tensor& proxies,
                                                        const Tensor& labels, const std::optional<Tensor>& positives,
                                                        const OpString& loss, const std::vector<double>& parameters,
                                                        const OpString& normalize, bool proxy_rows, bool allow_tf32);

std::tuple<Tensor, Tensor> similarity_finish_cuda(const Tensor& states, int64_t columns, const OpString& loss,
                                                  const std::vector<double>& parameters);

Tensor similarity_shard_counts_cuda(const Tensor& anchors, const Tensor& proxies, const Tensor& labels,
                                    const Tensor& positives, const OpString& loss,
                                    const std::vector<double>& parameters, const OpString& normalize, bool allow_tf32);

std::tuple<Tensor, Tensor> similarity_shard_backward_cuda(
    const Tensor& grad_loss, const Tensor& anchors, const Tensor& proxies, const Tensor& labels,
    const std::optional<Tensor>& positives, const std::optional<Tensor>& counts, const Tensor& row_state,
    const Tensor& normalizer, const Tensor& active, const OpString& loss, const std::vector<double>& parameters,
    const OpString& normalize, bool proxy_rows, bool allow_tf32, bool need_anchors, bool need_proxies);

}  // namespace ccp
