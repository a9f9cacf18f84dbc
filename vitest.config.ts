import { defineConfig } from "vitest/config";

// Test files run in processes of their own: the addon keeps state per process (threads, memory
// counters), and a test that counts live tensors must not see those of its neighbours.
export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    exclude: ["test/fixtures/**", "test/interop/**", "dist/**", "node_modules/**"],
    globals: false,
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 120_000,
    hookTimeout: 120_000,
    teardownTimeout: 10_000,
  },
});
