// gemm.h: C (=, +=) A B (+ bias), packed and blocked, for f32 and f64.
//
// An Operand says how a factor is stored and, if it has a grid, how it is quantized. Packing reads
// it through the grid, so a quantized factor never exists in memory. B is packed once, by all
// threads, into shared memory; then the tasks share C, and each packs the rows of A that it needs.
// Only the cut of k into blocks touches the order of additions, and it depends on K alone.

// A stored matrix, rows `ld` apart, optionally fake-quantized on a grid along its rows.
template <class T>
struct Operand {
  const T* data;
  int64_t ld;
  bool rowsAreK;  // stored rows run along k (A transposed, B as is)
  // Grid: row r, column c has scale[r gridLd + c / group]. Null: values as they are.
  const T* scale;
  const T* zero;
  const T* offset;  // rounding offsets, stored like data, or null
  int64_t gridLd, group;
  T top;  // 2^bits - 1

  Operand(const T* data, int64_t ld, bool rowsAreK)
      : data(data),
        ld(ld),
        rowsAreK(rowsAreK),
        scale(nullptr),
        zero(nullptr),
        offset(nullptr),
        gridLd(0),
        group(1),
        top(0) {}

  // Stored rows lie on pages of their own, where the processor does not look ahead by itself.
  void prefetch(int64_t r, int64_t c0, int64_t n) const {
    const T* x = data + r * ld + c0;
    for (int64_t i = 0; i < n; i += kLanes<T>) __builtin_prefetch(x + i);
    if (!offset) return;
    const T* v = offset + r * ld + c0;
    for (int64_t i = 0; i < n; i += kLanes<T>) __builtin_prefetch(v + i);
  }

  // n values of stored row r from column c0 on: in place where there is no grid, else in `buffer`.
  const T* read(int64_t r, int64_t c0, int64_t n, T* buffer) const {
    const T* x = data + r * ld + c0;
    if (!scale) return x;
    const T* v = offset ? offset + r * ld + c0 : nullptr;
    for (int64_t i = 0; i < n;) {
      const int64_t g = (c0 + i) / group;
      const int64_t end = (g + 1) * group - c0;
      const int64_t run = (end < n ? end : n) - i;
      fakeQuantRange(x + i, v ? v + i : nullptr, scale[r * gridLd + g], zero[r * gridLd + g], top,
                     buffer + i, run);
      i += run;
    }
    return buffer;
  }
};

// ---------------------------------------------------------------- packing

// A square block of W rows of W values in registers, turned by exchanging ever larger sub-blocks:
// step S swaps the odd S-blocks of row i with the even ones of row i + S. (Shuffles by the
// compiler's vector extension, so that each level gets the instructions it has.)
template <class T>
struct Turn {
  static constexpr int W = Vec<T>::kWidth;
  typedef T V __attribute__((vector_size(W * sizeof(T))));

  template <int... I>
  struct Lanes {
    template <int S>
    static void exchange(V& x, V& y) {
      const V even = __builtin_shufflevector(x, y, (I & S ? W + I - S : I)...);
      y = __builtin_shufflevector(x, y, (I & S ? W + I : I + S)...);
      x = even;
    }
  };
  template <int N, int... I>
  struct Count : Count<N - 1, N - 1, I...> {};
  template <int... I>
  struct Count<0, I...> : Lanes<I...> {};

  template <int S = 1>
  static void turn(V* r) {
    if constexpr (S < W) {
      AQ_UNROLL
      for (int i = 0; i < W; i++)
        if (!(i & S)) Count<W>::template exchange<S>(r[i], r[i + S]);
      turn<S * 2>(r);
    }
  }

  // to[k ld + i] = rows[i][k] for k < count. Writes whole vectors.
  static void block(const T* const* rows, int count, T* to, int64_t ld) {
    V r[W];
    if (count == W) {
      AQ_UNROLL
      for (int i = 0; i < W; i++) std::memcpy(&r[i], rows[i], sizeof(V));
      turn(r);
      AQ_UNROLL
      for (int k = 0; k < W; k++) std::memcpy(to + k * ld, &r[k], sizeof(V));
    } else {
      for (int i = 0; i < W; i++) {
        r[i] = V{};
        std::memcpy(&r[i], rows[i], size_t(count) * sizeof(T));
      }
      turn(r);
      for (int k = 0; k < count; k++) std::memcpy(to + k * ld, &r[k], sizeof(V));
    }
  }
};

// Lets the packed buffers be written a vector past their end.
inline constexpr int kPackSlack = 64;

// to[k R + i] = rows[i][k]. A vector may spill past its R values: the right part of a block goes
// first, so that what is written next repairs it. Rows that do not exist repeat the last: the
// micro-kernel does not store what comes of them.
template <class T, int R>
inline void turnRows(const T* const* rows, int live, int64_t depth, T* to) {
  constexpr int W = Turn<T>::W;
  for (int64_t k = 0; k < depth; k += W) {
    const int count = int(depth - k < W ? depth - k : W);
    for (int i = (R - 1) / W * W; i >= 0; i -= W) {
      const T* part[W];
      for (int j = 0; j < W; j++) part[j] = rows[i + j < live ? i + j : live - 1] + k;
      Turn<T>::block(part, count, to + k * R + i, R);
    }
  }
}

// Packs positions p0 .. p0 + count and k0 .. k0 + depth of x into panels [depth][R], with zeros or
// copies where the last one reaches beyond `count`. `to` needs kPackSlack bytes more. To pack a
// part of deeper panels, `to` is its place in the first one and `panelDepth` the whole depth.
template <class T, int R>
static void packPanels(const Operand<T>& x, int64_t p0, int64_t count, int64_t k0, int64_t depth,
                       T* to, int64_t panelDepth = 0) {
  const int64_t stride = panelDepth > 0 ? panelDepth : depth;  // panels lie stride R apart
  if (x.rowsAreK) {
    // A run of several panels at a time, so that quantizing works on long rows.
    constexpr int64_t kRun = 512 / R * R, kAhead = 8;
    T buffer[kRun];
    for (int64_t c = 0; c < count; c += kRun) {
      const int64_t run = count - c < kRun ? count - c : kRun;
      for (int64_t k = 0; k < depth; k++) {
        if (k + kAhead < depth) x.prefetch(k0 + k + kAhead, p0 + c, run);
        const T* row = x.read(k0 + k, p0 + c, run, buffer);
        T* panel = to + c * stride + k * R;
        int64_t i = 0;
        if (k + 1 < depth) {  // whole vectors; what spills past R is overwritten by the next k
          constexpr int W = Vec<T>::kWidth, wide = (R + W - 1) / W * W;
          for (; i + wide <= run; i += R, panel += stride * R)
            for (int j = wide - W; j >= 0; j -= W)
              Vec<T>::store(panel + j, Vec<T>::load(row + i + j));
        }
        for (; i + R <= run; i += R, panel += stride * R)
          for (int j = 0; j < R; j++) panel[j] = row[i + j];
        if (i < run)
          for (int j = 0; j < R; j++) panel[j] = i + j < run ? row[i + j] : T(0);
      }
    }
    return;
  }
  constexpr int64_t kRun = 128;
  T buffer[R * kRun];
  const T* rows[R];
  for (int64_t c = 0; c < count; c += R) {
    const int live = int(count - c < R ? count - c : R);
    for (int64_t k = 0; k < depth; k += kRun) {
      const int64_t run = depth - k < kRun ? depth - k : kRun;
      for (int i = 0; i < live; i++) rows[i] = x.read(p0 + c + i, k0 + k, run, buffer + i * kRun);
      turnRows<T, R>(rows, live, run, to + c * stride + k * R);
    }
  }
}

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
