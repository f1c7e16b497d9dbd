// Many rankings in one sweep over tables: every value is read once, and no difference is ever stored.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "threads.hpp"
#include "top_k.hpp"

namespace culnig {

// `size` consecutive elements that somebody else owns.
template <class T>
struct Span {
    T* data;
    std::size_t size;
    T& operator[](std::size_t i) const { return data[i]; }
    T* begin() const { return data; }
    T* end() const { return data + size; }
};

// A read-only [rows, columns] matrix whose rows are contiguous and `stride` elements apart.
template <class T>
struct Matrix {
    const T* data;
    std::size_t rows;
    std::size_t columns;
    std::ptrdiff_t stride;
    const T* row(std::size_t i) const { return data + static_cast<std::ptrdiff_t>(i) * stride; }
};

// Columns start ≤ column < stop.
struct Range {
    std::int64_t start;
    std::int64_t stop;
};

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
    if (tuning.runs == 0 || ranking.k == 0 || size < 4 * tuning.runs * tuning.run || ranking.k > size / 8) {
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

struct Block {
    std::size_t ranking, first, count;
};

template <class T>
std::vector<Block> cut(const std::vector<Ranking<T>>& rankings, const std::vector<std::size_t>& which, std::size_t block) {
    std::vector<Block> blocks;
    for (const std::size_t r : which) {
        const auto pool = rankings[r].pool;
        for (std::size_t i = 0; i < pool.size; ++i) {
            auto first = static_cast<std::size_t>(pool[i].start);
            // Neighbouring ranges, such as q, k and v of a layer, are read as one.
            while (i + 1 < pool.size && pool[i + 1].start == pool[i].stop) ++i;
            const auto stop = static_cast<std::size_t>(pool[i].stop);
            for (; first < stop; first += block) blocks.push_back({r, first, std::min(block, stop - first)});
        }
    }
    return blocks;
}

}  // namespace detail

// A ranking's value at `column` is NaN; of several rankings the first, and of its columns the lowest.
struct NotANumber {
    std::size_t ranking;
    std::int64_t column;
};

// The k best of every ranking, unordered. Throws NotANumber. A thread's share decides nothing: the order is total.
template <class T>
std::vector<std::vector<Entry>> rank_all(const std::vector<Ranking<T>>& rankings, unsigned threads, const Tuning& tuning) {
    const std::size_t n = rankings.size();
    std::vector<double> bars(n);
    std::vector<std::size_t> which(n);
    for (std::size_t r = 0; r < n; ++r) which[r] = r;
    share_out(n, worker_count(threads, n), [&](unsigned, std::size_t r) { bars[r] = detail::guess_bar(rankings[r], tuning); });

    std::vector<std::vector<Entry>> result(n);
    while (!which.empty()) {
        const auto blocks = detail::cut(rankings, which, tuning.block);
        // A thread costs some 30 µs to start, a block of 40 rows some 20 µs to read.
        const unsigned workers = worker_count(threads, blocks.size() / 16);
        std::vector<std::vector<TopK>> best(workers);
        std::vector<std::unique_ptr<detail::Scratch>> scratch(workers);
        for (unsigned w = 0; w < workers; ++w) {
            for (std::size_t r = 0; r < n; ++r) {
                best[w].emplace_back(rankings[r].k);
                best[w].back().guess(bars[r]);
            }
            scratch[w] = std::make_unique<detail::Scratch>(tuning.block);
        }
        share_out(blocks.size(), workers, [&](unsigned w, std::size_t b) {
            const auto [r, first, count] = blocks[b];
            auto& top = best[w][r];
            detail::with_values(rankings[r], first, count, *scratch[w], [&](const auto* values, std::size_t size) {
                top.offer(values, size, static_cast<std::int64_t>(first));
            });
        });
        for (const std::size_t r : which) {
            std::int64_t missing = kNone;
            for (unsigned w = 0; w < workers; ++w) missing = std::min(missing, best[w][r].first_nan());
            if (missing != kNone) throw NotANumber{r, missing};
        }
        share_out(which.size(), worker_count(workers, which.size()), [&](unsigned, std::size_t i) {
            const std::size_t r = which[i];
            auto& all = result[r];
            all.swap(best[0][r].entries());
            for (unsigned w = 1; w < workers; ++w) {
                const auto& more = best[w][r].entries();
                all.insert(all.end(), more.begin(), more.end());
            }
            keep_best(all, rankings[r].k);
        });
        std::vector<std::size_t> again;
        for (const std::size_t r : which) {
            const std::size_t reached = result[r].size();
            if (reached == rankings[r].k) continue;
            // Fewer than k values reach the guess: read this one again without any.
            bars[r] = -std::numeric_limits<double>::infinity();
            result[r].clear();
            again.push_back(r);
        }
        which = std::move(again);
    }
    return result;
}

// One pool: its candidates, and what to hold them against.
template <class T>
struct Job {
    Ranking<T> difference;
    Ranking<T> surface;                       // no rows: nothing to hold them against
    std::vector<std::size_t> surface_counts;  // ascending; the last is surface.k
};

// best: the candidates, best first. surface_class: for each, how many of the surface counts are too small for it to be
// among the so many best on the surface; surface_counts.size() when it is among none.
struct Candidates {
    std::vector<Entry> best;
    std::vector<std::int64_t> surface_class;
};

namespace detail {

inline void classify(Candidates& candidates, std::vector<Entry>& surface, const std::vector<std::size_t>& counts,
                     std::size_t columns) {
    candidates.surface_class.assign(candidates.best.size(), static_cast<std::int64_t>(counts.size()));
    std::vector<bool> among;
    for (std::size_t c = counts.size(); c-- > 0;) {
        keep_best(surface, counts[c]);
        among.assign(columns, false);
        for (const Entry& entry : surface) among[static_cast<std::size_t>(entry.index)] = true;
        for (std::size_t i = 0; i < candidates.best.size(); ++i) {
            if (among[static_cast<std::size_t>(candidates.best[i].index)]) {
                candidates.surface_class[i] = static_cast<std::int64_t>(c);
            }
        }
    }
}

}  // namespace detail

// The candidates of all jobs in one sweep. Throws NotANumber with ranking 2 j for the difference of job j, 2 j + 1 for its
// surface. k ≤ pool, rows within the tables and at least one of them are the caller's duty.
template <class T>
std::vector<Candidates> candidates(const std::vector<Job<T>>& jobs, std::size_t columns, unsigned threads,
                                   const Tuning& tuning = {}) {
    std::vector<Ranking<T>> rankings;
    for (const auto& job : jobs) {
        rankings.push_back(job.difference);
        rankings.push_back(job.surface);
        if (job.surface.plus.rows.empty()) rankings.back() = {{}, {}, {nullptr, 0}, 0};
    }
    auto best = rank_all(rankings, threads, tuning);
    std::vector<Candidates> result(jobs.size());
    share_out(jobs.size(), worker_count(threads, jobs.size()), [&](unsigned, std::size_t j) {
        result[j].best.swap(best[2 * j]);
        std::sort(result[j].best.begin(), result[j].best.end(), before);
        detail::classify(result[j], best[2 * j + 1], jobs[j].surface_counts, columns);
    });
    return result;
}

// Indices [k] of the k largest of `values`, in the order of a stable descending sort. Throws NotANumber.
template <class T>
void top_k(Span<const T> values, std::size_t k, unsigned threads, std::int64_t* out, const Tuning& tuning = {}) {
    const Range all{0, static_cast<std::int64_t>(values.size)};
    std::vector<Ranking<T>> ranking{{{{values.data}, 1.0}, {}, {&all, 1}, k}};
    auto best = std::move(rank_all(ranking, threads, tuning)[0]);
    std::sort(best.begin(), best.end(), before);
    for (std::size_t i = 0; i < k; ++i) out[i] = best[i].index;
}

}  // namespace culnig
