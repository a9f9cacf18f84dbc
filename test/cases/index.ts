// Every case of every op. A new op adds its case file here; the coverage test says so if not.
import * as attention from "./attention.ts";
import * as attentionOperand from "./attention-operand.ts";
import * as block from "./block.ts";
import * as blockFp4 from "./block-fp4.ts";
import * as blockOperand from "./block-operand.ts";
import * as cachedAttention from "./cached-attention.ts";
import type { OpCase } from "./case.ts";
import * as decodeStep from "./decode-step.ts";
import * as drawTokens from "./draw-tokens.ts";
import * as elementwise from "./elementwise.ts";
import * as fakeQuantGemm from "./fake-quant-gemm.ts";
import * as fakeQuantGrad from "./fake-quant-grad.ts";
import * as fold from "./fold.ts";
import * as fp4 from "./fp4.ts";
import * as fp4Matmul from "./fp4-matmul.ts";
import * as gptq from "./gptq.ts";
import * as int4Matmul from "./int4-matmul.ts";
import * as int8Matmul from "./int8-matmul.ts";
import * as linalg from "./linalg.ts";
import * as loss from "./loss.ts";
import * as optimizer from "./optimizer.ts";
import * as quantOperand from "./quant-operand.ts";
import * as quantize from "./quantize.ts";
import * as rope from "./rope.ts";
import * as ropeGrid from "./rope-grid.ts";

/** All cases, in the order of native/abi/params.h. */
export const CASES: readonly OpCase[] = [
  elementwise,
  fold,
  linalg,
  optimizer,
  quantize,
  quantOperand,
  fakeQuantGrad,
  fakeQuantGemm,
  gptq,
  fp4,
  block,
  rope,
  attention,
  blockOperand,
  attentionOperand,
  ropeGrid,
  blockFp4,
  loss,
  drawTokens,
  cachedAttention,
  decodeStep,
  int4Matmul,
  int8Matmul,
  fp4Matmul,
].flatMap((file) => file.CASES);
