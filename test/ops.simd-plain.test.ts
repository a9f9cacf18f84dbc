// Every op with the plain kernels.
process.env["AQ_SIMD"] = "plain";
const { testLevel } = await import("./helpers/simd-level.ts");
testLevel("plain");
