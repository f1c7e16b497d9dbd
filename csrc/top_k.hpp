// The k best of a stream of values, at one comparison a value for almost all of them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace culnig {

struct Entry {
    double value;
    std::int64_t index;
};

// The order of a stable descending sort: larger first, the lower index first among equals (−0 equals +0).
inline bool before(const Entry& a, const Entry& b) {
    return a.value > b.value || (a.value == b.value && a.index < b.index);
}

// Moves the k best to the front, in any order, and drops the rest. A total order has only one such set.
inline void keep_best(std::vector<Entry>& entries, std::size_t k) {
    if (entries.size() <= k) return;
    std::nth_element(entries.begin(), entries.begin() + static_cast<std::ptrdiff_t>(k), entries.end(), before);
    entries.resize(k);
}

constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();

constexpr std::size_t kStep = 16;  // values that are held against the bar together

// Whether all of kStep values are ≤ bar; NaN is not.
template <class V>
bool all_below(const V* values, double bar) {
    unsigned below = 0;
    for (std::size_t i = 0; i < kStep; ++i) below += static_cast<double>(values[i]) <= bar;
    return below == kStep;
}

#ifdef __SSE2__
// By hand, as GCC makes no vectors from comparisons of doubles before SSE4: 0.4 ms in place of 1.3 for 3.2 million values.
inline bool all_below(const double* values, double bar) {
    const __m128d bars = _mm_set1_pd(bar);
    __m128d below = _mm_cmple_pd(_mm_loadu_pd(values), bars);
    for (std::size_t i = 2; i < kStep; i += 2) {
        below = _mm_and_pd(below, _mm_cmple_pd(_mm_loadu_pd(values + i), bars));
    }
    return _mm_movemask_pd(below) == 3;
}
#endif

// Holds the k best values seen so far, offered in ascending index order, and at most 2k of them: whenever the buffer is
// full, the better half stays and its worst value becomes the bar, which later values must exceed (an equal one has a
// higher index and loses). Linear time for any input.
//
// A bar guessed beforehand spares most of that work. It changes no result as long as k values reach it, which the owner
// has to check over all threads: fewer than k entries in the end mean that the guess was too high.
class TopK {
public:
    explicit TopK(std::size_t k) : k_(k), open_(k > 0) {}

    // Takes no value below `least`.
    void guess(double least) {
        if (!open_ || least == -kInfinity) return;
        bar_ = std::nextafter(least, -kInfinity);
        open_ = false;
    }

    // Offers values[i] as index first + i.
    template <class V>
    void offer(const V* values, std::size_t count, std::int64_t first) {
        std::size_t i = 0;
        for (; i + kStep <= count; i += kStep) {
            if (open_ || !all_below(values + i, bar_)) offer_each(values + i, kStep, first + static_cast<std::int64_t>(i));
        }
        offer_each(values + i, count - i, first + static_cast<std::int64_t>(i));
    }

    bool open() const { return open_; }
    double bar() const { return bar_; }  // what values must exceed, once there is one
    // kNone, or the index of the first NaN that was offered.
    std::int64_t first_nan() const { return first_nan_; }
    std::vector<Entry>& entries() { return entries_; }

private:
    static constexpr double kInfinity = std::numeric_limits<double>::infinity();

    template <class V>
    void offer_each(const V* values, std::size_t count, std::int64_t first) {
        for (std::size_t i = 0; i < count; ++i) {
            const auto value = static_cast<double>(values[i]);
            const std::int64_t index = first + static_cast<std::int64_t>(i);
            if (value != value) {
                first_nan_ = std::min(first_nan_, index);
            } else if (open_ || value > bar_) {
                entries_.push_back({value, index});
                if (entries_.size() >= 2 * k_) raise_bar();
            }
        }
    }

    void raise_bar() {
        const auto last = entries_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
        std::nth_element(entries_.begin(), last, entries_.end(), before);
        bar_ = last->value;
        open_ = false;
        entries_.resize(k_);
    }

    std::size_t k_;
    bool open_;  // no bar yet: every value is taken
    double bar_ = kInfinity;
    std::int64_t first_nan_ = kNone;
    std::vector<Entry> entries_;
};

}  // namespace culnig
