/** What check-llama.ts uses of node-llama-cpp, which is not installed with the package. */

export interface LlamaModule {
  getLlama(options: object): Promise<Llama>
  readonly LlamaLogLevel: { readonly error: string }
}

export interface Llama {
  loadModel(options: { modelPath: string; gpuLayers: number }): Promise<LlamaModel>
  dispose(): Promise<void>
}

export interface LlamaModel {
  createContext(options: { contextSize: number; sequences: number; threads: number }): Promise<LlamaContext>
  dispose(): Promise<void>
}

export interface LlamaContext {
  getSequence(): LlamaSequence
  dispose(): Promise<void>
}

export interface LlamaSequence {
  /** Ids, with what is wanted of the token after one; results stand at the index of that one. */
  controlledEvaluate(
    input: readonly (number | readonly [id: number, wanted: { generateNext: { logits: true } }])[],
  ): Promise<readonly { next: { logits: ReadonlyMap<number, number> } }[]>
}

/** The package with the prebuilt binary for this machine's processor. */
export function llamaPlatform(): string {
  const system = { linux: "linux", darwin: "mac", win32: "win" }[process.platform as string]
  const name = `${system ?? process.platform}-${process.arch}`
  return name === "mac-arm64" ? "mac-arm64-metal" : name
}
