// Every operator's C++ entry point; csrc/registration.cpp binds them to the schemas.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/tensor.h"

namespace ccp {

std::string build_info();

std::tuple<Tensor, Tensor> farthest_points_cpu(const Tensor& points, const Tensor& offsets,
                                               const std::optional<Tensor>& seeds,
                                               const std::optional<Tensor>& seed_offsets, int64_t k,
                                               const std::string& normalize, bool pad);

Tensor projection_grad_cpu_(const std::vector<Tensor>& grads, const std::vector<Tensor>& params,
                            const std::vector<Tensor>& previous, double lam);

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_loss_cpu(
    const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const std::string& loss, const std::vector<double>& parameters,
    const std::string& normalize, const std::string& reduction, bool proxy_rows, bool exclude_self);

std::tuple<Tensor, Tensor> similarity_loss_backward_cpu(
    const Tensor& grad_loss, const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const Tensor& row_state, const Tensor& normalizer,
    const Tensor& active, const std::string& loss, const std::vector<double>& parameters,
    const std::string& normalize, const std::string& reduction, bool proxy_rows, bool exclude_self,
    bool need_anchors, bool need_references);

}  // namespace ccp
