// Gated activation, and its backward with the scores of gate and up.

template <class T, class Act>
void gated_rows(const Gated& job, std::int64_t task) {
    const std::int64_t stop = smaller(job.rows, (task + 1) * kRows);
    for (std::int64_t row = task * kRows; row < stop; ++row) {
        const T* gate = at<T>(job.gate, row);
        const T* up = at<T>(job.up, row);
        T* __restrict out = at<T>(job.out, row);
        for (std::int64_t j = 0; j < job.columns; ++j) store(out[j], Act::at(load(gate[j])).value * load(up[j]));
    }
}

template <class T, class Act, Reduction kRule, bool kScore>
void gated_columns(const GatedBackward& job, std::int64_t task) {
    const std::int64_t blocks = ceil_div(job.columns, kColumns);
    const std::int64_t sample = task / blocks, first = task % blocks * kColumns;
    const std::int64_t columns = smaller(kColumns, job.columns - first);
    const std::int64_t counted = kScore ? job.lengths[sample] : 0;
    Running<kRule> of_gate(columns), of_up(columns);
    const auto rows = [&](std::int64_t start, std::int64_t stop, auto score) {
        for (std::int64_t t = start; t < stop; ++t) {
            const T* dh = at<T>(job.dh, sample, t) + first;
            const T* gate = at<T>(job.gate, sample, t) + first;
            const T* up = at<T>(job.up, sample, t) + first;
            T* d_gate = at<T>(job.d_gate, sample, t) + first;
            T* d_up = at<T>(job.d_up, sample, t) + first;
CULNIG_NO_ALIAS
            for (std::int64_t j = 0; j < columns; ++j) {
                const float d = load(dh[j]), g = load(gate[j]), u = load(up[j]);
                const Curve curve = Act::at(g);
                const float by_gate = d * u * curve.slope, by_up = d * curve.value;
                store(d_gate[j], by_gate);
                store(d_up[j], by_up);
                if constexpr (decltype(score)::value) {
                    of_gate.add(j, g * by_gate);
                    of_up.add(j, u * by_up);
                }
            }
        }
    };
    if constexpr (kScore) rows(0, counted, std::true_type());
    rows(counted, job.positions, std::false_type());
    const std::int64_t place = sample * job.score_stride + first;
    if (job.gate_scores) of_gate.write(job.gate_scores + place, columns, counted);
    if (job.up_scores) of_up.write(job.up_scores + place, columns, counted);
}

template <class T, class Act>
struct GatedOf {
    static void run(const Gated& job, std::int64_t task) { gated_rows<T, Act>(job, task); }
    static void run(const GatedBackward& job, std::int64_t task) {
        if (!job.lengths) return gated_columns<T, Act, Reduction::max, false>(job, task);
        if (job.reduction == Reduction::max) return gated_columns<T, Act, Reduction::max, true>(job, task);
        return gated_columns<T, Act, Reduction::sum, true>(job, task);
    }
};

template <class T, class Job>
void gated_activated(const Job& job, std::int64_t task) {
    switch (job.activation) {
        case Activation::silu: return GatedOf<T, Silu>::run(job, task);
        case Activation::gelu_tanh: return GatedOf<T, GeluTanh>::run(job, task);
        case Activation::relu: return GatedOf<T, Relu>::run(job, task);
        case Activation::relu2: return GatedOf<T, Relu2>::run(job, task);
    }
}

inline void run(const Gated& job, std::int64_t task) {
    job.type == Type::f32 ? gated_activated<float>(job, task) : gated_activated<Bf16>(job, task);
}

inline void run(const GatedBackward& job, std::int64_t task) {
    job.type == Type::f32 ? gated_activated<float>(job, task) : gated_activated<Bf16>(job, task);
}
