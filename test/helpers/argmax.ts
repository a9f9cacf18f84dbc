/** The first of the largest. */
export const argmax = (numbers: Float32Array): number => numbers.indexOf(Math.max(...numbers));
