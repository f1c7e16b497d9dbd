// Entries in the order of their ranking.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "top_k.hpp"

namespace culnig {

namespace detail {

constexpr unsigned kDigitBits = 8, kDigits = 64 / kDigitBits;
constexpr std::size_t kDigitValues = std::size_t{1} << kDigitBits;
// Fewer are sorted sooner by comparisons. 8,000 take 0.11 ms in place of 0.32, 320,000 6 to 10 in place of 47.
constexpr std::size_t kFewEntries = 4096;

// Ascends as the value descends, +0 right before −0.
inline std::uint64_t descending_bits(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits >> 63) != 0 ? bits : bits ^ 0x7fffffffffffffffu;
}

inline std::size_t digit(const Entry& entry, unsigned which) {
    return static_cast<std::size_t>(descending_bits(entry.value) >> (which * kDigitBits)) & (kDigitValues - 1);
}

// By value alone, equal ones in any order: digit by digit, the lowest first.
inline void sort_by_value(std::vector<Entry>& entries) {
    std::array<std::array<std::size_t, kDigitValues>, kDigits> counts{};
    for (const Entry& entry : entries) {
        for (unsigned which = 0; which < kDigits; ++which) ++counts[which][digit(entry, which)];
    }
    std::vector<Entry> other(entries.size());
    for (unsigned which = 0; which < kDigits; ++which) {
        auto& places = counts[which];
        if (places[digit(entries.front(), which)] == entries.size()) continue;  // all have this digit
        std::size_t place = 0;
        for (std::size_t& count : places) {
            const std::size_t own = count;
            count = place;
            place += own;
        }
        for (const Entry& entry : entries) other[places[digit(entry, which)]++] = entry;
        entries.swap(other);
    }
}

}  // namespace detail

// Best first.
inline void sort_entries(std::vector<Entry>& entries) {
    if (entries.size() < detail::kFewEntries) return std::sort(entries.begin(), entries.end(), before);
    detail::sort_by_value(entries);
    // Equal ones are neighbours now, zeros of both signs too.
    for (auto first = entries.begin(); first != entries.end();) {
        const auto last = std::find_if(first, entries.end(), [&](const Entry& e) { return e.value != first->value; });
        if (last - first > 1) std::sort(first, last, before);
        first = last;
    }
}

}  // namespace culnig
