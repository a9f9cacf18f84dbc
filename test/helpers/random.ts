// Seeded random numbers for cases: the same seed gives the same values on every machine.
import type { DType } from "../../lib/tensor/dtype.ts";
import { type FloatType, roundTo, type ShortType, sizeOf, type Value } from "./value.ts";

/** A 32-bit counter hashed by two multiplications: small, fast and good enough for test data. */
class Stream {
  #state: number;

  constructor(seed: number) {
    this.#state = Math.imul(seed + 1, 0x9e3779b1);
  }

  /** Uniform in (0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let x = this.#state;
    x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    return (((x ^ (x >>> 15)) >>> 0) + 0.5) / 4294967296;
  }
}

/** Numbers after which benchmark data repeat; odd, so that rows differ. */
const CHEAP_PERIOD = 65537;

/**
 * Draws the inputs of a case. Every value is rounded to the float type under test, so that the
 * float64 reference and the kernel start from the same numbers.
 */
export class Draw {
  readonly dtype: FloatType;
  /** True in benchmarks, where numbers may repeat, and derived ones may be any numbers. */
  readonly #cheap: boolean;
  /** The short type under test, of the inputs that may have one. */
  readonly short: ShortType | undefined;
  readonly #stream: Stream;

  constructor(seed: number, dtype: FloatType, cheap = false, short?: ShortType) {
    this.dtype = dtype;
    this.short = short;
    this.#cheap = cheap;
    this.#stream = new Stream(seed);
  }

  /** Normally distributed numbers. */
  normal(shape: readonly number[], std = 1, mean = 0): Value {
    return this.#fill(shape, () => {
      const radius = Math.sqrt(-2 * Math.log(this.#stream.next()));
      return mean + std * radius * Math.cos(2 * Math.PI * this.#stream.next());
    });
  }

  /** Numbers uniform between two bounds. */
  uniform(shape: readonly number[], low: number, high: number): Value {
    return this.#fill(shape, () => low + (high - low) * this.#stream.next());
  }

  /** Whole numbers from 0 to `end` - 1. */
  integers(shape: readonly number[], end: number, dtype: "i32" | "i8" | "u8"): Value {
    const { data } = this.#fill(shape, () => Math.floor(this.#stream.next() * end));
    return { data, shape, dtype };
  }

  /** Given numbers, rounded to the float type under test. */
  value(data: ArrayLike<number>, shape: readonly number[]): Value {
    return { data: Float64Array.from(data, (x) => roundTo(x, this.dtype)), shape };
  }

  /** A value that an op may take short, in the short type under test if there is one. */
  stored(value: Value): Value {
    return this.short ? as(value, this.short) : value;
  }

  /** The gradient of such a value. */
  gradient(value: Value): Value {
    return this.short ? as(value, "bf16") : value;
  }

  /** Numbers that follow from other inputs, such as a saved output of the forward op. */
  derive(shape: readonly number[], compute: () => Float64Array): Value {
    return this.#cheap ? this.normal(shape, 0.5) : this.value(compute(), shape);
  }

  #fill(shape: readonly number[], next: () => number): Value {
    const data = new Float64Array(sizeOf(shape));
    const fresh = this.#cheap ? Math.min(data.length, CHEAP_PERIOD) : data.length;
    const single = this.dtype === "f32";
    for (let i = 0; i < fresh; i++) {
      const value = next();
      data[i] = single ? Math.fround(value) : value;
    }
    for (let done = fresh; done < data.length; done *= 2) data.copyWithin(done, 0, done);
    return { data, shape };
  }
}

/** A value in another type, rounded to it. */
export function as({ data, shape }: Value, dtype: DType): Value {
  return { data: data.map((x) => roundTo(x, dtype)), shape, dtype };
}
