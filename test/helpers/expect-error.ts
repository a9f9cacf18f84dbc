import { expect } from "vitest";
import { AqError, type AqErrorCode } from "../../lib/errors.ts";

/** Asserts that `act` throws an AqError with this code and a message that has all the parts. */
export function expectAqError(act: () => unknown, code: AqErrorCode, ...parts: string[]): void {
  let error: unknown;
  try {
    act();
  } catch (caught) {
    error = caught;
  }
  check(error, code, parts);
}

/** The same for a promise. */
export async function expectAqRejection(
  promise: Promise<unknown>,
  code: AqErrorCode,
  ...parts: string[]
): Promise<void> {
  check(
    await promise.then(
      () => undefined,
      (error: unknown) => error,
    ),
    code,
    parts,
  );
}

function check(error: unknown, code: AqErrorCode, parts: readonly string[]): void {
  expect(error).toBeInstanceOf(AqError);
  const { code: got, message } = error as AqError;
  expect({ code: got, message }).toMatchObject({ code });
  for (const part of parts) expect(message).toContain(part);
}
