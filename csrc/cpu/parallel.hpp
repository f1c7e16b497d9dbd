// Tasks shared out over threads: torch's own where both use OpenMP, whose idle threads would be in the way of others.

#pragma once

#include <cstddef>
#include <cstdint>

#ifndef _OPENMP
#include "../threads.hpp"
#endif

namespace culnig::cpu {

// Runs work(task) for every task in [0, tasks). Which thread takes which decides nothing: no two share a result.
template <class Work>
void in_parallel(std::int64_t tasks, int threads, const Work& work) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (tasks > 1 && threads > 1)
    for (std::int64_t task = 0; task < tasks; ++task) work(task);
#else
    const auto count = static_cast<std::size_t>(tasks);
    const unsigned workers = worker_count(static_cast<unsigned>(threads), count);
    share_out(count, workers, [&](unsigned, std::size_t task) { work(static_cast<std::int64_t>(task)); });
#endif
}

}  // namespace culnig::cpu
