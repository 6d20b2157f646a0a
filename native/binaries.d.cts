/** A place where an addon may lie. */
export interface Binary {
  /** The package's name, or the path within this one. */
  readonly name: string
  /** Of packages: the installed version, undefined where there is none. */
  readonly version?: () => string | undefined
  /** Undefined where there is no such file, and in bundles, which know it by number alone. */
  readonly path: () => string | undefined
  readonly load: () => { readonly exports: unknown } | { readonly error: unknown }
}
/** The version of this package. */
export const version: string
export const built: Binary
export const packages: Readonly<Record<string, readonly Binary[]>>
