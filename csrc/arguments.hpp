// Checks of what Python hands over; each message names its argument, as the NumPy twin's do.

#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "selection.hpp"

namespace arguments {

namespace py = pybind11;

constexpr std::int64_t kExactCount = std::int64_t{1} << 53;  // larger counts are not doubles

inline std::string type_name(const py::handle& value) {
    return std::string(py::str(py::type::of(value).attr("__name__")));
}

// A NumPy array as it is; a tensor of another library as an array of the same memory.
inline py::array in_place(const py::object& value, const std::string& name) {
    if (py::isinstance<py::array>(value)) {
        if (py::isinstance(value, py::module_::import("numpy.ma").attr("MaskedArray"))) {
            throw py::type_error(name +
                                 " is a masked array, whose mask would not be seen; fill it, or leave the masked out");
        }
        return py::reinterpret_borrow<py::array>(value);
    }
    if (!py::hasattr(value, "__dlpack__")) {
        throw py::type_error(name + " must be a NumPy array or a tensor on the CPU, not " + type_name(value));
    }
    try {
        return py::module_::import("numpy").attr("from_dlpack")(value).cast<py::array>();
    } catch (const py::error_already_set& error) {
        throw py::type_error(name + " cannot be read in place (" + std::string(py::str(error.value())) +
                             "); it must be a NumPy array or a tensor on the CPU without gradients");
    }
}

inline std::string dtype_name(const py::array& array) { return std::string(py::str(array.dtype())); }

// `array`, which has elements of `size` bytes, with as many dimensions and laid out as the core reads it.
inline py::array laid_out(py::array array, const std::string& name, int dimensions, std::size_t size) {
    if (array.ndim() != dimensions) {
        throw py::value_error(name + " must have " + std::to_string(dimensions) + " dimension(s), not " +
                              std::to_string(array.ndim()));
    }
    const int last = dimensions - 1;
    const auto bytes = static_cast<py::ssize_t>(size);
    const bool contiguous = array.size() == 0 || array.shape(last) == 1 || array.strides(last) == bytes;
    const bool rows_aligned = dimensions == 1 || array.strides(0) % bytes == 0;
    if (!contiguous || !rows_aligned || reinterpret_cast<std::uintptr_t>(array.data()) % size != 0) {
        throw py::value_error(name + " must be aligned and contiguous along its last dimension");
    }
    return array;
}

// float64 or float32.
inline py::array floats(const py::object& value, const std::string& name, int dimensions) {
    py::array array = in_place(value, name);
    const bool wide = py::isinstance<py::array_t<double>>(array);
    if (!wide && !py::isinstance<py::array_t<float>>(array)) {
        throw py::type_error(name + " must be float64 or float32, not " + dtype_name(array));
    }
    return laid_out(array, name, dimensions, wide ? sizeof(double) : sizeof(float));
}

template <class T>
py::array exactly(const py::object& value, const std::string& name, int dimensions, const char* type) {
    py::array array = in_place(value, name);
    if (!py::isinstance<py::array_t<T>>(array)) {
        throw py::type_error(name + " must be " + type + ", not " + dtype_name(array));
    }
    return laid_out(array, name, dimensions, sizeof(T));
}

template <class T>
culnig::Span<const T> span(const py::array& array) {
    return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

template <class T>
culnig::Matrix<T> matrix(const py::array& array) {
    return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.shape(0)),
            static_cast<std::size_t>(array.shape(1)), array.strides(0) / static_cast<py::ssize_t>(sizeof(T))};
}

// NumPy's whole numbers are welcome, floats are not: a fraction here is a mistake in the caller's arithmetic.
inline std::int64_t whole(const py::object& value, const std::string& name, std::int64_t least, std::int64_t most,
                          const std::string& most_text = "") {
    PyObject* number = PyNumber_Index(value.ptr());
    if (number == nullptr) {
        if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw py::error_already_set();
        PyErr_Clear();
        throw py::type_error(name + " must be a whole number, not " + type_name(value));
    }
    const auto exact = py::reinterpret_steal<py::object>(number);
    int overflow = 0;
    const long long result = PyLong_AsLongLongAndOverflow(exact.ptr(), &overflow);
    if (overflow != 0 || result < least || result > most) {
        throw py::value_error(name + " must be between " + std::to_string(least) + " and " +
                              (most_text.empty() ? std::to_string(most) : most_text) + ", not " +
                              std::string(py::str(exact)));
    }
    return result;
}

// A list or a tuple.
inline py::sequence items(const py::object& value, const std::string& name) {
    if (!py::isinstance<py::list>(value) && !py::isinstance<py::tuple>(value)) {
        throw py::type_error(name + " must be a list or a tuple, not " + type_name(value));
    }
    return py::reinterpret_borrow<py::sequence>(value);
}

inline double samples(const py::object& value, const std::string& name) {
    return static_cast<double>(whole(value, name, 1, kExactCount, "2**53"));
}

inline unsigned threads(const py::object& value) { return static_cast<unsigned>(whole(value, "threads", 0, 1024)); }

// A table of at least one row; `like` is the table that came first, or null.
inline py::array table(const py::object& value, const std::string& name, const py::array* like = nullptr) {
    py::array array = floats(value, name, 2);
    if (array.shape(0) == 0) throw py::value_error(name + " must have at least one row");
    if (like == nullptr) return array;
    if (!array.dtype().equal(like->dtype())) {
        throw py::type_error(name + " is " + dtype_name(array) + ", but table is " + dtype_name(*like));
    }
    if (array.shape(1) != like->shape(1)) {
        throw py::value_error(name + " has " + std::to_string(array.shape(1)) + " columns, but table has " +
                              std::to_string(like->shape(1)));
    }
    return array;
}

// Ascending column ranges int64 [n, 2] that do not overlap; `total` becomes the number of columns in them.
inline py::array ranges(const py::object& value, const std::string& name, std::int64_t columns, std::int64_t& total) {
    py::array array = exactly<std::int64_t>(value, name, 2, "int64");
    if (array.shape(1) != 2) {
        throw py::value_error(name + " must have shape [n, 2], not [n, " + std::to_string(array.shape(1)) + "]");
    }
    if (array.shape(0) > 0 && array.strides(0) != 2 * static_cast<py::ssize_t>(sizeof(std::int64_t))) {
        throw py::value_error(name + " must be contiguous");
    }
    const auto* pairs = static_cast<const culnig::Range*>(array.data());
    std::int64_t passed = 0;
    total = 0;
    for (py::ssize_t i = 0; i < array.shape(0); ++i) {
        const auto [start, stop] = pairs[i];
        const std::string here = name + "[" + std::to_string(i) + "] is " + std::to_string(start) + " to " +
                                 std::to_string(stop);
        if (start < 0 || stop < start || stop > columns) {
            throw py::value_error(here + ", outside the table's columns 0 to " + std::to_string(columns));
        }
        if (start < passed) throw py::value_error(here + ", but ranges must ascend and not overlap");
        passed = stop;
        total += stop - start;
    }
    return array;
}

// Indices int64 [n] below `bound`.
inline py::array indices(const py::object& value, const std::string& name, std::int64_t bound, const char* of) {
    py::array array = exactly<std::int64_t>(value, name, 1, "int64");
    for (const std::int64_t index : span<std::int64_t>(array)) {
        if (index < 0 || index >= bound) {
            throw py::value_error(name + " holds " + std::to_string(index) + ", but " + of + " are 0 to " +
                                  std::to_string(bound - 1));
        }
    }
    return array;
}

}  // namespace arguments
