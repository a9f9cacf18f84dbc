// gemm.h: C (=, +=) A B (+ bias), packed and blocked, for f32 and f64.
//
// B is packed once, by all threads, into shared memory; then the tasks share C, and each packs the
// rows of A that it needs. Only the cut of k into blocks touches the order of additions, and it
// depends on K alone.

// ---------------------------------------------------------------- blocking

// Depth of a k block: a panel of A stays in the first-level cache while panels of B stream past it.
// Rows of A that a task packs at a time: they stay in the second-level cache.
#if defined(AQ_LEVEL_AVX512)
template <class T>
inline constexpr int64_t kMaxDepth = 2048 / int64_t(sizeof(T));
inline constexpr int64_t kMaxRowPanels = 168 / kTileRows;
#else  // processors whose second-level cache may be smaller
template <class T>
inline constexpr int64_t kMaxDepth = 1536 / int64_t(sizeof(T));
inline constexpr int64_t kMaxRowPanels = 120 / kTileRows;
#endif

// Bytes of packed B that are kept at a time.
inline constexpr int64_t kMaxSharedBytes = 64 << 20;

inline constexpr int kSlotShared = 0, kSlotOwn = 1;  // threadScratch slots of gemm

// c[rows, cols] from packed a and b: row panels of a lie kTileRows * depth apart, those of b
// kTileCols * depth.
template <class T>
static void multiplyPanels(const T* a, int64_t rows, const T* b, int64_t cols, int64_t depth, T* c,
                           int64_t ldc, bool accumulate, const T* bias) {
  constexpr int64_t R = kTileRows, N = kTileCols<T>;
  for (int64_t j = 0; j < cols; j += N) {
    for (int64_t i = 0; i < rows; i += R) {
      const TileJob<T> job{depth,
                           a + i * depth,
                           1,
                           R,
                           b + j * depth,
                           c + i * ldc + j,
                           ldc,
                           int(cols - j < N ? cols - j : N),
                           accumulate,
                           bias ? bias + j : nullptr};
      runTile(int(rows - i < R ? rows - i : R), job);
    }
  }
}

// The task grid over C. More, smaller tasks for more threads; columns are cut only where rows do
// not give enough tasks, because each column part packs A again.
struct TaskGrid {
  int64_t rowsPerTask, colsPerTask, rowTasks, colTasks;
};
inline TaskGrid taskGrid(int64_t m, int64_t n, int64_t tileCols, int threads) {
  const int64_t rowPanels = ceilDiv(m, kTileRows), colPanels = ceilDiv(n, tileCols);
  const int64_t wanted = threads > 1 ? 4 * int64_t(threads) : 1;
  int64_t perTask = rowPanels / wanted;
  perTask = perTask < 2 ? 2 : (perTask > kMaxRowPanels ? kMaxRowPanels : perTask);
  perTask = ceilDiv(rowPanels, ceilDiv(rowPanels, perTask));
  const int64_t rowTasks = ceilDiv(rowPanels, perTask);
  int64_t colParts = rowTasks >= wanted ? 1 : ceilDiv(wanted, rowTasks);
  const int64_t mostParts = colPanels / 4 > 1 ? colPanels / 4 : 1;
  colParts = colParts < mostParts ? colParts : mostParts;
  const int64_t colsEach = ceilDiv(colPanels, colParts);
  return {perTask * kTileRows, colsEach * tileCols, rowTasks, ceilDiv(colPanels, colsEach)};
}

// Few rows of A, as decoding has them: packing all of B would cost more than the product. Each task
// packs a panel of it into memory that stays in the cache, and multiplies that at once. A, by stored
// rows, is read in place or quantized into scratch. The cut of k is that of many rows, and so are the
// bits of the result.
inline constexpr int64_t kFewPanels = 2;           // of rows
inline constexpr int64_t kFewElements = 32 << 10;  // of B, at least, in a task

template <class T>
static void gemmFewRows(int64_t m, int64_t n, int64_t k, int64_t depth, const Operand<T>& a,
                        const Operand<T>& b, T* c, int64_t ldc, bool accumulate, const T* bias) {
  constexpr int64_t R = kTileRows, N = kTileCols<T>;
  const T* rows = a.data;
  int64_t lda = a.ld;
  if (a.scale) {
    T* const own = static_cast<T*>(threadScratch(kSlotShared, uint64_t(m * k) * sizeof(T)));
    for (int64_t i = 0; i < m; i++) a.read(i, 0, k, own + i * k);
    rows = own;
    lda = k;
  }
  const int64_t panels = ceilDiv(n, N), perTask = ceilDiv(kFewElements, N * k);
  parallelFor(ceilDiv(panels, perTask), [&](int64_t task) {
    T* const panel =
        static_cast<T*>(threadScratch(kSlotOwn, uint64_t(depth * N) * sizeof(T) + kPackSlack));
    const int64_t end = std::min(n, (task + 1) * perTask * N);
    for (int64_t j = task * perTask * N; j < end; j += N) {
      const int64_t cols = std::min(N, n - j);
      for (int64_t p = 0; p < k; p += depth) {
        const int64_t deep = std::min(depth, k - p);
        packPanels<T, int(N)>(b, j, cols, p, deep, panel);
        for (int64_t i = 0; i < m; i += R) {
          runTile(int(std::min(R, m - i)),
                  TileJob<T>{deep, rows + i * lda + p, lda, 1, panel, c + i * ldc + j, ldc,
                             int(cols), accumulate || p > 0, bias && p == 0 ? bias + j : nullptr});
        }
      }
    }
  });
}

// C [m, n] (=, +=) A [m, k] B [k, n] (+ bias [n]). Throws std::bad_alloc.
template <class T>
static void gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b, T* c,
                 int64_t ldc, bool accumulate = false, const T* bias = nullptr) {
  constexpr int64_t R = kTileRows, N = kTileCols<T>;
  if (m <= 0 || n <= 0) return;
  if (k <= 0) {
    for (int64_t i = 0; i < m; i++)
      for (int64_t j = 0; j < n; j++)
        c[i * ldc + j] = (accumulate ? c[i * ldc + j] : T(0)) + (bias ? bias[j] : T(0));
    return;
  }
  const int64_t blocks = ceilDiv(k, kMaxDepth<T>);
  const int64_t depth = ceilDiv(k, blocks);
  if (m <= kFewPanels * R && !a.rowsAreK && !b.rowsAreK)
    return gemmFewRows(m, n, k, depth, a, b, c, ldc, accumulate, bias);
  // B is kept for `heldCols` columns and `heldBlocks` blocks of k at a time: all of it, mostly.
  const int64_t blockBytes = depth * N * int64_t(sizeof(T));
  const int64_t allPanels = ceilDiv(n, N);
  const int64_t fit = kMaxSharedBytes / blockBytes;
  const int64_t heldPanels = allPanels < fit ? allPanels : fit;
  const int64_t heldBlocks = std::min(blocks, std::max<int64_t>(1, fit / heldPanels));
  T* const packed = static_cast<T*>(
      threadScratch(kSlotShared, uint64_t(heldPanels * heldBlocks * blockBytes + kPackSlack)));
  const int threads = threadCount();

  for (int64_t j0 = 0; j0 < n; j0 += heldPanels * N) {
    const int64_t cols = std::min(n - j0, heldPanels * N);
    const int64_t panels = ceilDiv(cols, N);
    const TaskGrid grid = taskGrid(m, cols, N, threads);
    for (int64_t block0 = 0; block0 < blocks; block0 += heldBlocks) {
      const int64_t blockEnd = std::min(blocks, block0 + heldBlocks);
      // Block p starts at k = p depth; its panels lie together, each `its depth` x N.
      const auto blockAt = [=](int64_t block) {
        return packed + (block - block0) * depth * panels * N;
      };
      const auto depthOf = [=](int64_t block) { return std::min(depth, k - block * depth); };

      // A packing task reads long pieces of stored rows.
      const int64_t packCols = (b.rowsAreK ? 512 / N : 4) * N, packDepth = b.rowsAreK ? 128 : depth;
      const int64_t colTasks = ceilDiv(cols, packCols), depthTasks = ceilDiv(depth, packDepth);
      parallelFor((blockEnd - block0) * depthTasks * colTasks, [&](int64_t task) {
        const int64_t block = block0 + task / colTasks / depthTasks, deep = depthOf(block);
        const int64_t j = task % colTasks * packCols, p = task / colTasks % depthTasks * packDepth;
        if (p >= deep) return;
        packPanels<T, int(N)>(b, j0 + j, std::min(cols - j, packCols), block * depth + p,
                              std::min(packDepth, deep - p), blockAt(block) + j * deep + p * N,
                              deep);
      });

      parallelFor(grid.rowTasks * grid.colTasks, [&](int64_t task) {
        const int64_t i = task / grid.colTasks * grid.rowsPerTask;
        const int64_t j = task % grid.colTasks * grid.colsPerTask;
        const int64_t rows = std::min(m - i, grid.rowsPerTask);
        const int64_t width = std::min(cols - j, grid.colsPerTask);
        T* const own = static_cast<T*>(
            threadScratch(kSlotOwn, uint64_t(grid.rowsPerTask * depth) * sizeof(T) + kPackSlack));
        for (int64_t block = block0; block < blockEnd; block++) {
          const int64_t deep = depthOf(block);
          packPanels<T, int(R)>(a, i, rows, block * depth, deep, own);
          multiplyPanels(own, rows, blockAt(block) + j * deep, width, deep, c + i * ldc + j0 + j,
                         ldc, accumulate || block > 0,
                         bias && block == 0 ? bias + j0 + j : nullptr);
        }
      });
    }
  }
}

// Runs a kernel's body; memory that cannot be had becomes an error of the op.
template <class Body>
static int32_t withScratch(const char* op, aq_error* err, const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(err, AQ_OOM,
                "%s: not enough memory for the working space of this op; "
                "use smaller inputs or fewer threads",
                op);
  }
}
