// int4_matmul.h: the product of activations with a packed matrix of codes of at most 4 bits.

namespace int4 {

// The order for packed_few.h and packed_product.h.
struct Form {
  static constexpr int64_t kColumns = int4::kColumns;
  static constexpr auto columnAt = int4::columnAt;
  static constexpr auto gridSlot = int4::gridSlot;
  static constexpr auto multiplyCodes = int4::multiplyCodes;
  static constexpr auto multiplyNumbers = int4::multiplyNumbers;

  static uint8_t byteOf(int32_t code) { return uint8_t(code); }
  // The values for byte i of a line's 16 words together.
  static void sortNumbers(const float* x, float* to) {
    for (int64_t b = 0; b < kHalfColumns; b++) to[b % 4 * 16 + b / 4] = x[columnAt(b)];
  }
  static void sumCodes(const CodedRows&, int64_t, int64_t, int64_t, int32_t*) {}
  template <class T>
  static void readRow(const Codes& w, int64_t r, uint8_t* bytes, T* y) {
    int4::readRow(w, r, bytes, y);
  }
};

}  // namespace int4

static int32_t int4_matmul(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                           const void* params, aq_error* err) {
  const auto& p = *static_cast<const aq_int4_matmul_params*>(params);
  if (!p.wide) return packed::multiply<int4::Form>("int4_matmul", in, out[0], p, err);
  WidenedViews views;
  if (!views.add(in[0], true))
    return noPartials(err, "int4_matmul", numel(in[0]) * int64_t(sizeof(float)));
  const aq_view given[] = {views.views()[0], in[1], in[2], in[3], in[4], in[5], in[6]};
  return packed::multiply<int4::Form>("int4_matmul", given, out[0], p, err);
}
