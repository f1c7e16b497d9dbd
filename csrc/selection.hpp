// Selection of neurons from score tables: algorithms on spans, free of Python.
//
// Every result is defined to the last bit, so that an independent implementation can be held to it: sums run over
// groups in row order, divisions and subtractions are single IEEE double operations (build with -ffp-contract=off),
// and rankings are those of a stable descending sort. Threads share out columns and never change a result.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace culnig {

// `size` consecutive elements that somebody else owns.
template <class T>
struct Span {
    T* data;
    std::size_t size;
    T& operator[](std::size_t i) const { return data[i]; }
};

// A read-only [rows, columns] matrix whose rows are contiguous and `stride` elements apart.
struct Matrix {
    const double* data;
    std::size_t rows;
    std::size_t columns;
    std::ptrdiff_t stride;
    const double* row(std::size_t i) const { return data + static_cast<std::ptrdiff_t>(i) * stride; }
};

// Columns start ≤ column < stop.
struct Range {
    std::int64_t start;
    std::int64_t stop;
};

// The k best values seen so far, larger first and the lower index first among equals (−0 equals +0).
//
// Values are offered in ascending index order. Holds at most 2k of them: whenever the buffer is full, the better half
// stays and its worst value becomes the bar that later values must exceed (an equal one has a higher index and loses).
// That is one comparison a value for most inputs, and linear time for all.
class TopK {
public:
    TopK(std::size_t k, std::size_t expected) : k_(k) { best_.reserve(std::min(expected, 2 * k)); }

    void offer(double value, std::int64_t index) {
        if (k_ == 0 || (full_ && !(value > bar_))) return;
        best_.push_back({value, index});
        if (best_.size() >= 2 * k_) keep_best();
    }

    // Writes the indices of the min(k, offered) best, best first.
    void finish(std::int64_t* out) {
        keep_best();
        std::sort(best_.begin(), best_.end(), before);
        for (std::size_t i = 0; i < best_.size(); ++i) out[i] = best_[i].index;
    }

private:
    struct Entry {
        double value;
        std::int64_t index;
    };

    static bool before(const Entry& a, const Entry& b) {
        return a.value > b.value || (a.value == b.value && a.index < b.index);
    }

    void keep_best() {
        if (k_ == 0 || best_.size() < k_) return;
        const auto last = best_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
        std::nth_element(best_.begin(), last, best_.end(), before);
        bar_ = last->value;
        full_ = true;
        best_.resize(k_);
    }

    std::size_t k_;
    std::vector<Entry> best_;
    double bar_ = 0.0;
    bool full_ = false;
};

// Indices [k] of the k largest of `values`, in the order of a stable descending sort.
// Throws std::invalid_argument naming the first NaN; k ≤ values.size is the caller's duty.
inline void top_k(Span<const double> values, std::size_t k, std::int64_t* out) {
    TopK best(k, values.size);
    for (std::size_t i = 0; i < values.size; ++i) {
        const double value = values[i];
        if (value != value) throw std::invalid_argument("values[" + std::to_string(i) + "] is NaN");
        best.offer(value, static_cast<std::int64_t>(i));
    }
    best.finish(out);
}

namespace detail {

// Doubles. The two partial sums of a block stay in the second-level cache; a block of 1024 took 1.6 times as long over
// 2 × 16 rows of 3.2 million, as each row is then read in pieces too short for the hardware to read ahead.
constexpr std::size_t kBlock = 4096;

inline void sum_rows(const Matrix& table, std::size_t first, std::size_t count, double* sum) {
    std::copy_n(table.row(0) + first, count, sum);
    for (std::size_t g = 1; g < table.rows; ++g) {
        const double* row = table.row(g) + first;
        for (std::size_t i = 0; i < count; ++i) sum[i] += row[i];
    }
}

inline void difference_block(const Matrix& table, double samples, const Matrix* control, double control_samples,
                             std::size_t first, std::size_t count, double* out) {
    double sum[kBlock];
    sum_rows(table, first, count, out);
    for (std::size_t i = 0; i < count; ++i) out[i] /= samples;
    if (control == nullptr) return;
    sum_rows(*control, first, count, sum);
    for (std::size_t i = 0; i < count; ++i) out[i] -= sum[i] / control_samples;
}

// Runs work(first, last) over [0, n) on up to `threads` threads (0: one a core), none for less than it takes to start one.
template <class Work>
void share_out(std::size_t n, unsigned threads, const Work& work) {
    constexpr std::size_t kWorthAThread = 16;
    if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
    const std::size_t parts = std::max<std::size_t>(1, std::min<std::size_t>(threads, n / kWorthAThread));
    std::vector<std::thread> others;
    others.reserve(parts - 1);
    try {
        for (std::size_t p = 1; p < parts; ++p) others.emplace_back(work, n * p / parts, n * (p + 1) / parts);
    } catch (...) {
        for (auto& thread : others) thread.join();
        throw;
    }
    work(0, n / parts);
    for (auto& thread : others) thread.join();
}

}  // namespace detail

// out = (Σ rows of table) / samples − (Σ rows of control) / control_samples at the columns of `ranges`, one after the
// other; without the second term when control is null. Both tables have at least one row, and the ranges lie in both.
inline void mean_difference(const Matrix& table, double samples, const Matrix* control, double control_samples,
                            Span<const Range> ranges, unsigned threads, double* out) {
    struct Block {
        std::size_t first, count, position;
    };
    std::vector<Block> blocks;
    std::size_t position = 0;
    for (std::size_t r = 0; r < ranges.size; ++r) {
        const auto stop = static_cast<std::size_t>(ranges[r].stop);
        for (auto first = static_cast<std::size_t>(ranges[r].start); first < stop; first += detail::kBlock) {
            const std::size_t count = std::min(detail::kBlock, stop - first);
            blocks.push_back({first, count, position});
            position += count;
        }
    }
    detail::share_out(blocks.size(), threads, [&](std::size_t from, std::size_t to) {
        for (std::size_t b = from; b < to; ++b) {
            const Block& block = blocks[b];
            detail::difference_block(table, samples, control, control_samples, block.first, block.count,
                                     out + block.position);
        }
    });
}

// out[j] = (values[row, j] − mean of column j) / population standard deviation of column j; 0 where all of a column is
// equal. Throws std::invalid_argument naming the first column that holds NaN or an infinity.
//
// A column is first scaled by a power of two to below 1 (exact; z does not depend on it), so that no square under- or
// overflows, and its mean is taken from its first value on, so that equal values give exactly themselves as mean and a
// deviation of exactly 0, which summing them up does not (16 × 0.1).
inline void z_scores(const Matrix& values, std::size_t row, double* out) {
    const auto groups = static_cast<double>(values.rows);
    std::vector<double> scaled(values.rows);
    for (std::size_t j = 0; j < values.columns; ++j) {
        double largest = 0.0;
        for (std::size_t g = 0; g < values.rows; ++g) {
            const double value = values.row(g)[j];
            if (!std::isfinite(value)) {
                throw std::invalid_argument("values[" + std::to_string(g) + ", " + std::to_string(j) +
                                            "] is not finite");
            }
            largest = std::max(largest, std::fabs(value));
        }
        int exponent = 0;
        std::frexp(largest, &exponent);
        for (std::size_t g = 0; g < values.rows; ++g) scaled[g] = std::ldexp(values.row(g)[j], -exponent);

        double excess = 0.0;
        for (const double value : scaled) excess += value - scaled[0];
        const double mean = scaled[0] + excess / groups;
        double squares = 0.0;
        for (const double value : scaled) squares += (value - mean) * (value - mean);
        const double deviation = std::sqrt(squares / groups);
        out[j] = deviation == 0.0 ? 0.0 : (scaled[row] - mean) / deviation;
    }
}

}  // namespace culnig
