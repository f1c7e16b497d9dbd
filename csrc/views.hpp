// Arrays that somebody else owns.

#pragma once

#include <cstddef>
#include <cstdint>

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

}  // namespace culnig
