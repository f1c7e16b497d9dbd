// What the kernels for CPUs are asked to do. Memory belongs to the caller; strides count elements; columns lie next to
// each other.

#pragma once

#include <cstdint>

namespace culnig::cpu {

enum class Type { f32, bf16 };
enum class Activation { silu, gelu_tanh, relu, relu2 };
enum class Reduction { max, sum, mean, absmax };

// [rows, columns].
struct Rows {
    void* data;
    std::int64_t stride;
};

// [samples, positions, columns].
struct Samples {
    void* data;
    std::int64_t sample;
    std::int64_t position;
};

// out = act(gate) · up.
struct Gated {
    Type type;
    Activation activation;
    Rows gate, up, out;
    std::int64_t rows, columns;
};

// Gradients of Gated; where `lengths` are given, gate · ∂gate and up · ∂up reduced over each sample's positions, into
// rows `score_stride` apart.
struct GatedBackward {
    Type type;
    Activation activation;
    Reduction reduction;
    Samples dh, gate, up, d_gate, d_up;
    const std::int64_t* lengths;
    float* gate_scores;
    float* up_scores;
    std::int64_t score_stride;
    std::int64_t samples, positions, columns;
};

// z = x + residual, or x; y = weight · z / rms(z).
struct Norm {
    Type type;
    Rows x, residual, y, z;
    float* rstd;
    const float* weight;
    float eps;
    std::int64_t rows, columns;
};

// ∂z of Norm, with d_residual added where there is one.
struct NormBackward {
    Type type;
    Rows dy, z, d_residual, out;
    const float* rstd;
    const float* weight;
    std::int64_t rows, columns;
};

// Heads of head_dim columns, normalised where there is a weight, their first `rotated` columns turned. The angles of
// samples are `angle_sample` apart (0: shared), those of positions `rotated`.
struct Rotary {
    Type type;
    Samples x, out;
    const float *cos, *sin;
    std::int64_t angle_sample, rotated;
    const float* weight;
    float eps;
    std::int64_t samples, positions, heads, head_dim;
};

// Gradient of Rotary; x · ∂x reduced over each sample's positions where `scores` is given.
struct RotaryBackward {
    Rotary forward;  // its `out` receives ∂x
    Samples d_out;
    const std::int64_t* lengths;
    float* scores;
    Reduction reduction;
};

// act · grad of each sample, reduced over its positions; over the marked ones where there is a mask `keep` [samples,
// positions].
struct ActGrad {
    Type type;
    Reduction reduction;
    bool zero_padding;
    Samples act, grad;
    const std::int64_t* lengths;
    const bool* keep;
    float* scores;
    std::int64_t samples, positions, columns;
};

// What one task takes: so many rows, or one sample's columns of so many. With 512 columns 8 × 128 positions of 4,096 took
// 1.98 ms to score in bf16 in place of 1.31, and 5.97 to be turned back in place of 5.19; 2,048 are no faster and give
// half as many tasks.
constexpr std::int64_t kRows = 16;
constexpr std::int64_t kColumns = 1024;
constexpr std::int64_t kMostHeadDim = 512;
constexpr std::int64_t kLanes = 16;  // partial sums of a row

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline std::int64_t tasks(const Gated& job) { return ceil_div(job.rows, kRows); }
inline std::int64_t tasks(const GatedBackward& job) { return job.samples * ceil_div(job.columns, kColumns); }
inline std::int64_t tasks(const Norm& job) { return ceil_div(job.rows, kRows); }
inline std::int64_t tasks(const NormBackward& job) { return ceil_div(job.rows, kRows); }
inline std::int64_t tasks(const Rotary& job) { return job.samples * ceil_div(job.positions, kRows); }
inline std::int64_t heads_a_task(const Rotary& job) { return kColumns / job.head_dim; }
inline std::int64_t tasks(const RotaryBackward& job) {
    return job.forward.samples * ceil_div(job.forward.heads, heads_a_task(job.forward));
}
inline std::int64_t tasks(const ActGrad& job) { return job.samples * ceil_div(job.columns, kColumns); }

}  // namespace culnig::cpu
