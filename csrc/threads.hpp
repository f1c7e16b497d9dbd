// Sharing work out over threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace culnig {

// How many threads `tasks` tasks are worth, `wanted` at most (0: one a core).
inline unsigned worker_count(unsigned wanted, std::size_t tasks) {
    if (wanted == 0) wanted = std::max(1u, std::thread::hardware_concurrency());
    return static_cast<unsigned>(std::max<std::size_t>(1, std::min<std::size_t>(wanted, tasks)));
}

// Runs work(worker, task) for every task in [0, tasks) on `workers` threads, this one included. Each draws the next task
// when it is done with its last, so that a core that is busy elsewhere holds nobody up, and sees its own tasks ascend.
// The first exception is thrown again here, after all threads have ended.
template <class Work>
void share_out(std::size_t tasks, unsigned workers, const Work& work) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    const auto run = [&](unsigned worker) {
        try {
            for (std::size_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(worker, task);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(guard);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    others.reserve(workers);
    try {
        for (unsigned worker = 1; worker < workers; ++worker) others.emplace_back(run, worker);
    } catch (...) {
        // The machine has no more threads, or no memory for one; those that started do all of it.
    }
    run(0);
    for (auto& thread : others) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace culnig
