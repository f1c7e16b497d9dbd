// Activation × gradient, reduced over each sample's positions.

template <class T, Reduction kRule>
void actgrad_columns(const ActGrad& job, std::int64_t task) {
    const std::int64_t blocks = ceil_div(job.columns, kColumns);
    const std::int64_t sample = task / blocks, first = task % blocks * kColumns;
    const std::int64_t columns = smaller(kColumns, job.columns - first), counted = job.lengths[sample];
    Running<kRule> scores(columns);
    const bool* keep = job.keep ? job.keep + sample * job.positions : nullptr;
    std::int64_t kept = 0;
    for (std::int64_t t = 0; t < counted; ++t) {
        if (keep && !keep[t]) continue;
        ++kept;
        const T* act = at<T>(job.act, sample, t) + first;
        const T* grad = at<T>(job.grad, sample, t) + first;
        for (std::int64_t j = 0; j < columns; ++j) scores.add(j, load(act[j]) * load(grad[j]));
    }
    if (kRule == Reduction::max && job.zero_padding && counted < job.positions) {
        for (std::int64_t j = 0; j < columns; ++j) scores.add(j, 0.0f);
    }
    scores.write(job.scores + sample * job.columns + first, columns, kept);
}

template <class T>
void actgrad_typed(const ActGrad& job, std::int64_t task) {
    switch (job.reduction) {
        case Reduction::max: return actgrad_columns<T, Reduction::max>(job, task);
        case Reduction::sum: return actgrad_columns<T, Reduction::sum>(job, task);
        case Reduction::mean: return actgrad_columns<T, Reduction::mean>(job, task);
        case Reduction::absmax: return actgrad_columns<T, Reduction::absmax>(job, task);
    }
}

inline void run(const ActGrad& job, std::int64_t task) {
    job.type == Type::f32 ? actgrad_typed<float>(job, task) : actgrad_typed<Bf16>(job, task);
}
