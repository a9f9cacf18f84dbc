import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  findDuplicateKey,
  formatLike,
  type JsonObject,
  parseJsonObject,
} from "../lib/util/json.ts";
import { expectAqError } from "./helpers/expect-error.ts";

describe("JSON of other programs", () => {
  it("keeps the spelling of numbers that did not change", () => {
    const original = `{"a": 0.0, "list": [1.0, 1e-05, {"a": 2.50}], "n": 3, "s": "1.0", "e": {}, "f": []}`;
    const value = parseJsonObject(original, "x");
    const text = formatLike({ ...value, added: 1, n: 4 }, original);
    expect(text).toBe(`{
  "a": 0.0,
  "list": [
    1.0,
    1e-05,
    {
      "a": 2.50
    }
  ],
  "n": 4,
  "s": "1.0",
  "e": {},
  "f": [],
  "added": 1
}
`);
  });

  it("writes any object so that it reads back the same", () => {
    const object = fc.dictionary(fc.string(), fc.jsonValue());
    fc.assert(
      fc.property(object, object, (value, original) => {
        const json = JSON.parse(JSON.stringify(value)) as JsonObject;
        const text = formatLike(json, JSON.stringify(original, null, 1));
        expect(JSON.parse(text)).toEqual(json);
        expect(JSON.parse(formatLike(json, JSON.stringify(json)))).toEqual(json);
      }),
      { numRuns: 300 },
    );
  });

  it("finds keys that occur twice in one object, and no others", () => {
    expect(findDuplicateKey(`{"a":1,"b":{"a":[{"a":1},{"a":2}]}}`)).toBeNull();
    expect(findDuplicateKey(`{"b":{"a":1,"c":"{\\"a\\":1}","a":2}}`)).toBe("b.a");
    expect(findDuplicateKey(`[{"x/y":1},{"x":{"y":1},"x\\u002fy":2,"x/y":3}]`)).toBe("1.x.y");
  });

  it("is refused with the place and the reason", () => {
    expectAqError(() => parseJsonObject("nope", "here"), "AQ_FORMAT", "here", "not valid JSON");
    expectAqError(() => parseJsonObject("null", "here"), "AQ_FORMAT", "here", "holds null");
    expectAqError(() => parseJsonObject('"x"', "here"), "AQ_FORMAT", 'holds "x"');
  });
});
