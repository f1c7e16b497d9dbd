// Rotation of heads, after their norm where there is one, and its backward with the scores of what was rotated.

template <class T>
void rotary_rows(const Rotary& job, std::int64_t task) {
    const std::int64_t blocks = ceil_div(job.positions, kRows), half = job.rotated / 2;
    const std::int64_t sample = task / blocks, first = task % blocks * kRows;
    const std::int64_t stop = smaller(job.positions, first + kRows);
    float head[kMostHeadDim];
    for (std::int64_t t = first; t < stop; ++t) {
        const float* cos = job.cos + sample * job.angle_sample + t * job.rotated;
        const float* sin = job.sin + sample * job.angle_sample + t * job.rotated;
        for (std::int64_t h = 0; h < job.heads; ++h) {
            const T* x = at<T>(job.x, sample, t) + h * job.head_dim;
            T* __restrict out = at<T>(job.out, sample, t) + h * job.head_dim;
            if (job.weight) {
                const float rstd = inverse_rms(job.head_dim, job.eps, [&](std::int64_t j) { return load(x[j]); });
                for (std::int64_t j = 0; j < job.head_dim; ++j) head[j] = load(x[j]) * rstd * job.weight[j];
            } else {
                for (std::int64_t j = 0; j < job.head_dim; ++j) head[j] = load(x[j]);
            }
            for (std::int64_t j = 0; j < half; ++j) {
                const float low = head[j], high = head[j + half];
                store(out[j], low * cos[j] - high * sin[j]);
                store(out[j + half], high * cos[j + half] + low * sin[j + half]);
            }
            for (std::int64_t j = job.rotated; j < job.head_dim; ++j) store(out[j], head[j]);
        }
    }
}

template <class T, Reduction kRule, bool kScore>
void rotary_backward_columns(const RotaryBackward& job, std::int64_t task) {
    const Rotary& forward = job.forward;
    const std::int64_t n = forward.head_dim, half = forward.rotated / 2, each = heads_a_task(forward);
    const std::int64_t blocks = ceil_div(forward.heads, each);
    const std::int64_t sample = task / blocks, first = task % blocks * each;
    const std::int64_t heads = smaller(each, forward.heads - first);
    const std::int64_t counted = kScore ? job.lengths[sample] : 0;
    Running<kRule> scores(heads * n);
    float gradient[kMostHeadDim];
    for (std::int64_t t = 0; t < forward.positions; ++t) {
        const float* cos = forward.cos + sample * forward.angle_sample + t * forward.rotated;
        const float* sin = forward.sin + sample * forward.angle_sample + t * forward.rotated;
        for (std::int64_t h = 0; h < heads; ++h) {
            const T* x = at<T>(forward.x, sample, t) + (first + h) * n;
            const T* d = at<T>(job.d_out, sample, t) + (first + h) * n;
            T* __restrict out = at<T>(forward.out, sample, t) + (first + h) * n;
            for (std::int64_t j = 0; j < half; ++j) {
                const float low = load(d[j]), high = load(d[j + half]);
                gradient[j] = low * cos[j] + high * sin[j + half];
                gradient[j + half] = high * cos[j + half] - low * sin[j];
            }
            for (std::int64_t j = forward.rotated; j < n; ++j) gradient[j] = load(d[j]);
            if (forward.weight) {
                const float rstd = inverse_rms(n, forward.eps, [&](std::int64_t j) { return load(x[j]); });
                const double along = sum_of(
                    n, [&](std::int64_t j) { return gradient[j] * forward.weight[j] * (load(x[j]) * rstd); });
                const float mean = static_cast<float>(along / static_cast<double>(n));
                for (std::int64_t j = 0; j < n; ++j) {
                    gradient[j] = rstd * (gradient[j] * forward.weight[j] - load(x[j]) * rstd * mean);
                }
            }
            for (std::int64_t j = 0; j < n; ++j) store(out[j], gradient[j]);
            if (kScore && t < counted) {
                for (std::int64_t j = 0; j < n; ++j) scores.add(h * n + j, load(x[j]) * gradient[j]);
            }
        }
    }
    if constexpr (kScore) scores.write(job.scores + (sample * forward.heads + first) * n, heads * n, counted);
}

template <class T>
void rotary_backward_typed(const RotaryBackward& job, std::int64_t task) {
    if (!job.scores) return rotary_backward_columns<T, Reduction::max, false>(job, task);
    if (job.reduction == Reduction::max) return rotary_backward_columns<T, Reduction::max, true>(job, task);
    return rotary_backward_columns<T, Reduction::sum, true>(job, task);
}

inline void run(const Rotary& job, std::int64_t task) {
    job.type == Type::f32 ? rotary_rows<float>(job, task) : rotary_rows<Bf16>(job, task);
}

inline void run(const RotaryBackward& job, std::int64_t task) {
    job.forward.type == Type::f32 ? rotary_backward_typed<float>(job, task) : rotary_backward_typed<Bf16>(job, task);
}
