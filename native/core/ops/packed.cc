// Shape rules of packed inference: weights as codes in an order of our own, and their product
// with activations.
#include "native/core/op.h"

namespace aq {

namespace {

// A packed order (params.h): its tiles are 16 outputs x so many inputs in 1024 bytes.
constexpr int64_t kTileRows = 16, kTileBytes = 1024;
struct Int4 {
  using Pack = aq_int4_pack_params;
  using Product = aq_int4_matmul_params;
  static constexpr const char* kPack = "int4_pack";
  static constexpr int64_t kTileColumns = 128;
};
struct Int8 {
  using Pack = aq_int8_pack_params;
  using Product = aq_int8_matmul_params;
  static constexpr const char* kPack = "int8_pack";
  static constexpr int64_t kTileColumns = 64;
};

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A group must not end inside what one step of the product takes.
int64_t groupsOf(const Infer& in, int32_t group, int64_t columns) {
  const bool fits = group == 0 || group == 32 || group == 64 || (group > 0 && group % 128 == 0);
  if (!fits) {
    in.fail(AQ_ARG, "group must be 0 (the whole row), 32, 64 or a multiple of 128, got %d",
            int(group));
  }
  return group == 0 ? 1 : ceilDiv(columns, group);
}

template <class Form>
Shape codesShape(int64_t outputs, int64_t inputs) {
  return {ceilDiv(outputs, kTileRows), ceilDiv(inputs, Form::kTileColumns), kTileBytes};
}

Shape gridShape(int64_t outputs, int64_t groups) {
  return {ceilDiv(outputs, kTileRows), groups, kTileRows};
}

template <class Form>
void inferPack(Infer& in) {
  in.compute({1, 2});
  if (in.dtype(0) != AQ_U8) in.fail(AQ_DTYPE, "codes must be u8, got %s", dtypeName(in.dtype(0)));
  in.rank(0, 2);
  const int64_t outputs = in.rows(0), inputs = in.cols(0);
  const int64_t groups = groupsOf(in, in.params<typename Form::Pack>().group, inputs);
  in.elements(1, outputs * groups, "one per row and group");
  in.elements(2, outputs * groups, "one per row and group");
  in.output(AQ_U8, codesShape<Form>(outputs, inputs));
  in.output(AQ_F16, gridShape(outputs, groups));
  in.output(AQ_U8, gridShape(outputs, groups));
}

// What the pack op gave in input i: its type, and the shape that x and the parameters ask for.
void checkPacked(const Infer& in, int i, const char* name, const char* pack, int32_t dtype,
                 const Shape& want) {
  if (in.dtype(i) != dtype) {
    in.fail(AQ_DTYPE, "%s must be the %s tensor that %s gave, got %s", name, dtypeName(dtype), pack,
            dtypeName(in.dtype(i)));
  }
  if (in.shape(i) != want) {
    in.fail(AQ_SHAPE, "%s must be %s for these inputs, outputs and groups, got %s", name,
            toString(want).c_str(), toString(in.shape(i)).c_str());
  }
}

void checkType(const Infer& in, int i, const char* name, int32_t dtype) {
  if (in.has(i) && in.dtype(i) != dtype) {
    in.fail(AQ_DTYPE, "%s must be %s, got %s", name, dtypeName(dtype), dtypeName(in.dtype(i)));
  }
}

template <class Form>
void inferMatmul(Infer& in) {
  const auto& p = in.params<typename Form::Product>();
  const int32_t dtype = in.dtype(0);
  if (!isFloat(dtype)) {
    in.fail(AQ_DTYPE, "x must be f64, f32, bf16 or f16, got %s", dtypeName(dtype));
  }
  in.range("outputs", p.outputs, 0, 2147483647.0);
  const int64_t inputs = in.cols(0), groups = groupsOf(in, p.group, inputs);
  checkPacked(in, 1, "packed", Form::kPack, AQ_U8, codesShape<Form>(p.outputs, inputs));
  checkPacked(in, 2, "packed_scale", Form::kPack, AQ_F16, gridShape(p.outputs, groups));
  checkPacked(in, 3, "packed_zero", Form::kPack, AQ_U8, gridShape(p.outputs, groups));
  int32_t result = dtype;
  if constexpr (requires { p.wide; }) {
    in.range("wide", p.wide, 0, 1);
    if (p.wide && (isCompute(dtype) || in.has(5)))
      in.fail(AQ_ARG, "wide is for x in bf16 or f16 without a grid, got %s", dtypeName(dtype));
    if (p.wide) result = AQ_F32;
  }
  checkType(in, 4, "bias", result);
  if (in.has(4)) in.elements(4, p.outputs, "one per output");
  if (in.has(5) != in.has(6)) {
    in.fail(AQ_ARG, "x needs both x_scale and x_zero for a grid, or neither");
  }
  if (in.has(5)) {
    in.range("x_bits", p.x_bits, 1, 8);
    const int32_t gridType = isCompute(dtype) ? dtype : AQ_F32;
    checkType(in, 5, "x_scale", gridType);
    checkType(in, 6, "x_zero", gridType);
    in.elements(5, in.rows(0), "one per row of x");
    in.elements(6, in.rows(0), "one per row of x");
  }
  Shape shape = in.shape(0);
  if (shape.empty()) shape.push_back(1);
  shape.back() = p.outputs;
  in.output(result, std::move(shape));
}

// Inputs of cached_attention behind those that attention has.
enum : int {
  kKeyCache = 9,
  kValueCache,
  kKeyGrid,
  kValueGrid,
  kSlots,
  kPositions,
  kCosines,
  kSines
};

// Channels of a head, from q, k and v apart or side by side.
int64_t headSize(const Infer& in, const aq_cached_attention_params& p) {
  const int64_t width = in.cols(0);
  const int64_t rowHeads = in.has(1) ? p.heads : int64_t(p.heads) + 2 * int64_t(p.kv_heads);
  const int64_t size = width / rowHeads;
  bool fits = p.heads % p.kv_heads == 0 && width % rowHeads == 0 && in.has(1) == in.has(2);
  if (fits && in.has(1)) {
    in.same(1, 2);
    fits = in.rows(1) == in.rows(0) && in.cols(1) == size * p.kv_heads;
  }
  if (!fits) {
    in.fail(AQ_SHAPE, "q %s, k %s do not fit %d query and %d kv heads",
            toString(in.shape(0)).c_str(), in.has(1) ? toString(in.shape(1)).c_str() : "(with q)",
            p.heads, p.kv_heads);
  }
  return size;
}

// The type of a result that may be rounded.
int32_t roundedType(const Infer& in, int32_t round) {
  const bool isShort = round == AQ_BF16 || round == AQ_F16;
  if (round != 0 && (!isShort || in.dtype(0) != AQ_F32))
    in.fail(AQ_ARG, "round must be 0, or bf16 or f16 for f32, got %d", int(round));
  return round ? round : in.dtype(0);
}

void inferNormRounded(Infer& in) {
  in.compute({0, 1, 2});
  const auto& p = in.params<aq_norm_rounded_params>();
  in.range("eps", p.eps, 0, 1);
  in.range("centred", p.centred, 0, 1);
  for (int i : {1, 2})
    if (in.has(i)) in.elements(i, in.cols(0), "one per channel of x");
  in.output(roundedType(in, p.round), in.shape(0));
}

void inferSiluMulJoined(Infer& in) {
  in.compute({0});
  const int32_t dtype = roundedType(in, in.params<aq_silu_mul_joined_params>().round);
  Shape shape = in.shape(0);
  if (shape.empty() || shape.back() % 2 != 0) {
    in.fail(AQ_SHAPE, "x %s must have gate and up in the halves of its rows",
            toString(shape).c_str());
  }
  shape.back() /= 2;
  in.output(dtype, std::move(shape));
}

// What a call that saves passes before it needs: no grids, and tables that fit.
void checkJoined(const Infer& in, const aq_cached_attention_params& p, int64_t size) {
  if (in.has(kCosines) != in.has(kSines)) in.fail(AQ_ARG, "cos and sin go together");
  for (int i = 3; i < kKeyCache; i++) {
    const bool ofValues = i >= 7;
    if (in.has(i) && (!in.has(1) || (in.has(kCosines) && !ofValues)))
      in.fail(AQ_ARG, "%s: what is turned or stands behind q has no grid", in.name(i));
  }
  for (int i : {kCosines, kSines}) {
    if (!in.has(i)) continue;
    if (size % 2 != 0) in.fail(AQ_SHAPE, "heads of %lld channels have no pairs", (long long)size);
    in.elements(i, in.rows(0) * (size / 2), "one per token and pair");
  }
  in.range("apart", p.apart, 0, 1);
}

void inferCachedAttention(Infer& in) {
  const int32_t dtype =
      in.compute({0, 1, 2, 3, 4, 5, 6, 7, 8, kKeyGrid, kValueGrid, kCosines, kSines});
  const auto& p = in.params<aq_cached_attention_params>();
  in.range("heads", p.heads, 1, 1 << 20);
  in.range("kv_heads", p.kv_heads, 1, p.heads);
  const int64_t tokens = in.rows(0), size = headSize(in, p);
  checkJoined(in, p, size);
  for (int i = 0; i < 3; i++) {
    const int scale = 3 + 2 * i;
    if (in.has(scale) != in.has(scale + 1))
      in.fail(AQ_ARG, "%s needs both its scale and its zero, or neither", in.name(i));
    if (!in.has(scale)) continue;
    in.range("bits", p.bits, 1, 8);
    const int64_t count = tokens * (i == 0 ? p.heads : p.kv_heads);
    in.elements(scale, count, "one per token and head");
    in.elements(scale + 1, count, "one per token and head");
  }
  const bool isCodes = in.dtype(kKeyCache) == AQ_U8;
  if (!isCodes) in.stored(kKeyCache, dtype);
  if (in.dtype(kValueCache) != in.dtype(kKeyCache))
    in.fail(AQ_DTYPE, "k_cache is %s and v_cache %s", dtypeName(in.dtype(kKeyCache)),
            dtypeName(in.dtype(kValueCache)));
  in.rank(kKeyCache, 3);
  in.same(kKeyCache, kValueCache);
  const Shape& cache = in.shape(kKeyCache);
  const int64_t place = p.kv_heads * (isCodes ? (size + 1) / 2 : size);
  if (cache[2] != place) {
    in.fail(AQ_SHAPE, "a place of k_cache %s must have %lld %s", toString(cache).c_str(),
            static_cast<long long>(place), isCodes ? "bytes, two codes each" : "values");
  }
  const bool hasGrids = in.has(5) && in.has(7) && in.has(kKeyGrid) && in.has(kValueGrid);
  if (isCodes && (!hasGrids || p.bits > 4)) {
    in.fail(AQ_ARG, "caches of codes need k and v with grids of at most 4 bits, k_grid and v_grid");
  }
  if (!isCodes && (in.has(kKeyGrid) || in.has(kValueGrid)))
    in.fail(AQ_ARG, "k_grid and v_grid belong to caches of codes");
  if (isCodes) {
    for (int grid : {kKeyGrid, kValueGrid})
      in.elements(grid, cache[0] * cache[1] * p.kv_heads * 2, "scale and zero of a place and head");
  }
  for (int i : {kSlots, kPositions}) {
    if (in.dtype(i) != AQ_I32)
      in.fail(AQ_DTYPE, "%s must be i32, got %s", in.name(i), dtypeName(in.dtype(i)));
    in.elements(i, tokens, "one per token");
  }
  Shape o = in.shape(0);
  o.back() = size * p.heads;
  in.output(roundedType(in, p.round), o);
}

template <class Product>
std::vector<Field> productParams() {
  if constexpr (requires(Product p) { p.wide; }) {
    return {AQ_INT(Product, outputs), AQ_INT(Product, group), AQ_INT(Product, x_bits),
            AQ_INT(Product, wide)};
  } else {
    return {AQ_INT(Product, outputs), AQ_INT(Product, group), AQ_INT(Product, x_bits)};
  }
}

template <class Form>
void addForm(std::vector<OpSpec>& ops, const char* product) {
  using Pack = typename Form::Pack;
  using Product = typename Form::Product;
  ops.push_back({Form::kPack,
                 {{"codes"}, {"scale"}, {"zero"}},
                 {"packed", "packed_scale", "packed_zero"},
                 {AQ_INT(Pack, group)},
                 sizeof(Pack),
                 inferPack<Form>});
  ops.push_back({product,
                 {{"x"},
                  {"packed"},
                  {"packed_scale"},
                  {"packed_zero"},
                  {"bias", kOptional},
                  {"x_scale", kOptional},
                  {"x_zero", kOptional}},
                 {"y"},
                 productParams<Product>(),
                 sizeof(Product),
                 inferMatmul<Form>});
}

}  // namespace

void addPackedOps(std::vector<OpSpec>& ops) {
  using Cached = aq_cached_attention_params;
  ops.push_back({"cached_attention",
                 {{"q"},
                  {"k", kOptional},
                  {"v", kOptional},
                  {"q_scale", kOptional},
                  {"q_zero", kOptional},
                  {"k_scale", kOptional},
                  {"k_zero", kOptional},
                  {"v_scale", kOptional},
                  {"v_zero", kOptional},
                  {"k_cache", kMutable},
                  {"v_cache", kMutable},
                  {"k_grid", uint8_t(kMutable | kOptional)},
                  {"v_grid", uint8_t(kMutable | kOptional)},
                  {"slots"},
                  {"positions"},
                  {"cos", kOptional},
                  {"sin", kOptional}},
                 {"o"},
                 {AQ_FLOAT(Cached, scale), AQ_INT(Cached, heads), AQ_INT(Cached, kv_heads),
                  AQ_INT(Cached, bits), AQ_INT(Cached, apart), AQ_INT(Cached, round)},
                 sizeof(Cached),
                 inferCachedAttention});
  using Norm = aq_norm_rounded_params;
  ops.push_back({"norm_rounded",
                 {{"x"}, {"w"}, {"b", kOptional}},
                 {"y"},
                 {AQ_FLOAT(Norm, eps), AQ_INT(Norm, centred), AQ_INT(Norm, round)},
                 sizeof(Norm),
                 inferNormRounded});
  using Joined = aq_silu_mul_joined_params;
  ops.push_back({"silu_mul_joined",
                 {{"x"}},
                 {"y"},
                 {AQ_INT(Joined, round)},
                 sizeof(Joined),
                 inferSiluMulJoined});
  addForm<Int4>(ops, "int4_matmul");
  addForm<Int8>(ops, "int8_matmul");
}

}  // namespace aq
