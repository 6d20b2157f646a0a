import type { Family } from "../family.ts"
import { adamWFamily } from "./adamw.ts"
import { causalConv1dFamily } from "./causal-conv1d.ts"
import { causalConv1dUpdateFamily } from "./causal-conv1d-update.ts"
import { clipGradNormFamily } from "./clip-grad-norm.ts"
import { languageModelFamily } from "./language-model.ts"
import { mambaInnerFamily } from "./mamba-inner.ts"
import { megabyteFamily } from "./megabyte.ts"
import { layerNormFamily, rmsNormFamily } from "./norm.ts"
import { ropeFamily } from "./rope.ts"
import { selectiveScanFamily } from "./selective-scan.ts"
import { selectiveStateUpdateFamily } from "./selective-state-update.ts"
import { softmaxCrossEntropyFamily } from "./softmax-cross-entropy.ts"
import { swaAttentionFamily } from "./swa-attention.ts"
import { swigluFamily } from "./swiglu.ts"
import { torchSaveFamily, torchSaveReadingFamily } from "./torch-save.ts"
import { trainStepsFamily } from "./train-steps.ts"

/** Every family that this package supports. */
export const families: readonly Family[] = [
  selectiveScanFamily,
  selectiveStateUpdateFamily,
  causalConv1dFamily,
  causalConv1dUpdateFamily,
  mambaInnerFamily,
  rmsNormFamily,
  layerNormFamily,
  swigluFamily,
  ropeFamily,
  swaAttentionFamily,
  softmaxCrossEntropyFamily,
  adamWFamily,
  clipGradNormFamily,
  languageModelFamily,
  megabyteFamily,
  trainStepsFamily,
  torchSaveFamily,
  torchSaveReadingFamily,
]
