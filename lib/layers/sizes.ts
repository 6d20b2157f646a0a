import { expect } from "../errors.ts"

/** Throws BAD_OPTION unless every size is a whole number of at least 1. */
export function checkSizes(where: string, sizes: Readonly<Record<string, number>>): void {
  for (const [name, size] of Object.entries(sizes)) {
    expect(
      Number.isSafeInteger(size) && size >= 1,
      "BAD_OPTION",
      () => `${where}: ${name} is a whole number of at least 1, got ${size}`,
    )
  }
}
