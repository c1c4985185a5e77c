// The similarity losses' launchers over numpy arrays, with the arguments of the op: rows and columns are named already.
#include "kernels/cuda/similarity_loss.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "host_emu/bindings.h"
#include "host_emu/names.h"
#include "host_emu/scratch.h"
#include "kernels/cuda/similarity_loss/finish.h"

namespace py = pybind11;

namespace ccp {
namespace emu {

namespace {

using Labels = py::array_t<int64_t, py::array::c_style>;
using Numbers = py::array_t<float, py::array::c_style>;
using Counts = py::array_t<int32_t, py::array::c_style>;

LossId loss_by_name(const std::string& name) {
#define CCP_NAME(loss, parameters, ...) {#loss, LossId::k_##loss},
  return by_name<LossId>(name, {CCP_FOR_EACH_LOSS(CCP_NAME)});
#undef CCP_NAME
}

Reduction reduction_by_name(const std::string& name) {
  return by_name<Reduction>(name, {{"sum", Reduction::kSum},
                                   {"anchor_mean", Reduction::kRowMean},
                                   {"mean", Reduction::kMean},
                                   {"active_mean", Reduction::kActiveMean},
                                   {"none", Reduction::kNone}});
}

// Where memory would begin that has `bytes` more before it.
void* before(const void* data, int64_t bytes) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(data) - uintptr_t(bytes));
}

// Zeros which take no memory until they are written.
template <class T>
py::array_t<T> unwritten(std::vector<int64_t> shape) {
  const py::object zeros = py::module_::import("numpy").attr("zeros");
  return py::array_t<T>(zeros(shape, py::dtype::of<T>()));
}

// Sixteen-bit numbers come as their bits.
cuda::Side side_of(const py::array& items, const std::string& dtype, const std::optional<Labels>& labels,
                   int64_t group) {
  const Dtype type = dtype_named(dtype);
  if (items.itemsize() != dtype_bytes(type)) throw py::value_error("element size and dtype differ");
  return {items.data(), type, items.shape(0), labels ? labels->data() : nullptr, group, 0};
}

class EmulatedLoss {
 public:
  EmulatedLoss(py::array rows, const std::string& rows_dtype, std::optional<Labels> row_labels, int64_t row_group,
               py::array columns, const std::string& columns_dtype, std::optional<Labels> column_labels,
               int64_t column_group, const std::string& loss, std::vector<double> parameters,
               const std::string& normalize, const std::string& reduction, bool exclude_diagonal, bool precise,
               int multiprocessors, size_t shared_bytes, bool hopper, int64_t missing_rows, int64_t missing_columns)
      : rows_(rows),
        columns_(columns),
        row_labels_(row_labels),
        column_labels_(column_labels),
        parameters_(std::move(parameters)),
        missing_rows_(missing_rows),
        missing_columns_(missing_columns),
        reduction_(reduction_by_name(reduction)) {
    problem_.loss = loss_by_name(loss);
    problem_.parameters = parameters_.data();
    problem_.rows = side_of(rows_, rows_dtype, row_labels_, row_group);
    problem_.columns = side_of(columns_, columns_dtype, column_labels_, column_group);
    problem_.dim = rows_.shape(1);
    put_behind(missing_rows, rows_.itemsize(), problem_.rows);
    put_behind(missing_columns, columns_.itemsize(), problem_.columns);
    problem_.normalize = normalize_named(normalize);
    problem_.exclude_diagonal = exclude_diagonal;
    problem_.products = precise ? Products::kThree : Products::kOne;
    problem_.multiprocessors = multiprocessors;
    problem_.shared_bytes = shared_bytes;
    problem_.hopper = hopper;
    loss_ = py::array_t<float>(reduction_ == Reduction::kNone ? problem_.rows.count : 1);
    row_state_ = unwritten<float>({int64_t(kSaved), problem_.rows.count});
    normalizer_ = py::array_t<double>(2);
    active_ = unwritten<uint8_t>({std::max(problem_.rows.count, problem_.columns.count)});
  }

  // -1: the GPU has to be asked.
  int64_t most_positives() const { return cuda::most_positives(problem_); }

  py::tuple forward() {
    list_positives();
    const cuda::Forward out{reduction_,
                            loss_.mutable_data(),
                            row_state_.mutable_data(),
                            normalizer_.mutable_data(),
                            active_.mutable_data(),
                            nullptr,
                            false};
    GuardedScratch scratch(cuda::forward_workspace_bytes(problem_), poison());
    cuda::similarity_loss_forward(problem_, out, scratch.data(), nullptr);
    scratch.check();
    return py::make_tuple(loss_, row_state_, normalizer_, active_);
  }

  // What another's forward has found, of rows and columns that are this one's last.
  void continue_from(const EmulatedLoss& other) {
    for (int k = 0; k < kSaved; ++k)
      std::copy_n(other.row_state_.data(k, 0), other.problem_.rows.count, row_state_.mutable_data(k, missing_rows_));
    normalizer_ = other.normalizer_;
    std::copy_n(other.active_.data(), other.active_.size(),
                active_.mutable_data() + (active_.size() - other.active_.size()));
  }

  // [members, rows], as a shard hands them to `finish`; positives [rows, group] where the loss reads them.
  py::array_t<float> states(int members, std::optional<Numbers> positives) {
    if (positives)
      list_known_positives(*positives, std::nullopt);
    else
      list_positives();
    py::array_t<float> states({int64_t(members), problem_.rows.count});
    const cuda::Forward out{Reduction::kSum,       nullptr, nullptr, nullptr, active_.mutable_data(),
                            states.mutable_data(), true};
    GuardedScratch scratch(cuda::forward_workspace_bytes(problem_));
    cuda::similarity_loss_forward(problem_, out, scratch.data(), nullptr);
    scratch.check();
    return states;
  }

  // Of states [parts, members, rows]: what backward needs goes where forward puts it; returns [6, rows].
  py::array_t<double> finish(Numbers states, int64_t columns) {
    py::array_t<double> row_parts({int64_t(6), problem_.rows.count});
    cuda::similarity_loss_finish({problem_.loss, parameters_.data(), false, states.data(), states.shape(0),
                                  problem_.rows.count, columns, row_state_.mutable_data(), row_parts.mutable_data()},
                                 nullptr);
    return row_parts;
  }

  py::array_t<float> row_state() const { return row_state_; }

  py::array_t<int32_t> counts(Numbers positives) {
    list_known_positives(positives, std::nullopt);
    cuda::similarity_loss_count(problem_, nullptr);
    py::array_t<int32_t> counts({problem_.rows.count, problem_.columns.group});
    std::copy(counters_.begin(), counters_.end(), counts.mutable_data());
    return counts;
  }

  // Of the sum over all shards of the rows' values, given the finished rows of all of them.
  py::tuple shard_backward(Numbers row_state, std::optional<Numbers> positives, std::optional<Counts> counts,
                           bool need_rows, bool need_columns) {
    std::copy_n(row_state.data(), row_state.size(), row_state_.mutable_data());
    normalizer_.mutable_at(0) = normalizer_.mutable_at(1) = 1;
    if (positives) list_known_positives(*positives, counts);
    py::array_t<float> one(1);
    one.mutable_at(0) = 1;
    return gradients(one, need_rows, need_columns);
  }

  // Gradients like rows and columns; an empty array where not wanted.
  py::tuple backward(py::array_t<float, py::array::c_style> grad_loss, bool need_rows, bool need_columns) {
    list_positives();
    return gradients(grad_loss, need_rows, need_columns);
  }

 private:
  // For addresses beyond 32 bits: the items before those that are there are never looked at.
  void put_behind(int64_t missing, int64_t itemsize, cuda::Side& side) const {
    side.data = before(side.data, missing * problem_.dim * itemsize);
    side.count += missing;
    if (side.labels) side.labels = static_cast<const int64_t*>(before(side.labels, missing * int64_t(sizeof(int64_t))));
  }

  py::tuple gradients(py::array_t<float, py::array::c_style> grad_loss, bool need_rows, bool need_columns) {
    py::array rows = gradient_like(rows_, need_rows), columns = gradient_like(columns_, need_columns);
    const cuda::Backward out{reduction_,
                             grad_loss.data(),
                             row_state_.data(),
                             normalizer_.data(),
                             active_.data(),
                             need_rows ? gradient_behind(missing_rows_, rows) : nullptr,
                             need_columns ? gradient_behind(missing_columns_, columns) : nullptr};
    GuardedScratch scratch(cuda::backward_workspace_bytes(problem_, out), poison());
    cuda::similarity_loss_backward(problem_, out, scratch.data(), nullptr);
    leave_alone(nullptr, nullptr);
    scratch.check();
    return py::make_tuple(rows, columns);
  }

  // Parts of blocks that never run are zero, and take no memory.
  unsigned char poison() const { return missing_rows_ + missing_columns_ > 0 ? 0 : 0xff; }

  // Where the gradient would begin; what is cleared before those that are there is not.
  void* gradient_behind(int64_t missing, py::array& there) const {
    void* begin = before(there.mutable_data(), missing * problem_.dim * there.itemsize());
    if (missing > 0) leave_alone(begin, there.mutable_data());
    return begin;
  }

  static py::array gradient_like(const py::array& items, bool wanted) {
    return py::array(items.dtype(),
                     wanted ? std::vector<int64_t>{items.shape(0), items.shape(1)} : std::vector<int64_t>{0, 0});
  }

  void list_positives() {
    if (!cuda::uses_positives(problem_.loss) || problem_.rows.count == 0 || problem_.columns.count == 0) return;
    starts_.assign(size_t(problem_.rows.count) + 1, -1);
    cuda::count_positives(problem_, starts_.data(), nullptr);
    const int64_t most = cuda::most_positives(problem_);
    const size_t count = size_t(most < 0 ? starts_.back() : most);
    positive_columns_.assign(count, -1);
    distances_.assign(count, -1);
    counters_.assign(count, -1);
    farthest_.assign(size_t(problem_.rows.count), -1);
    problem_.positives = {starts_.data(),   positive_columns_.data(), distances_.data(),
                          farthest_.data(), counters_.data(),         false};
    cuda::gather_positives(problem_, starts_.data(), positive_columns_.data(), distances_.data(), farthest_.data(),
                           counters_.data(), nullptr);
  }

  void list_known_positives(const Numbers& distances, const std::optional<Counts>& counts) {
    starts_.assign(size_t(problem_.rows.count) + 1, -1);
    distances_.assign(distances.data(), distances.data() + distances.size());
    positive_columns_.assign(distances_.size(), -1);
    counters_.assign(distances_.size(), -1);
    farthest_.assign(size_t(problem_.rows.count), -1);
    cuda::list_known_positives(problem_, distances_.data(), counts ? counts->data() : nullptr, starts_.data(),
                               positive_columns_.data(), farthest_.data(), counters_.data(), nullptr);
    problem_.positives = {starts_.data(),   positive_columns_.data(), distances_.data(),
                          farthest_.data(), counters_.data(),         counts.has_value()};
  }

  py::array rows_, columns_;
  std::optional<Labels> row_labels_, column_labels_;
  std::vector<double> parameters_;
  int64_t missing_rows_, missing_columns_;
  Reduction reduction_;
  cuda::Problem problem_{};
  py::array_t<float> loss_, row_state_;
  py::array_t<double> normalizer_;
  py::array_t<uint8_t> active_;
  std::vector<int64_t> starts_, positive_columns_;
  std::vector<float> distances_, farthest_;
  std::vector<int32_t> counters_;
};

// The positions of the flags that are set.
Labels list_active(py::array_t<uint8_t, py::array::c_style> flags) {
  const int64_t n = flags.size();
  std::vector<int64_t> block_counts(size_t(cuda::list_blocks(n)), -1), chosen(size_t(n), -1);
  int64_t count = -1;
  cuda::launch_list_active(flags.data(), n, block_counts.data(), chosen.data(), &count, nullptr);
  return Labels(count, chosen.data());
}

}  // namespace

void bind_similarity_loss(py::module_& m) {
  m.def("list_active", &list_active, py::arg("flags"));
  py::class_<EmulatedLoss>(m, "SimilarityLoss")
      .def(py::init<py::array, const std::string&, std::optional<Labels>, int64_t, py::array, const std::string&,
                    std::optional<Labels>, int64_t, const std::string&, std::vector<double>, const std::string&,
                    const std::string&, bool, bool, int, size_t, bool, int64_t, int64_t>(),
           py::arg("rows"), py::arg("rows_dtype"), py::arg("row_labels"), py::arg("row_group"), py::arg("columns"),
           py::arg("columns_dtype"), py::arg("column_labels"), py::arg("column_group"), py::arg("loss"),
           py::arg("parameters"), py::arg("normalize"), py::arg("reduction"), py::arg("exclude_diagonal"),
           py::arg("precise"), py::arg("multiprocessors"), py::arg("shared_bytes"), py::arg("hopper"),
           py::arg("missing_rows"), py::arg("missing_columns"))
      .def("most_positives", &EmulatedLoss::most_positives)
      .def("forward", &EmulatedLoss::forward, "(loss, row_state, normalizer, active)")
      .def("continue_from", &EmulatedLoss::continue_from, py::arg("other"))
      .def("row_state", &EmulatedLoss::row_state, "[3, rows]")
      .def("states", &EmulatedLoss::states, py::arg("members"), py::arg("positives"))
      .def("finish", &EmulatedLoss::finish, py::arg("states"), py::arg("columns"))
      .def("counts", &EmulatedLoss::counts, py::arg("positives"))
      .def("shard_backward", &EmulatedLoss::shard_backward, py::arg("row_state"), py::arg("positives"),
           py::arg("counts"), py::arg("need_rows") = true, py::arg("need_columns") = true, "(grad_rows, grad_columns)")
      .def("backward", &EmulatedLoss::backward, py::arg("grad_loss"), py::arg("need_rows"), py::arg("need_columns"),
           "(grad_rows, grad_columns)");
}

}  // namespace emu
}  // namespace ccp
