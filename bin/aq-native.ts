#!/usr/bin/env node
import { processIo } from "../lib/cli/io.ts";
import { main } from "../lib/cli/main.ts";

// A reader that closes the pipe early (`| head`) is no failure of ours.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});

// Not process.exit(): it would cut off output that a pipe has not taken yet.
process.exitCode = await main(process.argv.slice(2), processIo());
