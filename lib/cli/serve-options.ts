/** The options of serve. */
import type { Command } from "commander";
import type { ServeOptions } from "../serve.ts";
import { addDecoderOptions } from "./generate-options.ts";
import { json, type OutputOptions, requireAll, required, valued } from "./option-kinds.ts";
import { byteCount, integer, path } from "./values.ts";

const MAX_PORT = 65535;
const MAX_SLOTS = 1024;

export function addServeOptions(command: Command): Command {
  const run = command
    .optionsGroup("Input:")
    .addOption(required("--model <dir>", "folder of a checkpoint, quantized or not", path))
    .addOption(
      valued("--name <name>", "what requests call the model (default: its folder's name)", String),
    )
    .optionsGroup("Network:")
    .addOption(
      valued(
        "--host <address>",
        "address to listen on; there is no access control (default: 127.0.0.1, this machine alone)",
        String,
      ),
    )
    .addOption(
      valued("--port <n>", "port to listen on, 0 for any (default: 8080)", integer(0, MAX_PORT)),
    )
    .addOption(
      valued("--queue <n>", "requests that may wait; more are refused (default: 64)", integer(0)),
    )
    .addOption(valued("--max-body <size>", "of a request (default: 1MiB)", byteCount))
    .optionsGroup("Run:")
    .addOption(
      valued("--slots <n>", "texts that are written together (default: 8)", integer(1, MAX_SLOTS)),
    );
  return addDecoderOptions(run).addOption(
    json("the address as a JSON line on stdout when it is ready"),
  );
}

/** What `serve` was asked for. */
export function serveOptions(command: Command): [ServeOptions, OutputOptions] {
  requireAll(command);
  const { json, ...options } = command.opts<ServeOptions & OutputOptions>();
  return [options, json ? { json } : {}];
}
