// Every op with the avx512 kernels.
process.env["AQ_SIMD"] = "avx512";
const { testLevel } = await import("./helpers/simd-level.ts");
testLevel("avx512");
