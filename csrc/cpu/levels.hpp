// The kernels, once for each set of vector instructions, and the choice among them when the program runs: a package
// built for all machines of a kind is still as fast on each as one built there.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "jobs.hpp"

// Before a loop whose iterations do not depend on one another, whatever its pointers say.
#if defined(__clang__)
#define CULNIG_NO_ALIAS _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define CULNIG_NO_ALIAS _Pragma("GCC ivdep")
#else
#define CULNIG_NO_ALIAS
#endif

namespace culnig::cpu::baseline {
#include "numbers.inl"
#include "gated.inl"
#include "norm.inl"
#include "rotary.inl"
#include "scores.inl"
}  // namespace culnig::cpu::baseline

// Clang has no such pragma; it gets the level that its flags name.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define CULNIG_LEVELS 1

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace culnig::cpu::avx2 {
#include "numbers.inl"
#include "gated.inl"
#include "norm.inl"
#include "rotary.inl"
#include "scores.inl"
}  // namespace culnig::cpu::avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
namespace culnig::cpu::avx512 {
#include "numbers.inl"
#include "gated.inl"
#include "norm.inl"
#include "rotary.inl"
#include "scores.inl"
}  // namespace culnig::cpu::avx512
#pragma GCC pop_options
#endif

namespace culnig::cpu {

enum class Level { baseline, avx2, avx512 };

// The levels that this machine runs, the best one last.
inline std::vector<std::string> levels() {
    std::vector<std::string> names{"baseline"};
#ifdef CULNIG_LEVELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        names.emplace_back("avx2");
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
            names.emplace_back("avx512");
        }
    }
#endif
    return names;
}

template <class Job>
void run_task(Level level, const Job& job, std::int64_t task) {
#ifdef CULNIG_LEVELS
    if (level == Level::avx512) return avx512::run(job, task);
    if (level == Level::avx2) return avx2::run(job, task);
#endif
    static_cast<void>(level);
    baseline::run(job, task);
}

}  // namespace culnig::cpu
