// The first bar of a ranking, guessed from a sample of its columns: almost all values then fall at one comparison.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "ranking.hpp"
#include "views.hpp"

namespace culnig {

// What a sweep may be told for tests; no value changes a result.
struct Tuning {
    // Columns read at a time, from all rows. Over 16 + 16 + 8 rows of 3.2 million, 2 threads took 33 ms with 512,
    // 31 ms with 2048 and 29.5 ms with 4096 and more (reading alone: 28.5 ms); two partial sums of 4096 doubles fill
    // 64 KiB of a second-level cache.
    std::size_t block = 4096;
    // The sample for the first bar: this many runs of neighbouring columns, spread evenly over the pool.
    std::size_t runs = 2048;
    std::size_t run = 16;
    // Standard deviations by which the sample's guess errs to the low side.
    double caution = 4.0;
};

namespace detail {

inline std::size_t pool_size(Span<const Range> pool) {
    std::size_t size = 0;
    for (const auto [start, stop] : pool) size += static_cast<std::size_t>(stop - start);
    return size;
}

inline std::uint64_t scramble(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// Guesses the k-th largest value from a sample, erring to the low side; −infinity where a sample would not pay.
template <class T>
double guess_bar(const Ranking<T>& ranking, const Tuning& tuning) {
    constexpr double kNothing = -std::numeric_limits<double>::infinity();
    const std::size_t size = pool_size(ranking.pool);
    // Without a guess every thread holds up to 2 k entries: of 3.2 million values a quarter took 153 ms on one thread and
    // 176 MB on 64 in place of 58 ms and 46 MB.
    if (tuning.runs == 0 || ranking.k == 0 || size < 4 * tuning.runs * tuning.run || ranking.k > size / 2) {
        return kNothing;
    }
    std::vector<double> sample;
    sample.reserve(tuning.runs * tuning.run);
    Scratch scratch(tuning.run);
    std::size_t range = 0, passed = 0;  // columns of the pool before `range`
    for (std::size_t r = 0; r < tuning.runs; ++r) {
        // One run in each of equal parts of the pool, so that every layer has its share, but at no fixed distance:
        // widths of heads and layers are round numbers.
        const std::size_t from = size * r / tuning.runs, to = size * (r + 1) / tuning.runs - tuning.run;
        const std::size_t position = from + scramble(r + 1) % (to - from + 1);
        for (;; ++range) {
            const auto width = static_cast<std::size_t>(ranking.pool[range].stop - ranking.pool[range].start);
            if (position < passed + width) break;
            passed += width;
        }
        const auto first = static_cast<std::size_t>(ranking.pool[range].start) + (position - passed);
        const auto stop = static_cast<std::size_t>(ranking.pool[range].stop);
        with_values(ranking, first, std::min(tuning.run, stop - first), scratch, [&](const auto* v, std::size_t n) {
            for (std::size_t i = 0; i < n; ++i) {
                if (v[i] == v[i]) sample.push_back(static_cast<double>(v[i]));
            }
        });
    }
    const double expected = static_cast<double>(sample.size()) * static_cast<double>(ranking.k) / static_cast<double>(size);
    const double rank = std::max(0.0, expected + tuning.caution * (std::sqrt(expected) + 1.0));
    if (rank + 1.0 >= static_cast<double>(sample.size())) return kNothing;
    const auto kth = sample.begin() + static_cast<std::ptrdiff_t>(rank);
    std::nth_element(sample.begin(), kth, sample.end(), std::greater<double>());
    return *kth;
}

}  // namespace detail

}  // namespace culnig
