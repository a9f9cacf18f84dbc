/**
 * GGUF files in llama.cpp, on the CPU, by the binaries that lie in npm packages: nothing is downloaded
 * or compiled. Ids go in and come out, so that each comparison has one subject.
 */
import {
  type ControlledEvaluateInputItem,
  GgufFileType,
  getLlama,
  type LlamaContextSequence,
  LlamaLogLevel,
  type LlamaModel,
  type Token,
} from "node-llama-cpp";

/** A model that llama.cpp has open. */
export interface GgufModel {
  /** What llama.cpp had to say of the file. */
  readonly warnings: readonly string[];
  /** What most of its tensors are: "MOSTLY_Q4_1". */
  readonly fileType: string | undefined;
  /** Ids of a text, without special tokens around it. */
  encode(text: string): number[];
  /** Text of ids. */
  decode(ids: readonly number[]): string;
  /** The most likely ids after a prompt, `count` of them or up to the end of the text. */
  write(prompt: readonly number[], count: number): Promise<number[]>;
  /** After each id, the probability of every id to be next: [T][V]. */
  probabilities(ids: readonly number[]): Promise<Float32Array[]>;
  close(): Promise<void>;
}

/** Opens a GGUF file; `maxTokens` is the longest sequence. */
export async function openGguf(file: string, maxTokens: number): Promise<GgufModel> {
  const warnings: string[] = [];
  // One thread: those of llama.cpp wait for each other in busy loops, which on a machine that does
  // something else besides costs a hundred times what these models cost.
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    maxThreads: 1,
    logLevel: LlamaLogLevel.warn,
    logger: (_, message) => void warnings.push(message.trim()),
  });
  const model = await llama.loadModel({ modelPath: file });
  // Contexts have at least 256 tokens, which is more than some models here are made for.
  llama.logLevel = LlamaLogLevel.error;
  // Keys and values in F32 and plain attention: what is compared is the file, and not a shortcut.
  const context = await model.createContext({
    contextSize: maxTokens,
    batchSize: maxTokens,
    flashAttention: false,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32",
  });
  const sequence = context.getSequence();
  return {
    warnings,
    fileType: GgufFileType[model.fileInfo.metadata.general.file_type ?? -1],
    encode: (text) => model.tokenize(text),
    decode: (ids) => model.detokenize(ids as Token[]),
    write: (prompt, count) => write(sequence, prompt, count),
    probabilities: (ids) => probabilities(model, sequence, ids),
    close: async () => {
      await context.dispose();
      await model.dispose();
      await llama.dispose();
    },
  };
}

async function write(
  sequence: LlamaContextSequence,
  prompt: readonly number[],
  count: number,
): Promise<number[]> {
  await sequence.clearHistory();
  const ids: number[] = [];
  for await (const id of sequence.evaluate(prompt as Token[], { temperature: 0 })) {
    ids.push(id);
    if (ids.length === count) break;
  }
  return ids;
}

async function probabilities(
  model: LlamaModel,
  sequence: LlamaContextSequence,
  ids: readonly number[],
): Promise<Float32Array[]> {
  await sequence.clearHistory();
  const vocabulary = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
  const rows: Float32Array[] = [];
  const input = ids.map((id): ControlledEvaluateInputItem => {
    return [id as Token, { generateNext: { probabilities: true } }];
  });
  await sequence.controlledEvaluate(input, {
    onTokenResult: (at, { next }) => {
      const row = new Float32Array(vocabulary);
      for (const [id, probability] of next.probabilities ?? []) row[id] = probability;
      rows[at] = row;
    },
  });
  return rows;
}
