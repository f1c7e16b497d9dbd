// Many rankings in one sweep over tables: every value is read once, and no difference is ever stored.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "guess.hpp"
#include "ranking.hpp"
#include "screen.hpp"
#include "sorting.hpp"
#include "threads.hpp"
#include "top_k.hpp"
#include "views.hpp"

namespace culnig {

namespace detail {

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
            best[w].reserve(n);
            for (std::size_t r = 0; r < n; ++r) {
                best[w].emplace_back(rankings[r].k);
                best[w].back().guess(bars[r]);
            }
            scratch[w] = std::make_unique<detail::Scratch>(tuning.block);
        }
        share_out(blocks.size(), workers, [&](unsigned w, std::size_t b) {
            const detail::Block& block = blocks[b];
            detail::offer_values(rankings[block.ranking], block.first, block.count, *scratch[w], best[w][block.ranking]);
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

// Indices [k] of the k largest of `values`, in the order of a stable descending sort. Throws NotANumber.
template <class T>
void top_k(Span<const T> values, std::size_t k, unsigned threads, std::int64_t* out, const Tuning& tuning = {}) {
    const Range all{0, static_cast<std::int64_t>(values.size)};
    std::vector<Ranking<T>> ranking{{{{values.data}, 1.0}, {}, {&all, 1}, k}};
    auto best = std::move(rank_all(ranking, threads, tuning)[0]);
    sort_entries(best);
    for (std::size_t i = 0; i < k; ++i) out[i] = best[i].index;
}

}  // namespace culnig
