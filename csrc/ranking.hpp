// A ranking: means of rows, subtracted; its values are made block by block and never stored.

#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "views.hpp"

namespace culnig {

// Σ rows / samples; without rows it is left out.
template <class T>
struct Mean {
    std::vector<const T*> rows;
    double samples = 1.0;
};

// The k columns of the pool with the largest plus − minus. Ranges ascend and do not overlap.
template <class T>
struct Ranking {
    Mean<T> plus;
    Mean<T> minus;
    Span<const Range> pool;
    std::size_t k;
};

namespace detail {

// The two partial sums of a block.
struct Scratch {
    explicit Scratch(std::size_t block) : sum(new double[block]), other(new double[block]) {}
    std::unique_ptr<double[]> sum, other;
};

// Adds rows in their order. Four at a time, as one at a time stores and loads the sum for each of them: 41 ms in place of
// 30 ms over 16 + 16 + 8 rows of 3.2 million on 2 threads. Eight at a time is no faster.
template <class T>
void sum_rows(const std::vector<const T*>& rows, std::size_t first, std::size_t count, double* sum) {
    const T* r0 = rows[0] + first;
    for (std::size_t i = 0; i < count; ++i) sum[i] = static_cast<double>(r0[i]);
    std::size_t g = 1;
    for (; g + 4 <= rows.size(); g += 4) {
        const T *a = rows[g] + first, *b = rows[g + 1] + first, *c = rows[g + 2] + first, *d = rows[g + 3] + first;
        for (std::size_t i = 0; i < count; ++i) {
            sum[i] = (((sum[i] + static_cast<double>(a[i])) + static_cast<double>(b[i])) + static_cast<double>(c[i])) +
                     static_cast<double>(d[i]);
        }
    }
    for (; g < rows.size(); ++g) {
        const T* row = rows[g] + first;
        for (std::size_t i = 0; i < count; ++i) sum[i] += static_cast<double>(row[i]);
    }
}

template <class T>
void difference(const T* plus, double samples, const T* minus, double minus_samples, std::size_t count, double* out) {
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = static_cast<double>(plus[i]) / samples - static_cast<double>(minus[i]) / minus_samples;
    }
}

// Twice: for processors with 32-byte vectors, chosen when the library is loaded, and for all. Divisions are what costs in a
// single row: 66 ms in place of 83 (of one thread) for eight countries' rankings of 3.2 million. More clones, for sums and
// with 64-byte vectors, gained nothing: memory is what those wait for.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define CULNIG_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CULNIG_CLONES
#endif

CULNIG_CLONES inline void difference(const double* plus, double samples, const double* minus, double minus_samples,
                                     std::size_t count, double* out) {
    for (std::size_t i = 0; i < count; ++i) out[i] = plus[i] / samples - minus[i] / minus_samples;
}

template <class T>
void quotient(const T* plus, double samples, std::size_t count, double* out) {
    for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<double>(plus[i]) / samples;
}

// Calls take(values, count) with the ranking's values at `count` columns from `first`; single rows are read in place.
template <class T, class Take>
void with_values(const Ranking<T>& ranking, std::size_t first, std::size_t count, Scratch& scratch, const Take& take) {
    const Mean<T>&plus = ranking.plus, &minus = ranking.minus;
    double* out = scratch.sum.get();
    if (plus.rows.size() == 1 && minus.rows.size() <= 1) {
        const T* row = plus.rows[0] + first;
        if (!minus.rows.empty()) {
            difference(row, plus.samples, minus.rows[0] + first, minus.samples, count, out);
        } else if (plus.samples == 1.0) {
            return take(row, count);  // x / 1 is x
        } else {
            quotient(row, plus.samples, count, out);
        }
        return take(static_cast<const double*>(out), count);
    }
    sum_rows(plus.rows, first, count, out);
    if (!minus.rows.empty()) {
        sum_rows(minus.rows, first, count, scratch.other.get());
        difference(out, plus.samples, scratch.other.get(), minus.samples, count, out);
    } else if (plus.samples != 1.0) {
        quotient<double>(out, plus.samples, count, out);
    }
    take(static_cast<const double*>(out), count);
}

}  // namespace detail

}  // namespace culnig
