// z-scores of candidates alone: their columns are gathered, never the table scaled.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "threads.hpp"
#include "views.hpp"

namespace culnig {

// A column holds NaN or an infinity, first in `row`.
struct NotFinite {
    std::size_t column;
    std::size_t row;
};

namespace detail {

constexpr std::size_t kChunk = 128;  // columns worked on together: 16 rows of them fill half of a 32 KiB cache

// out[j] = (values[rows[j], j] − mean of column j) / population standard deviation of column j; 0 where all of a column
// is equal. `values` is [groups, kChunk] and is overwritten.
//
// A column is first scaled by a power of two to below 1 (exact; z does not depend on it), so that no square under- or
// overflows, and its mean is taken from its first value on, so that equal values give exactly themselves as mean and a
// deviation of exactly 0, which summing them up does not (16 × 0.1).
inline void z_chunk(double* values, std::size_t groups, std::size_t count, const std::int64_t* rows, double* out) {
    double largest[kChunk] = {}, mean[kChunk] = {}, squares[kChunk] = {}, scale[kChunk];
    int exponent[kChunk] = {};
    for (std::size_t g = 0; g < groups; ++g) {
        const double* row = values + g * kChunk;
        for (std::size_t j = 0; j < count; ++j) largest[j] = std::max(largest[j], std::fabs(row[j]));
    }
    bool ordinary = true;
    for (std::size_t j = 0; j < count; ++j) {
        std::frexp(largest[j], &exponent[j]);
        scale[j] = std::ldexp(1.0, -exponent[j]);
        ordinary = ordinary && exponent[j] > -1000 && exponent[j] < 1000;
    }
    for (std::size_t g = 0; g < groups; ++g) {
        double* row = values + g * kChunk;
        // Both round once; but 2^1074 is no double.
        if (ordinary) {
            for (std::size_t j = 0; j < count; ++j) row[j] *= scale[j];
        } else {
            for (std::size_t j = 0; j < count; ++j) row[j] = std::ldexp(row[j], -exponent[j]);
        }
    }
    const auto n = static_cast<double>(groups);
    for (std::size_t g = 0; g < groups; ++g) {
        const double* row = values + g * kChunk;
        for (std::size_t j = 0; j < count; ++j) mean[j] += row[j] - values[j];
    }
    for (std::size_t j = 0; j < count; ++j) mean[j] = values[j] + mean[j] / n;
    for (std::size_t g = 0; g < groups; ++g) {
        const double* row = values + g * kChunk;
        for (std::size_t j = 0; j < count; ++j) squares[j] += (row[j] - mean[j]) * (row[j] - mean[j]);
    }
    for (std::size_t j = 0; j < count; ++j) {
        const double deviation = std::sqrt(squares[j] / n);
        out[j] = deviation == 0.0 ? 0.0 : (values[static_cast<std::size_t>(rows[j]) * kChunk + j] - mean[j]) / deviation;
    }
}

// The first column of a chunk that is not finite and its first such row, or {count, 0}.
inline NotFinite first_unfit(const double* values, std::size_t groups, std::size_t count) {
    bool fit = true;
    for (std::size_t g = 0; g < groups; ++g) {
        const double* row = values + g * kChunk;
        bool row_fit = true;
        for (std::size_t j = 0; j < count; ++j) row_fit &= std::fabs(row[j]) <= std::numeric_limits<double>::max();
        fit = fit && row_fit;
    }
    if (fit) return {count, 0};
    for (std::size_t j = 0; j < count; ++j) {
        for (std::size_t g = 0; g < groups; ++g) {
            if (!std::isfinite(values[g * kChunk + j])) return {j, g};
        }
    }
    return {count, 0};
}

// z of n columns, of which gather(first, count, values) fills a chunk. Throws NotFinite for the first unfit column.
template <class Gather>
void z_of_chunks(std::size_t n, std::size_t groups, const std::int64_t* rows, unsigned threads, double* out,
                 const Gather& gather) {
    const std::size_t chunks = (n + kChunk - 1) / kChunk;
    const unsigned workers = worker_count(threads, chunks / 4);
    std::vector<std::vector<double>> buffers(workers, std::vector<double>(groups * kChunk));
    std::vector<NotFinite> unfit(workers, {n, 0});
    share_out(chunks, workers, [&](unsigned w, std::size_t chunk) {
        const std::size_t first = chunk * kChunk, count = std::min(kChunk, n - first);
        double* values = buffers[w].data();
        gather(first, count, values);
        const NotFinite found = first_unfit(values, groups, count);
        if (found.column == count) {
            z_chunk(values, groups, count, rows + first, out + first);
        } else if (first + found.column < unfit[w].column) {
            unfit[w] = {first + found.column, found.row};
        }
    });
    const auto first = *std::min_element(unfit.begin(), unfit.end(),
                                         [](const NotFinite& a, const NotFinite& b) { return a.column < b.column; });
    if (first.column < n) throw first;
}

}  // namespace detail

// out[j] = z of row `row` within column j of `values`.
inline void z_scores(const Matrix<double>& values, std::size_t row, double* out) {
    const std::vector<std::int64_t> rows(values.columns, static_cast<std::int64_t>(row));
    detail::z_of_chunks(values.columns, values.rows, rows.data(), 1, out,
                        [&](std::size_t first, std::size_t count, double* chunk) {
                            for (std::size_t g = 0; g < values.rows; ++g) {
                                std::copy_n(values.row(g) + first, count, chunk + g * detail::kChunk);
                            }
                        });
}

// out[j] = z of row rows[j], at column columns[j], of table / samples − control / control_samples among all rows, where row
// g of the table goes with row control_rows[g] of the control; without the second term when control is null.
template <class T>
void group_z(const Matrix<T>& table, double samples, const Matrix<T>* control, double control_samples,
             Span<const std::int64_t> control_rows, Span<const std::int64_t> columns, const std::int64_t* rows,
             unsigned threads, double* out) {
    detail::z_of_chunks(columns.size, table.rows, rows, threads, out,
                        [&](std::size_t first, std::size_t count, double* chunk) {
        const std::int64_t* at = columns.data + first;
        // Row by row: a hundred loads that do not wait for one another.
        for (std::size_t g = 0; g < table.rows; ++g) {
            double* line = chunk + g * detail::kChunk;
            const T* row = table.row(g);
            for (std::size_t j = 0; j < count; ++j) line[j] = static_cast<double>(row[at[j]]) / samples;
            if (control == nullptr) continue;
            const T* other = control->row(static_cast<std::size_t>(control_rows[g]));
            for (std::size_t j = 0; j < count; ++j) line[j] -= static_cast<double>(other[at[j]]) / control_samples;
        }
    });
}

}  // namespace culnig
