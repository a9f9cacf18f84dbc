// Norms and gates that give 4-bit floats: the same bytes as the ops one after the other, a global scale of their
// own included, and the same gradients; a GPU sums these in other orders.
import { describe, expect, it } from "vitest";
import { dtypeCode } from "../lib/tensor/dtype.ts";
import { invoke } from "../lib/tensor/invoke.ts";
import { scope } from "../lib/tensor/scope.ts";
import type { Tensor } from "../lib/tensor/tensor.ts";
import { devices } from "./helpers/device.ts";
import { differences, drawn, NORMS, read } from "./helpers/joined-ops.ts";

/** Lengths of whole groups of 16, 32 where the format has such. */
const floatLengths = (format: 0 | 1): readonly number[] =>
  [16, 48, 144, 512, 528, 1024, 4096, 8208, 11008, 14352].filter(
    (length) => format === 0 || length % 32 === 0,
  );
const FLOATS = ([0, 1] as const).flatMap((format) =>
  floatLengths(format).map((columns) => ({ format, columns })),
);

/** fp4_operand of rows of y, and fp4_grad of them; y itself comes as `wide`. */
function floatQuantizer(y: Tensor | undefined, format: 0 | 1) {
  const g =
    format === 0 ? invoke("fp4_global", [y, undefined, undefined, undefined])[0] : undefined;
  const none = [undefined, undefined, undefined, undefined];
  const params = { format, dtype: dtypeCode("bf16"), own: 0 };
  const made = invoke("fp4_operand", [y, g, ...none], { format, dtype: params.dtype });
  const back = (grad: Tensor | undefined) =>
    invoke("fp4_grad", [y, made[0], g, grad, ...none], { format, need_gx: 1, spends_grad: 0 })[0];
  return { g, made, params, back };
}

describe.each(devices())("on %s", (device) => {
  it.each(FLOATS)("norms to 4-bit floats are the two ops, %o", ({ format, columns: C }) => {
    scope(() => {
      const make = drawn(9, C, device);
      const [x, w, b, grad] = [[9, C], [C], [C], [9, C]].map(make);
      for (const { op, params } of NORMS) {
        const [y, ...saved] = invoke(op, [x, w, b], { eps: 1e-5 });
        const { g, made, params: floats, back } = floatQuantizer(y, format);
        const joined = invoke(`${op}_fp4`, [x, w, b, g], { ...floats, eps: 1e-5 });
        const global = g ?? joined[saved.length];
        expect(read(joined)).toEqual(read([...saved, global, ...made]));
        if (g) {
          const own = { ...floats, eps: 1e-5, own: 1 };
          expect(read(invoke(`${op}_fp4`, [x, w, b, undefined], own))).toEqual(read(joined));
        }

        const separate = invoke(`${op}_grad`, [x, w, ...saved, back(grad)], params);
        const inputs = [x, w, b, g, ...saved, made[0], grad];
        const joinedBack = invoke(`${op}_fp4_grad`, inputs, { format, need_gx: 1 });
        expect(differences(joinedBack, separate, device)).toEqual([]);
      }
    });
  });

  it.each(FLOATS)("silu_mul to 4-bit floats is the two ops, %o", ({ format, columns: C }) => {
    scope(() => {
      const make = drawn(9, C, device);
      const [gate, up, grad] = [
        [9, C],
        [9, C],
        [9, C],
      ].map(make);
      const [y] = invoke("silu_mul", [gate, up]);
      const { g, made, params, back } = floatQuantizer(y, format);
      const joined = invoke("silu_mul_fp4", [gate, up, g], params);
      expect(read(joined)).toEqual(read([g ?? joined[0], ...made]));
      if (g) {
        const found = invoke("silu_mul_fp4", [gate, up, undefined], { ...params, own: 1 });
        expect(read(found)).toEqual(read(joined));
      }

      const gy = back(grad);
      for (const bf16 of [0, 1]) {
        const separate = invoke("silu_mul_grad", [gate, up, gy], { bf16 });
        const given = [gate, up, g, made[0], grad];
        const joinedBack = invoke("silu_mul_fp4_grad", given, { format, bf16 });
        expect(differences(joinedBack, separate, device)).toEqual([]);
      }
    });
  });
});
