// passes.cu: which passes run beside each other (see passes.h).
#include "native/cuda/passes.h"

namespace aq::cuda {

bool PassRun::add(Span span, bool isWritten) {
  if (span.begin == span.end) return true;
  for (size_t i = 0; i < others_; i++) {
    if ((isWritten || uses_[i].isWritten) && uses_[i].span.meets(span)) return false;
  }
  if (size_ == kMost) return false;
  uses_[size_++] = {span, isWritten};
  return true;
}

bool PassRun::join(uint64_t call, const aq_view* in, int32_t n_in, const aq_view* out,
                   int32_t n_out, std::initializer_list<Span> temporary) {
  const auto addAll = [&] {
    bool fits = true;
    for (int32_t i = 0; i < n_in; i++) fits = fits && add(Span::of(in[i]), false);
    for (int32_t i = 0; i < n_out; i++) fits = fits && add(Span::of(out[i]), true);
    for (const Span& span : temporary) fits = fits && add(span, true);
    return fits;
  };
  const bool isNext = size_ > 0 && call == last_ + 1;
  last_ = call;
  others_ = size_;
  if (isNext && addAll()) return true;
  size_ = others_ = 0;
  if (!addAll()) end();
  return false;
}

}  // namespace aq::cuda
