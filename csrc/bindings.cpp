// culnig_fast._selection: selection.hpp for NumPy arrays and CPU tensors, zero-copy, with the GIL released.
// culnig_fast/selection/numpy_core.py has the same functions, results and messages.

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.hpp"

namespace py = pybind11;

namespace {

// Calls work with a null pointer of the array's element type.
template <class Work>
auto by_type(const py::array& array, const Work& work) {
    if (py::isinstance<py::array_t<double>>(array)) return work(static_cast<double*>(nullptr));
    return work(static_cast<float*>(nullptr));
}

// (block, runs, run, caution), for tests.
culnig::Tuning tuning_argument(const py::object& value) {
    culnig::Tuning tuning;
    if (value.is_none()) return tuning;
    const auto items = value.cast<std::tuple<std::size_t, std::size_t, std::size_t, double>>();
    std::tie(tuning.block, tuning.runs, tuning.run, tuning.caution) = items;
    if (tuning.block < 1 || tuning.run < 1) throw py::value_error("tuning must have a block and a run of at least 1");
    return tuning;
}

py::array_t<std::int64_t> top_k(const py::object& values, const py::object& k, const py::object& threads,
                                const py::object& tuning) {
    const py::array array = arguments::floats(values, "values", 1);
    const auto wanted = static_cast<std::size_t>(arguments::whole(k, "k", 0, array.size()));
    const unsigned workers = arguments::threads(threads);
    const culnig::Tuning tuned = tuning_argument(tuning);
    py::array_t<std::int64_t> out(static_cast<py::ssize_t>(wanted));
    std::int64_t* result = out.mutable_data();
    std::optional<culnig::NotANumber> missing;
    by_type(array, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const auto span = arguments::span<T>(array);
        const py::gil_scoped_release release;
        try {
            culnig::top_k(span, wanted, workers, result, tuned);
        } catch (const culnig::NotANumber& error) {
            missing = error;
        }
    });
    if (missing) throw py::value_error("values[" + std::to_string(missing->column) + "] is NaN");
    return out;
}

// What candidates() was given: the arrays stay alive while the core reads them.
struct Tables {
    py::array table, control, surface;
    double samples, control_samples = 1.0;
    bool has_control, has_surface;
};

struct JobArguments {
    py::array pool, rows, control_rows, surface_rows, surface_counts;
    std::size_t k;
};

Tables tables_argument(const py::object& table, const py::object& samples, const py::object& control,
                       const py::object& control_samples, const py::object& surface) {
    Tables tables;
    tables.table = arguments::table(table, "table");
    tables.samples = arguments::samples(samples, "samples");
    tables.has_control = !control.is_none();
    if (tables.has_control) {
        tables.control = arguments::table(control, "control", &tables.table);
        tables.control_samples = arguments::samples(control_samples, "control_samples");
    }
    tables.has_surface = !surface.is_none();
    if (tables.has_surface) tables.surface = arguments::table(surface, "surface", &tables.table);
    return tables;
}

py::array rows_argument(const py::object& value, const std::string& name, bool present, const py::array& table) {
    py::array rows = arguments::indices(value, name, present ? table.shape(0) : 0, "rows");
    if (present && rows.size() == 0) throw py::value_error(name + " must name at least one row");
    return rows;
}

JobArguments job_argument(const py::object& value, const std::string& name, const Tables& tables) {
    const py::sequence job = arguments::items(value, name);
    if (job.size() != 6) throw py::value_error(name + " must have 6 parts, not " + std::to_string(job.size()));
    const auto part = [&](std::size_t i) { return py::object(job[i]); };
    JobArguments result;
    std::int64_t size = 0;
    result.pool = arguments::ranges(part(0), name + ".ranges", tables.table.shape(1), size);
    result.rows = rows_argument(part(1), name + ".rows", true, tables.table);
    result.control_rows = rows_argument(part(2), name + ".control_rows", tables.has_control, tables.control);
    result.surface_rows = rows_argument(part(3), name + ".surface_rows", tables.has_surface, tables.surface);
    result.k = static_cast<std::size_t>(arguments::whole(part(4), name + ".k", 0, size));
    result.surface_counts = arguments::exactly<std::int64_t>(part(5), name + ".surface_counts", 1, "int64");
    std::int64_t least = 0;
    for (const std::int64_t count : arguments::span<std::int64_t>(result.surface_counts)) {
        if (count < least || count > size) {
            throw py::value_error(name + ".surface_counts must ascend between 0 and " + std::to_string(size) +
                                  ", but hold " + std::to_string(count));
        }
        least = count;
    }
    if (tables.has_surface == (result.surface_counts.size() == 0)) {
        throw py::value_error(name + ".surface_counts must hold a count with a surface table, and none without");
    }
    return result;
}

template <class T>
culnig::Mean<T> mean(const py::array& table, const py::array& rows, double samples) {
    culnig::Mean<T> result;
    result.samples = samples;
    if (rows.size() == 0) return result;
    const auto matrix = arguments::matrix<T>(table);
    result.rows.reserve(static_cast<std::size_t>(rows.size()));
    for (const std::int64_t row : arguments::span<std::int64_t>(rows)) {
        result.rows.push_back(matrix.row(static_cast<std::size_t>(row)));
    }
    return result;
}

template <class T>
culnig::Job<T> core_job(const Tables& tables, const JobArguments& job) {
    const culnig::Span<const culnig::Range> pool{static_cast<const culnig::Range*>(job.pool.data()),
                                                 static_cast<std::size_t>(job.pool.shape(0))};
    const auto counts = arguments::span<std::int64_t>(job.surface_counts);
    culnig::Job<T> result;
    result.difference = {mean<T>(tables.table, job.rows, tables.samples),
                         mean<T>(tables.control, job.control_rows, tables.control_samples), pool, job.k};
    result.surface_counts.assign(counts.begin(), counts.end());
    const std::size_t most = result.surface_counts.empty() ? 0 : result.surface_counts.back();
    result.surface = {mean<T>(tables.surface, job.surface_rows, 1.0), {}, pool, most};
    return result;
}

py::tuple as_arrays(const culnig::Candidates& found) {
    const auto n = static_cast<py::ssize_t>(found.best.size());
    py::array_t<std::int64_t> columns(n), classes(n);
    py::array_t<double> scores(n);
    std::int64_t* column = columns.mutable_data();
    double* score = scores.mutable_data();
    for (const culnig::Entry& entry : found.best) {
        *column++ = entry.index;
        *score++ = entry.value;
    }
    std::copy(found.surface_class.begin(), found.surface_class.end(), classes.mutable_data());
    return py::make_tuple(columns, scores, classes);
}

// ValueError with the attributes `job`, `of` ("difference" or "surface") and `column`.
[[noreturn]] void raise_nan(const culnig::NotANumber& missing) {
    const std::string of = missing.ranking % 2 ? "surface" : "difference";
    const std::string job = std::to_string(missing.ranking / 2), column = std::to_string(missing.column);
    const py::object error = py::reinterpret_borrow<py::object>(PyExc_ValueError)(
        "the " + of + " of jobs[" + job + "] is NaN at column " + column);
    error.attr("job") = missing.ranking / 2;
    error.attr("of") = of;
    error.attr("column") = missing.column;
    PyErr_SetObject(PyExc_ValueError, error.ptr());
    throw py::error_already_set();
}

py::list candidates(const py::object& table, const py::object& samples, const py::object& control,
                    const py::object& control_samples, const py::object& surface, const py::object& jobs,
                    const py::object& threads, const py::object& tuning) {
    const Tables tables = tables_argument(table, samples, control, control_samples, surface);
    const py::sequence each = arguments::items(jobs, "jobs");
    std::vector<JobArguments> checked;
    checked.reserve(each.size());
    for (std::size_t j = 0; j < each.size(); ++j) {
        checked.push_back(job_argument(each[j], "jobs[" + std::to_string(j) + "]", tables));
    }
    const unsigned workers = arguments::threads(threads);
    const culnig::Tuning tuned = tuning_argument(tuning);
    std::vector<culnig::Candidates> found;
    std::optional<culnig::NotANumber> missing;
    by_type(tables.table, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        std::vector<culnig::Job<T>> core_jobs;
        core_jobs.reserve(checked.size());
        for (const auto& job : checked) core_jobs.push_back(core_job<T>(tables, job));
        const auto columns = static_cast<std::size_t>(tables.table.shape(1));
        const py::gil_scoped_release release;
        try {
            found = culnig::candidates(core_jobs, columns, workers, tuned);
        } catch (const culnig::NotANumber& error) {
            missing = error;
        }
    });
    if (missing) raise_nan(*missing);
    py::list result;
    for (const auto& one : found) result.append(as_arrays(one));
    return result;
}

py::array_t<double> z_scores(const py::object& values, const py::object& row) {
    const py::array array = arguments::exactly<double>(values, "values", 2, "float64");
    if (array.shape(0) == 0) throw py::value_error("values must have at least one row");
    const auto wanted = static_cast<std::size_t>(arguments::whole(row, "row", 0, array.shape(0) - 1));
    py::array_t<double> out(array.shape(1));
    const auto table = arguments::matrix<double>(array);
    double* result = out.mutable_data();
    try {
        const py::gil_scoped_release release;
        culnig::z_scores(table, wanted, result);
    } catch (const culnig::NotFinite& unfit) {
        throw py::value_error("values[" + std::to_string(unfit.row) + ", " + std::to_string(unfit.column) +
                              "] is not finite");
    }
    return out;
}

py::array_t<double> group_z(const py::object& table, const py::object& samples, const py::object& control,
                            const py::object& control_samples, const py::object& control_rows,
                            const py::object& columns, const py::object& rows, const py::object& threads) {
    const Tables tables = tables_argument(table, samples, control, control_samples, py::none());
    py::array pairing;
    if (tables.has_control) {
        pairing = arguments::indices(control_rows, "control_rows", tables.control.shape(0), "rows");
        if (pairing.size() != tables.table.shape(0)) {
            throw py::value_error("control_rows must name a row for each of the table's " +
                                  std::to_string(tables.table.shape(0)) + ", not " + std::to_string(pairing.size()));
        }
    }
    const py::array at = arguments::indices(columns, "columns", tables.table.shape(1), "columns");
    const py::array own = arguments::indices(rows, "rows", tables.table.shape(0), "rows");
    if (own.size() != at.size()) {
        throw py::value_error("rows must name a row for each of the " + std::to_string(at.size()) + " columns, not " +
                              std::to_string(own.size()));
    }
    const unsigned workers = arguments::threads(threads);
    py::array_t<double> out(at.size());
    double* result = out.mutable_data();
    try {
        by_type(tables.table, [&](auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            const auto minuend = arguments::matrix<T>(tables.table);
            std::optional<culnig::Matrix<T>> subtrahend;
            culnig::Span<const std::int64_t> pairs{nullptr, 0};
            if (tables.has_control) {
                subtrahend = arguments::matrix<T>(tables.control);
                pairs = arguments::span<std::int64_t>(pairing);
            }
            const auto where = arguments::span<std::int64_t>(at);
            const auto* row = static_cast<const std::int64_t*>(own.data());
            const py::gil_scoped_release release;
            culnig::group_z(minuend, tables.samples, subtrahend ? &*subtrahend : nullptr, tables.control_samples, pairs,
                            where, row, workers, result);
        });
    } catch (const culnig::NotFinite& unfit) {
        throw py::value_error("the scores of columns[" + std::to_string(unfit.column) + "] are not finite");
    }
    return out;
}

}  // namespace

PYBIND11_MODULE(_selection, module) {
    module.doc() = "Selection of neurons from score tables; culnig_fast.selection.rules is the public face.";
    module.def("top_k", &top_k, py::arg("values"), py::arg("k"), py::arg("threads") = 0, py::arg("tuning") = py::none(),
               "Indices int64 [k] of the k largest of values float64 or float32 [n], in stable descending order.");
    module.def("candidates", &candidates, py::arg("table"), py::arg("samples"), py::arg("control"),
               py::arg("control_samples"), py::arg("surface"), py::arg("jobs"), py::arg("threads") = 0,
               py::arg("tuning") = py::none(),
               "For every job the k best columns of table / samples - control / control_samples, their values, and how "
               "they stand on the surface, in one sweep.");
    module.def("z_scores", &z_scores, py::arg("values"), py::arg("row"),
               "Population z-score of one row within each column of values float64 [groups, n].");
    module.def("group_z", &group_z, py::arg("table"), py::arg("samples"), py::arg("control"),
               py::arg("control_samples"), py::arg("control_rows"), py::arg("columns"), py::arg("rows"),
               py::arg("threads") = 0,
               "z-scores, float64 [n], of rows int64 [n] at columns int64 [n] of table / samples - control / "
               "control_samples among all rows.");
}
