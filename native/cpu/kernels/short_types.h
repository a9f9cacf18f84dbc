// short_types.h: ops that take numbers lying short (BF16, F16, or I8 with scales), as GPUs keep them, by
// way of the kernels for f32: short inputs are widened in scratch, short outputs made in f32 and
// rounded. On a CPU nobody is faster for it; this is the exact twin that GPU kernels are held to.

inline bool isShortType(int32_t dtype) { return dtype == AQ_BF16 || dtype == AQ_F16; }

inline void convertView(const aq_view& from, const aq_view& to) {
  const aq_cast_params params = {to.dtype, 0};
  cast(nullptr, &from, 1, &to, 1, &params, nullptr);
}

// Views of a call with the short ones in f32; their memory lives as long as this.
class WidenedViews {
 public:
  static constexpr int32_t kMost = 10;

  WidenedViews() = default;
  ~WidenedViews() {
    for (int32_t i = 0; i < count_; i++) delete[] memory_[i];
  }
  WidenedViews(const WidenedViews&) = delete;
  WidenedViews& operator=(const WidenedViews&) = delete;

  // False where there is no memory. Without `reads` what the view holds is not looked at.
  bool add(const aq_view& x, bool reads) {
    const int32_t i = count_++;
    memory_[i] = nullptr;
    given_[i] = view_[i] = x;
    if (!present(x) || !isShortType(x.dtype)) return true;
    view_[i].dtype = AQ_F32;
    view_[i].data = memory_[i] = new (std::nothrow) float[size_t(numel(x)) + 1];
    if (!memory_[i]) return false;
    if (reads) convertView(x, view_[i]);
    return true;
  }

  // Rounds what was written into the views.
  void finish() const {
    for (int32_t i = 0; i < count_; i++) {
      if (memory_[i]) convertView(view_[i], given_[i]);
    }
  }

  aq_view* views() { return view_; }
  int32_t count() const { return count_; }

 private:
  aq_view given_[kMost], view_[kMost];
  float* memory_[kMost];
  int32_t count_ = 0;
};

// kKernel with its short inputs and outputs widened. kAdds: outputs are added to.
template <aq_kernel kKernel, bool kAdds = false>
static int32_t widened(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out,
                       int32_t n_out, const void* params, aq_error* err) {
  WidenedViews inputs, outputs;
  bool fits = true;
  for (int32_t i = 0; i < n_in; i++) fits = inputs.add(in[i], true) && fits;
  for (int32_t i = 0; i < n_out; i++) fits = outputs.add(out[i], kAdds) && fits;
  if (!fits) return noPartials(err, "a short input", numel(in[0]) * int64_t(sizeof(float)));
  const int32_t code = kKernel(queue, inputs.views(), n_in, outputs.views(), n_out, params, err);
  if (code == AQ_OK) outputs.finish();
  return code;
}

// fake_quant_gemm of operands that may be short or whole numbers with a scale of each row.
static int32_t operandGemm(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out,
                           int32_t n_out, const void* params, aq_error* err) {
  const bool isWhole[2] = {in[0].dtype == AQ_I8, in[1].dtype == AQ_I8};
  if (!isWhole[0] && !isWhole[1])
    return widened<fake_quant_gemm, true>(queue, in, n_in, out, n_out, params, err);
  const Partials<float> values[2] = {Partials<float>(isWhole[0] ? numel(in[0]) : 0),
                                     Partials<float>(isWhole[1] ? numel(in[1]) : 0)};
  aq_view given[WidenedViews::kMost] = {};
  for (int32_t i = 0; i < n_in; i++) given[i] = in[i];
  for (int32_t side = 0; side < 2; side++) {
    if (!isWhole[side]) continue;
    const int64_t columns = lastDim(in[side]);
    float* const to = values[side].data();
    if (!to) return noPartials(err, "fake_quant_gemm", numel(in[side]) * int64_t(sizeof(float)));
    const int8_t* const from = ptr<int8_t>(in[side]);
    aq_view& scale = given[2 + 2 * side];
    const float* const scales = ptr<float>(scale);
    forRows(rowCount(in[side]), columns, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; row++) {
        for (int64_t k = row * columns; k < (row + 1) * columns; k++)
          to[k] = float(from[k]) * scales[row];
      }
    });
    given[side].dtype = AQ_F32;
    given[side].data = to;
    scale = {};
  }
  return widened<fake_quant_gemm, true>(queue, given, n_in, out, n_out, params, err);
}

// quant_operand by quant_grid and then, on the matrix times its factors, the code of every element.
static int32_t quantOperand(aq_queue* queue, const aq_view* in, int32_t, const aq_view* out,
                            int32_t, const void* params, aq_error* err) {
  const auto& o = *static_cast<const aq_quant_operand_params*>(params);
  const aq_quant_grid_params grid = {o.floor, o.bits, o.group, o.symmetric, 0, o.rule, 0};
  const aq_view search[] = {in[0], in[1], in[3], in[4]};
  if (const int32_t code = quant_grid(queue, search, 4, out, 2, &grid, err)) return code;
  return visitFloat(in[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const Scaled<T> x(in[0], in[3], in[4]);
    const Partials<T> values(numel(in[0]));
    if (!x.data() || !values.data())
      return noPartials(err, "quant_operand", 2 * numel(in[0]) * int64_t(sizeof(T)));
    aq_view y = in[0];
    y.data = values.data();
    const T top = T((1 << o.bits) - 1);
    const bool isWhole = out[2].dtype == AQ_I8;
    const T* const v = ptr<T>(in[2]);
    Grouping(in[0], o.group).each([&](int64_t index, int64_t at, int64_t n) {
      T* const scale = mut<T>(out[0]) + index;
      const T s = *scale, z = ptr<T>(out[1])[index];
      fakeQuantRange(x.data() + at, v ? v + at : nullptr, s, z, top, values.data() + at, n);
      if (!isWhole) return;
      int8_t* const codes = mut<int8_t>(out[2]) + at;
      for (int64_t i = 0; i < n; i++) {
        const T value = values.data()[at + i];
        if (value != value) *scale = std::numeric_limits<T>::quiet_NaN();
        codes[i] = value == value ? int8_t(roundEven(value / s)) : int8_t(0);
      }
    });
    if (!isWhole) convertView(y, out[2]);
    if (o.values) convertView(y, out[3]);
    return int32_t(AQ_OK);
  });
}

static int32_t widenedOperand(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out,
                              int32_t n_out, const void* params, aq_error* err) {
  WidenedViews inputs;
  for (int32_t i = 0; i < n_in; i++) {
    if (!inputs.add(in[i], true))
      return noPartials(err, "quant_operand", numel(in[0]) * int64_t(sizeof(float)));
  }
  return quantOperand(queue, inputs.views(), n_in, out, n_out, params, err);
}
