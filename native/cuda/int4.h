// int4.h: what the files of int4_matmul and fp4_matmul share: the packed matrix
// as kernels see it, and the stages of a product. The packed order is defined
// at int4_pack in native/abi/params.h.
#pragma once
#include <cstdint>

#include "native/abi/backend.h"
#include "native/cuda/packed.h"
#include "native/cuda/queue.h"

namespace aq::cuda::int4 {

using namespace packed;

// A tile: 16 rows (outputs) x 128 columns (inputs), 1 KB of codes. A step: the
// 32 columns of a tile that lie in one group at any size of groups.
inline constexpr int kTileRows = 16, kTileColumns = 128, kTileBytes = 1024;
inline constexpr int kStepColumns = 32, kTileSteps = 4;

// What codes are: whole numbers with a scale and a zero for each group, or e2m1
// with an e4m3 scale for 16 columns (NVFP4) or a power of two for 32 (MXFP4).
enum class Format { kInt4, kNvFp4, kMxFp4 };

// Groups of a step of 4-bit floats.
__host__ __device__ constexpr int stepGroups(Format format) {
  return format == Format::kNvFp4 ? 2 : 1;
}

struct Weights {
  Format format;
  const uint8_t* codes;  // [tileRows][tiles][kTileBytes]
  // Of groups, [tileRows][groups][16], rows g and g + 8 of a tile side by side:
  // f16 scales and zeros of whole numbers; bytes of the scales of floats.
  const uint16_t* scale;
  const uint8_t* zero;
  const uint8_t* bytes;
  int32_t outputs, inputs;
  int32_t tileRows, tiles, groups;
  // Of whole numbers:
  int32_t groupSteps;  // steps of a group
  int32_t groupShift;  // log2 of it, or -1

  // Group of a step of a row.
  __host__ __device__ int32_t firstGroup(int32_t step) const {
    return groupShift >= 0 ? step >> groupShift : step / groupSteps;
  }
};

// Rows of x that one pass of multiplySmall over the weights takes; with more it
// reads them again.
inline constexpr int64_t kSmallRows = 32;

// y = x W^T + bias for few rows of x: one pass over the packed weights,
// dequantized in registers.
int32_t multiplySmall(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                      const Result& y, aq_error* err);

// The same on Hopper for more rows of x than kFewRows, by warpgroups.
inline constexpr int64_t kFewRows = 8;
bool fitsBatch(const aq_queue* queue, int64_t rows, const Weights& w);
int32_t multiplyBatch(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                      const Result& y, aq_error* err);

// The part of multiplyBatch for so many rows that the matrix units are the
// limit, and the steps of 128 columns one after the other that it takes.
int64_t prefillSteps(const aq_queue* queue, int64_t rows, const Weights& w);
int32_t multiplyPrefill(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                        const Result& y, aq_error* err);

// What the choice of splits looks at: how many tiles of y there are, how many
// packed tiles are summed for each, how many of them a block should have at
// least, and how many its start and end are worth; how many blocks a
// multiprocessor is to have at once.
struct SplitRule {
  int64_t blocks, tiles, least, fixed, atOnce;
};
struct Splits {
  int32_t count;
  int64_t steps;  // packed tiles one after the other
};

// Blocks that share a tile of y and cut its columns among them, as one cluster
// where there are such: the number that ends first.
Splits chooseSplits(const aq_queue* queue, const void* kernel, int threads, int sharedBytes,
                    const SplitRule& rule);

// Clusters of `size` blocks that the device runs at a time.
int64_t clustersAtOnce(const aq_queue* queue, const void* kernel, int threads, int sharedBytes,
                       int32_t size);

// The same three for 4-bit floats, whose products are of halves (fp4_small.cu,
// fp4_batch.cu, fp4_prefill.cu). Weights enter them as e2m1 value times scale,
// exactly, over Result::unit.
int32_t multiplySmallFloats(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                            const Result& y, aq_error* err);
int32_t multiplyBatchFloats(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                            const Result& y, aq_error* err);
int32_t multiplyPrefillFloats(aq_queue* queue, Math math, const Activations& x, const Weights& w,
                              const Result& y, aq_error* err);
int64_t prefillStepsFloats(const aq_queue* queue, int64_t rows, const Weights& w);

// Weights of rows [first, first + count) as numbers of `dtype` (f64, f32, bf16,
// f16), row-major with `inputs` columns. Floats are times *factor, of f64 for
// f64 and else of f32, where there is one.
int32_t expand(aq_queue* queue, const Weights& w, int64_t first, int64_t count, int32_t dtype,
               void* to, aq_error* err);
int32_t expandFloats(aq_queue* queue, const Weights& w, const void* factor, int64_t first,
                     int64_t count, int32_t dtype, void* to, aq_error* err);

}  // namespace aq::cuda::int4
