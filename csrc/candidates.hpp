// The candidates of many pools in one sweep, and where each stands on the surface table.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "sorting.hpp"
#include "sweep.hpp"

namespace culnig {

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
    rankings.reserve(2 * jobs.size());
    for (const auto& job : jobs) {
        rankings.push_back(job.difference);
        rankings.push_back(job.surface);
        if (job.surface.plus.rows.empty()) rankings.back() = {{}, {}, {nullptr, 0}, 0};
    }
    auto best = rank_all(rankings, threads, tuning);
    std::vector<Candidates> result(jobs.size());
    share_out(jobs.size(), worker_count(threads, jobs.size()), [&](unsigned, std::size_t j) {
        result[j].best.swap(best[2 * j]);
        sort_entries(result[j].best);
        detail::classify(result[j], best[2 * j + 1], jobs[j].surface_counts, columns);
    });
    return result;
}

}  // namespace culnig
