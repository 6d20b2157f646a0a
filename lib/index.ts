/**
 * selscan: selective state-space language models for Node.js.
 *
 * @example
 * import { load } from "selscan"
 * const model = await load("demo")
 * for await (const text of model.generate("In the beginning", { maxTokens: 200 })) process.stdout.write(text)
 */
export { type AddonCandidate, type AddonReport, addonReport } from "./addon.ts"
export { type Converted, type ConvertForm, type ConvertOptions, convert } from "./checkpoint/convert.ts"
export { modelConfigFields, parseModelConfig, readModelConfig } from "./checkpoint/families.ts"
export type { Naming } from "./checkpoint/family.ts"
export { openSafetensors, parseSafetensors, writeSafetensors } from "./checkpoint/safetensors.ts"
export { openTorch, type TorchFile, TorchTensor } from "./checkpoint/torch-file.ts"
export { type ErrorCode, SelscanError } from "./errors.ts"
export { Chat, type ReplyOptions } from "./generate/chat.ts"
export { type LoadOptions, load } from "./generate/load.ts"
export { Model, type ModelOptions } from "./generate/model.ts"
export type { SamplingOptions } from "./generate/sampling.ts"
export type { SaveOptions } from "./generate/save.ts"
export type { ScoreOptions } from "./generate/score.ts"
export { type GenerateOptions, type Prompt, Session, type Token, type TokenOptions } from "./generate/session.ts"
export type { Score } from "./generate/text-score.ts"
export { checkpoint } from "./graph/checkpoint.ts"
export { type Arithmetic, gradients } from "./graph/gradient.ts"
export { op } from "./graph/op.ts"
export { Program, trace } from "./graph/program.ts"
export type { Numerics, Precision } from "./graph/trace.ts"
export type { Dtype, Value } from "./graph/value.ts"
export { download } from "./hub/download.ts"
export type { DownloadOptions, DownloadProgress } from "./hub/options.ts"
export * from "./layers/index.ts"
export {
  type BlockConfig,
  type BlockName,
  type BlockSize,
  type ModelConfig,
  type ModelSize,
  modelConfig,
  sambaPattern,
} from "./models/config.ts"
export { initialWeights, type LanguageModel } from "./models/language-model.ts"
export { MegaByte, type MegaByteConfig, type MegaByteSize, megabyteConfig } from "./models/megabyte.ts"
export { PatternModel } from "./models/pattern-model.ts"
export { modelPreset, type Preset, presets } from "./models/presets.ts"
export { type Device, type DeviceInfo, devices, Executable, type Memory, Store, setThreads } from "./native.ts"
export * as ops from "./ops/index.ts"
export { type ChatMessage, type ChatOptions, ChatTemplates, renderChat } from "./text/chat-template.ts"
export { byteCodec, type Codec, type DecodeOptions, type Decoder, decode, type EncodeOptions } from "./text/codec.ts"
export { type TokenizerOptions, tokenizerCodec } from "./text/tokenizer.ts"
export type { TrainOptions } from "./train/options.ts"
export { type TrainControl, type TrainEvent, train } from "./train/train.ts"
