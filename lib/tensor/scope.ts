/**
 * Tensors die by scope, not by garbage collection: a loop over gigabytes makes handles faster than
 * the collector sees any pressure.
 */

interface Disposable {
  dispose(): void;
}

const scopes: Set<Disposable>[] = [];

/** Enters a newly made tensor into the innermost scope, if there is one. */
export function enterScope(tensor: Disposable): void {
  scopes.at(-1)?.add(tensor);
}

/** Takes a tensor out of the innermost scope: the caller now owns it and disposes it. */
export function keep<T extends Disposable>(tensor: T): T {
  scopes.at(-1)?.delete(tensor);
  return tensor;
}

/**
 * Runs `body` and disposes every tensor made inside that was not kept. A returned tensor, or the
 * tensors of a returned array, move to the scope outside (or to the caller).
 *
 * The body must not be asynchronous: scopes nest by time.
 */
export function scope<T>(body: () => T): T {
  const mine = new Set<Disposable>();
  scopes.push(mine);
  let result: T | undefined;
  try {
    result = body();
    return result;
  } finally {
    scopes.pop();
    const outer = scopes.at(-1);
    for (const item of Array.isArray(result) ? result : [result]) {
      if (mine.delete(item as Disposable)) outer?.add(item as Disposable);
    }
    for (const tensor of mine) tensor.dispose();
  }
}
