// RMS norm and its activation-only backward.

template <class T, bool kResidual>
void norm_rows(const Norm& job, std::int64_t task) {
    const std::int64_t stop = smaller(job.rows, (task + 1) * kRows), n = job.columns;
    for (std::int64_t row = task * kRows; row < stop; ++row) {
        const T* x = at<T>(job.x, row);
        const T* z = x;
        if constexpr (kResidual) {
            const T* residual = at<T>(job.residual, row);
            T* __restrict sum = at<T>(job.z, row);
            for (std::int64_t j = 0; j < n; ++j) store(sum[j], load(x[j]) + load(residual[j]));
            z = sum;
        }
        const float rstd = inverse_rms(n, job.eps, [&](std::int64_t j) { return load(z[j]); });
        job.rstd[row] = rstd;
        T* __restrict y = at<T>(job.y, row);
        for (std::int64_t j = 0; j < n; ++j) store(y[j], load(z[j]) * rstd * job.weight[j]);
    }
}

template <class T, bool kResidual>
void norm_backward_rows(const NormBackward& job, std::int64_t task) {
    const std::int64_t stop = smaller(job.rows, (task + 1) * kRows), n = job.columns;
    for (std::int64_t row = task * kRows; row < stop; ++row) {
        const T* dy = at<T>(job.dy, row);
        const T* z = at<T>(job.z, row);
        const T* extra = kResidual ? at<T>(job.d_residual, row) : nullptr;
        const float rstd = job.rstd[row];
        const double along =
            sum_of(n, [&](std::int64_t j) { return load(dy[j]) * job.weight[j] * (load(z[j]) * rstd); });
        const float mean = static_cast<float>(along / static_cast<double>(n));
        T* __restrict out = at<T>(job.out, row);
        for (std::int64_t j = 0; j < n; ++j) {
            const float gradient = rstd * (load(dy[j]) * job.weight[j] - load(z[j]) * rstd * mean);
            store(out[j], kResidual ? gradient + load(extra[j]) : gradient);
        }
    }
}

template <class T>
void norm_typed(const Norm& job, std::int64_t task) {
    job.residual.data ? norm_rows<T, true>(job, task) : norm_rows<T, false>(job, task);
}

template <class T>
void norm_typed(const NormBackward& job, std::int64_t task) {
    job.d_residual.data ? norm_backward_rows<T, true>(job, task) : norm_backward_rows<T, false>(job, task);
}

inline void run(const Norm& job, std::int64_t task) {
    job.type == Type::f32 ? norm_typed<float>(job, task) : norm_typed<Bf16>(job, task);
}

inline void run(const NormBackward& job, std::int64_t task) {
    job.type == Type::f32 ? norm_typed<float>(job, task) : norm_typed<Bf16>(job, task);
}
