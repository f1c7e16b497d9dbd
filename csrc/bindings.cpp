// culnig_fast._selection: selection.hpp for NumPy arrays, zero-copy, with the GIL released.
// culnig_fast/_selection_numpy.py has the same functions, results and messages.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "selection.hpp"

namespace py = pybind11;

namespace {

constexpr std::int64_t kExactCount = std::int64_t{1} << 53;  // larger counts are not doubles

template <class T>
py::array array_argument(const py::object& value, const std::string& name, int dimensions, const char* type) {
    if (!py::isinstance<py::array>(value)) {
        throw py::type_error(name + " must be a NumPy array, not " +
                             std::string(py::str(py::type::of(value).attr("__name__"))));
    }
    auto array = py::reinterpret_borrow<py::array>(value);
    if (!py::isinstance<py::array_t<T>>(array)) {
        throw py::type_error(name + " must be " + type + ", not " + std::string(py::str(array.dtype())));
    }
    if (array.ndim() != dimensions) {
        throw py::value_error(name + " must have " + std::to_string(dimensions) + " dimension(s), not " +
                              std::to_string(array.ndim()));
    }
    const int last = dimensions - 1;
    const bool contiguous = array.size() == 0 || array.shape(last) == 1 || array.strides(last) == sizeof(T);
    const bool rows_aligned = dimensions == 1 || array.strides(0) % static_cast<py::ssize_t>(sizeof(T)) == 0;
    if (!contiguous || !rows_aligned || reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) != 0) {
        throw py::value_error(name + " must be aligned and contiguous along its last dimension");
    }
    return array;
}

culnig::Matrix matrix(const py::array& array) {
    return {static_cast<const double*>(array.data()), static_cast<std::size_t>(array.shape(0)),
            static_cast<std::size_t>(array.shape(1)),
            array.strides(0) / static_cast<py::ssize_t>(sizeof(double))};
}

void need_rows(const py::array& array, const std::string& name) {
    if (array.shape(0) == 0) throw py::value_error(name + " must have at least one row");
}

double count_argument(std::int64_t count, const std::string& name) {
    if (count < 1 || count > kExactCount) {
        throw py::value_error(name + " must be between 1 and 2**53, not " + std::to_string(count));
    }
    return static_cast<double>(count);
}

// NumPy's whole numbers are welcome, floats are not: a fraction here is a mistake in the caller's arithmetic.
std::int64_t whole_argument(const py::object& value, const std::string& name) {
    PyObject* number = PyNumber_Index(value.ptr());
    if (number == nullptr) {
        PyErr_Clear();
        throw py::type_error(name + " must be a whole number, not " +
                             std::string(py::str(py::type::of(value).attr("__name__"))));
    }
    const auto whole = py::reinterpret_steal<py::object>(number);
    int overflow = 0;
    const long long result = PyLong_AsLongLongAndOverflow(whole.ptr(), &overflow);
    if (overflow != 0) throw py::value_error(name + " must fit in 64 bits, not " + std::string(py::str(whole)));
    return result;
}

py::array_t<std::int64_t> top_k(const py::object& values, const py::object& k) {
    const py::array array = array_argument<double>(values, "values", 1, "float64");
    const auto wanted = whole_argument(k, "k");
    if (wanted < 0 || wanted > array.size()) {
        throw py::value_error("k must be between 0 and " + std::to_string(array.size()) + ", not " +
                              std::to_string(wanted));
    }
    py::array_t<std::int64_t> out(wanted);
    const culnig::Span<const double> span{static_cast<const double*>(array.data()),
                                          static_cast<std::size_t>(array.size())};
    auto* result = out.mutable_data();
    {
        py::gil_scoped_release release;
        culnig::top_k(span, static_cast<std::size_t>(wanted), result);
    }
    return out;
}

std::int64_t check_ranges(const py::array& ranges, std::int64_t columns) {
    if (ranges.shape(1) != 2) {
        throw py::value_error("ranges must have shape [n, 2], not [n, " + std::to_string(ranges.shape(1)) + "]");
    }
    if (ranges.shape(0) > 0 && ranges.strides(0) != 2 * static_cast<py::ssize_t>(sizeof(std::int64_t))) {
        throw py::value_error("ranges must be contiguous");
    }
    const auto* pairs = static_cast<const culnig::Range*>(ranges.data());
    std::int64_t total = 0;
    for (py::ssize_t i = 0; i < ranges.shape(0); ++i) {
        const auto [start, stop] = pairs[i];
        if (start < 0 || stop < start || stop > columns) {
            throw py::value_error("ranges[" + std::to_string(i) + "] is " + std::to_string(start) + " to " +
                                  std::to_string(stop) + ", outside the table's columns 0 to " +
                                  std::to_string(columns));
        }
        total += stop - start;
    }
    return total;
}

py::array_t<double> mean_difference(const py::object& table, const py::object& samples, const py::object& control,
                                    const py::object& control_samples, const py::object& ranges,
                                    const py::object& threads) {
    const py::array first = array_argument<double>(table, "table", 2, "float64");
    need_rows(first, "table");
    const double count = count_argument(whole_argument(samples, "samples"), "samples");
    const bool subtract = !control.is_none();
    py::array second = first;
    double control_count = 1.0;
    if (subtract) {
        second = array_argument<double>(control, "control", 2, "float64");
        need_rows(second, "control");
        if (second.shape(1) != first.shape(1)) {
            throw py::value_error("control has " + std::to_string(second.shape(1)) + " columns, but table has " +
                                  std::to_string(first.shape(1)));
        }
        control_count = count_argument(whole_argument(control_samples, "control_samples"), "control_samples");
    }
    const py::array pairs = array_argument<std::int64_t>(ranges, "ranges", 2, "int64");
    const std::int64_t total = check_ranges(pairs, first.shape(1));
    const auto workers = whole_argument(threads, "threads");
    if (workers < 0 || workers > 1024) {
        throw py::value_error("threads must be between 0 and 1024, not " + std::to_string(workers));
    }
    py::array_t<double> out(total);
    const culnig::Matrix minuend = matrix(first), subtrahend = matrix(second);
    const culnig::Span<const culnig::Range> spans{static_cast<const culnig::Range*>(pairs.data()),
                                                  static_cast<std::size_t>(pairs.shape(0))};
    double* result = out.mutable_data();
    {
        py::gil_scoped_release release;
        culnig::mean_difference(minuend, count, subtract ? &subtrahend : nullptr, control_count, spans,
                                static_cast<unsigned>(workers), result);
    }
    return out;
}

py::array_t<double> z_scores(const py::object& values, const py::object& row) {
    const py::array array = array_argument<double>(values, "values", 2, "float64");
    need_rows(array, "values");
    const auto wanted = whole_argument(row, "row");
    if (wanted < 0 || wanted >= array.shape(0)) {
        throw py::value_error("row must be between 0 and " + std::to_string(array.shape(0) - 1) + ", not " +
                              std::to_string(wanted));
    }
    py::array_t<double> out(array.shape(1));
    const culnig::Matrix table = matrix(array);
    double* result = out.mutable_data();
    {
        py::gil_scoped_release release;
        culnig::z_scores(table, static_cast<std::size_t>(wanted), result);
    }
    return out;
}

}  // namespace

PYBIND11_MODULE(_selection, module) {
    module.doc() = "Selection of neurons from score tables; culnig_fast.selection is the public face.";
    module.def("top_k", &top_k, py::arg("values"), py::arg("k"),
               "Indices int64 [k] of the k largest of values float64 [n], in stable descending order.");
    module.def("mean_difference", &mean_difference, py::arg("table"), py::arg("samples"), py::arg("control"),
               py::arg("control_samples"), py::arg("ranges"), py::arg("threads") = 0,
               "Column sums of table / samples - column sums of control / control_samples over ranges int64 [m, 2].");
    module.def("z_scores", &z_scores, py::arg("values"), py::arg("row"),
               "Population z-score of one row within each column of values float64 [groups, n].");
}
