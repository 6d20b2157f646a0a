import type { Family } from "../family.ts"
import { adamWFamily } from "./adamw.ts"
import { causalConv1dFamily } from "./causal-conv1d.ts"
import { causalConv1dUpdateFamily } from "./causal-conv1d-update.ts"
import { clipGradNormFamily } from "./clip-grad-norm.ts"
import { mambaInnerFamily } from "./mamba-inner.ts"
import { mambaModelFamily } from "./mamba-model.ts"
import { mambaTrainFamily } from "./mamba-train.ts"
import { rmsNormFamily } from "./rms-norm.ts"
import { selectiveScanFamily } from "./selective-scan.ts"
import { selectiveStateUpdateFamily } from "./selective-state-update.ts"
import { softmaxCrossEntropyFamily } from "./softmax-cross-entropy.ts"

/** Every family that this package supports. */
export const families: readonly Family[] = [
  selectiveScanFamily,
  selectiveStateUpdateFamily,
  causalConv1dFamily,
  causalConv1dUpdateFamily,
  mambaInnerFamily,
  rmsNormFamily,
  softmaxCrossEntropyFamily,
  adamWFamily,
  clipGradNormFamily,
  mambaModelFamily,
  mambaTrainFamily,
]
