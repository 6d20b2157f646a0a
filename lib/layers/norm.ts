import { LayerNorm } from "./layer-norm.ts"
import { RMSNorm } from "./rms-norm.ts"

/** The norm of a model's stream: RMSNorm, or LayerNorm with a bias. */
export type NormKind = "rms" | "layer"

export const normOf = (kind: NormKind, size: { readonly dim: number; readonly eps: number }): LayerNorm | RMSNorm =>
  kind === "layer" ? new LayerNorm(size) : new RMSNorm(size)
