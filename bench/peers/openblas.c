// The SGEMM of the system's OpenBLAS, timed on request. Needs no header: the library is opened at run
// time and cblas_sgemm is declared here.
//
// First it prints one line, "OpenBLAS ...", or the reason why there is none. Then it reads lines
// "n calls" and answers each with the seconds of the fastest of `calls` products of n x n matrices.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { kRowMajor = 101, kNoTrans = 111 };

typedef void (*Sgemm)(int order, int transA, int transB, int m, int n, int k, float alpha,
                      const float* a, int lda, const float* b, int ldb, float beta, float* c,
                      int ldc);
typedef char* (*Describe)(void);

static const char* const kPaths[] = {
    "libopenblas.so.0",
    "libopenblas.so",
    "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib/x86_64-linux-gnu/openblas-serial/libopenblas.so.0",
    "/usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib64/libopenblas.so.0",
    "/opt/homebrew/opt/openblas/lib/libopenblas.dylib",
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float* randomMatrix(int n) {
  float* data = aligned_alloc(64, ((size_t)n * n * sizeof(float) + 63) / 64 * 64);
  if (!data) exit(1);
  for (size_t i = 0; i < (size_t)n * n; i++) data[i] = (float)rand() / (float)RAND_MAX - 0.5f;
  return data;
}

static double fastest(Sgemm sgemm, int n, int calls) {
  float *a = randomMatrix(n), *b = randomMatrix(n), *c = randomMatrix(n);
  double best = 1e30;
  for (int i = 0; i <= calls; i++) {
    const double start = now();
    sgemm(kRowMajor, kNoTrans, kNoTrans, n, n, n, 1.0f, a, n, b, n, 0.0f, c, n);
    const double seconds = now() - start;
    if (i > 0 && seconds < best) best = seconds;  // the first call warms up
  }
  free(a);
  free(b);
  free(c);
  return best;
}

int main(void) {
  void* library = NULL;
  for (size_t i = 0; !library && i < sizeof kPaths / sizeof kPaths[0]; i++) {
    library = dlopen(kPaths[i], RTLD_NOW | RTLD_LOCAL);
  }
  Sgemm sgemm = library ? (Sgemm)dlsym(library, "cblas_sgemm") : NULL;
  if (!sgemm) {
    puts("libopenblas.so.0 is not installed");
    return 1;
  }
  Describe describe = (Describe)dlsym(library, "openblas_get_config");
  printf("%s\n", describe ? describe() : "OpenBLAS");
  fflush(stdout);
  int n, calls;
  while (scanf("%d %d", &n, &calls) == 2) {
    printf("%.9f\n", fastest(sgemm, n, calls));
    fflush(stdout);
  }
  return 0;
}
