// culnig_kernels._cpu: cpu/ for memory that torch owns, given by address and strides, with the GIL released.
// kernels/culnig_kernels/native/, the only caller, has checked shapes, types and layouts; nothing is checked here.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>

#include "cpu/levels.hpp"
#include "cpu/parallel.hpp"

namespace py = pybind11;
namespace cpu = culnig::cpu;

namespace {

using Address = std::uintptr_t;
using RowsAt = std::tuple<Address, std::int64_t>;
using SamplesAt = std::tuple<Address, std::int64_t, std::int64_t>;

cpu::Rows rows(const RowsAt& at) { return {reinterpret_cast<void*>(std::get<0>(at)), std::get<1>(at)}; }

cpu::Samples samples(const SamplesAt& at) {
    return {reinterpret_cast<void*>(std::get<0>(at)), std::get<1>(at), std::get<2>(at)};
}

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

template <class Enum>
Enum named(const std::string& name, std::initializer_list<const char*> names) {
    const auto* found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) throw py::value_error("the CPU kernels do not know " + name);
    return static_cast<Enum>(found - names.begin());
}

cpu::Type type(const std::string& name) { return named<cpu::Type>(name, {"float32", "bfloat16"}); }
cpu::Activation activation(const std::string& name) {
    return named<cpu::Activation>(name, {"silu", "gelu_tanh", "relu", "relu2"});
}
cpu::Reduction reduction(const std::string& name) {
    return named<cpu::Reduction>(name, {"max", "sum", "mean", "absmax"});
}

// How the calls run: the level of vector instructions, and the threads.
struct Machine {
    cpu::Level level;
    int threads;

    template <class Job>
    void run(const Job& job) const {
        const py::gil_scoped_release release;
        cpu::in_parallel(cpu::tasks(job), threads, [&](std::int64_t task) { cpu::run_task(level, job, task); });
    }
};

Machine machine(const std::string& level, int threads) {
    const auto known = cpu::levels();
    if (std::find(known.begin(), known.end(), level) == known.end()) {
        throw py::value_error("this machine does not run the CPU kernels of level " + level);
    }
    return {named<cpu::Level>(level, {"baseline", "avx2", "avx512"}), std::max(1, threads)};
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "The CPU's kernels, for memory by address; culnig_kernels.native calls them with tensors.";
    module.attr("most_head_dim") = cpu::kMostHeadDim;
    module.def("levels", &cpu::levels, "Sets of vector instructions that this machine has, the best one last.");

    py::class_<Machine>(module, "Machine")
        .def(py::init(&machine), py::arg("level"), py::arg("threads"))
        .def("gated_act",
             [](const Machine& self, const std::string& dtype, const std::string& act, const RowsAt& gate,
                const RowsAt& up, const RowsAt& out, std::int64_t n, std::int64_t columns) {
                 self.run(cpu::Gated{type(dtype), activation(act), rows(gate), rows(up), rows(out), n, columns});
             })
        .def("gated_act_backward",
             [](const Machine& self, const std::string& dtype, const std::string& act, const std::string& rule,
                const SamplesAt& dh, const SamplesAt& gate, const SamplesAt& up, const SamplesAt& d_gate,
                const SamplesAt& d_up, Address lengths, Address gate_scores, Address up_scores, std::int64_t score_stride, std::int64_t n,
                std::int64_t positions, std::int64_t columns) {
                 self.run(cpu::GatedBackward{type(dtype), activation(act), reduction(rule), samples(dh),
                                             samples(gate), samples(up), samples(d_gate), samples(d_up),
                                             pointer<const std::int64_t>(lengths), pointer<float>(gate_scores),
                                             pointer<float>(up_scores), score_stride, n, positions, columns});
             })
        .def("rms_norm",
             [](const Machine& self, const std::string& dtype, const RowsAt& x, const RowsAt& residual,
                const RowsAt& y, const RowsAt& z, Address rstd, Address weight, float eps, std::int64_t n,
                std::int64_t columns) {
                 self.run(cpu::Norm{type(dtype), rows(x), rows(residual), rows(y), rows(z), pointer<float>(rstd),
                                    pointer<const float>(weight), eps, n, columns});
             })
        .def("rms_norm_backward",
             [](const Machine& self, const std::string& dtype, const RowsAt& dy, const RowsAt& z,
                const RowsAt& d_residual, const RowsAt& out, Address rstd, Address weight, std::int64_t n,
                std::int64_t columns) {
                 self.run(cpu::NormBackward{type(dtype), rows(dy), rows(z), rows(d_residual), rows(out),
                                            pointer<const float>(rstd), pointer<const float>(weight), n, columns});
             })
        .def("rotary",
             [](const Machine& self, const std::string& dtype, const SamplesAt& x, const SamplesAt& out, Address cos,
                Address sin, std::int64_t angle_sample, std::int64_t rotated, Address weight, float eps,
                std::int64_t n, std::int64_t positions, std::int64_t heads, std::int64_t head_dim) {
                 self.run(cpu::Rotary{type(dtype), samples(x), samples(out), pointer<const float>(cos),
                                      pointer<const float>(sin), angle_sample, rotated, pointer<const float>(weight),
                                      eps, n, positions, heads, head_dim});
             })
        .def("rotary_backward",
             [](const Machine& self, const std::string& dtype, const std::string& rule, const SamplesAt& d_out,
                const SamplesAt& x, const SamplesAt& out, Address cos, Address sin, std::int64_t angle_sample,
                std::int64_t rotated, Address weight, float eps, Address lengths, Address scores, std::int64_t n,
                std::int64_t positions, std::int64_t heads, std::int64_t head_dim) {
                 const cpu::Rotary forward{type(dtype), samples(x), samples(out), pointer<const float>(cos),
                                           pointer<const float>(sin), angle_sample, rotated,
                                           pointer<const float>(weight), eps, n, positions, heads, head_dim};
                 self.run(cpu::RotaryBackward{forward, samples(d_out), pointer<const std::int64_t>(lengths),
                                              pointer<float>(scores), reduction(rule)});
             })
        .def("actgrad_reduce",
             [](const Machine& self, const std::string& dtype, const std::string& rule, bool zero_padding,
                const SamplesAt& act, const SamplesAt& grad, Address lengths, Address keep, Address scores,
                std::int64_t n, std::int64_t positions, std::int64_t columns) {
                 self.run(cpu::ActGrad{type(dtype), reduction(rule), zero_padding, samples(act), samples(grad),
                                       pointer<const std::int64_t>(lengths), pointer<const bool>(keep),
                                       pointer<float>(scores), n, positions, columns});
             });
}
