// gather_rows.h: rows of a table by id (embeddings), converted from the table's stored type.

static int32_t gather_rows(aq_queue*, const aq_view* in, int32_t, const aq_view* out, int32_t,
                           const void*, aq_error* err) {
  const int64_t vocabulary = in[0].dim[0];
  const int64_t cols = lastDim(in[0]);
  const int64_t count = numel(in[1]);
  const int32_t* ids = ptr<int32_t>(in[1]);
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= vocabulary)
      return fail(err, AQ_ARG,
                  "gather_rows: id %d at index %lld, expected 0 .. %lld (a vocabulary of %lld); "
                  "check that the ids come from this model's tokenizer",
                  ids[i], static_cast<long long>(i), static_cast<long long>(vocabulary - 1),
                  static_cast<long long>(vocabulary));
  forRows(count, cols, [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i++)
      convertElements(in[0], ids[i] * cols, out[0], i * cols, cols);
  });
  return AQ_OK;
}
