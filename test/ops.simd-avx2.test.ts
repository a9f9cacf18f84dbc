// Every op with the avx2 kernels.
process.env["AQ_SIMD"] = "avx2";
const { testLevel } = await import("./helpers/simd-level.ts");
testLevel("avx2");
