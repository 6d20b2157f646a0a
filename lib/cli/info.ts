import type { CAC } from "cac"
import { type AddonReport, addonReport } from "../addon.ts"
import { SelscanError } from "../errors.ts"
import { type Device, type DeviceInfo, devices, resolveDevice, setThreads } from "../native.ts"
import { type HubCache, hubCache, type ModelFacts, modelFacts } from "./info-facts.ts"

interface Flags {
  model?: string
  device?: Device
  threads?: number
  json?: boolean
}

/** What `selscan info` found. */
interface Info {
  readonly version: string
  readonly node: string
  readonly platform: string
  readonly addon: Pick<AddonReport, "candidates" | "path"> & { readonly missing?: string }
  /** The device that --device means, `auto` unless it is given; none where it cannot be had. */
  readonly device: { readonly wanted: string; readonly chosen?: string; readonly why: string }
  readonly devices: readonly DeviceInfo[]
  readonly hub: HubCache
  readonly model?: ModelFacts
}

/** `selscan info`: what is there, what was chosen and why. It needs no addon: a missing one is what people ask it about. */
export function infoCommand(cli: CAC): void {
  cli
    .command("info", "Say which addon and device are used and why, what was looked for, and what a model is")
    .option(
      "--model <model>",
      "demo, demo-samba, a folder, or owner/name in the Hub's cache: its sizes, tokenizer and state, from its files",
    )
    .option("--device <device>", "auto, cpu, cuda or cuda:N; auto is cuda where it can be used (auto)")
    .option("--threads <n>", "Threads, 0 for all usable cores (SELSCAN_THREADS, else 0)")
    .option("--json", "Print one object: version, node, platform, addon, device, devices, hub, model")
    .example("selscan info --model demo")
    .action(info)
}

async function info({ model, device = "auto", threads, json }: Flags): Promise<number> {
  const { platform, version, candidates, path } = addonReport()
  const missing = missingAddon()
  if (missing === undefined && threads !== undefined) await setThreads(threads)
  const found: Info = {
    version,
    node: process.version,
    platform,
    addon: { candidates, ...(path && { path }), ...(missing && { missing }) },
    device: choice(device, missing),
    devices: missing === undefined ? devices() : [],
    hub: await hubCache(),
    ...(model !== undefined && { model: await modelFacts(model) }),
  }
  if (json) console.log(JSON.stringify(found))
  else print(found)
  return 0
}

/** Why there is no addon, in the words of every other command; undefined where there is one. */
function missingAddon(): string | undefined {
  try {
    devices()
    return undefined
  } catch (error) {
    if (error instanceof SelscanError && error.code === "ADDON_MISSING") return error.message
    throw error
  }
}

/** The device that a name means here, and why. Throws BAD_OPTION for a name that is none. */
function choice(wanted: Device, missing: string | undefined): Info["device"] {
  if (missing !== undefined) return { wanted, why: "there is no addon" }
  try {
    const chosen = resolveDevice(wanted)
    if (wanted !== "auto") return { wanted, chosen, why: "it was asked for and can be used" }
    const cuda = devices().find(({ name }) => name === "cuda")
    if (chosen === "cuda") return { wanted, chosen, why: "cuda can be used, and comes before the cpu" }
    return { wanted, chosen, why: cuda?.missing ? `not cuda: ${cuda.missing}` : "this addon has no other" }
  } catch (error) {
    if (!(error instanceof SelscanError) || error.code === "BAD_OPTION") throw error
    return { wanted, why: error.message }
  }
}

function print({ version, node, platform, addon, device, devices, hub, model }: Info): void {
  console.log(`selscan ${version}, Node.js ${node.slice(1)}, ${platform}`)
  const looked = addon.candidates.map(({ name, state, reason, path }) => {
    return `${name}: ${state}${reason ? `, ${reason}` : ""}${state === "in use" && path ? `, ${path}` : ""}`
  })
  section("addon", addon.missing === undefined ? looked : [addon.missing, ...looked])
  section("device", [`${device.chosen ?? "none"} for ${device.wanted}: ${device.why}`])
  section("devices", devices.map(deviceLine))
  const models = hub.models.map(({ name, bytes }) => `${name}, ${megabytes(bytes)}`)
  section("hub cache", [`${hub.path}: ${models.length === 0 ? "no models" : models.join("; ")}`])
  if (model) section("model", modelLines(model))
}

function section(title: string, lines: readonly string[]): void {
  for (const [i, line] of lines.entries()) console.log(`${(i === 0 ? title : "").padEnd(10)} ${line}`)
}

function deviceLine({ name, description, missing, freeBytes, totalBytes = 0 }: DeviceInfo): string {
  if (missing !== undefined) return `${name}: missing, ${missing}`
  const memory = freeBytes === undefined ? "" : `, ${megabytes(freeBytes)} of ${megabytes(totalBytes)} free`
  return `${name}: ${description}${memory}`
}

function modelLines(model: ModelFacts): string[] {
  const { family, configFile, parameters, dtypes, weightBytes, text, vocab, contextMax, stateBytes } = model
  return [
    `${model.folder}: ${family}, by ${configFile}`,
    `${parameters} parameters in ${dtypes.join(" and ")}, ${megabytes(weightBytes)} on disk`,
    `text: ${text}${model.chat ? " with a chat template" : ""}, vocabulary of ${vocab}`,
    `context: ${contextMax ?? "any length"}; state of a session at most ${megabytes(stateBytes)}`,
  ]
}

/** Bytes for people: 1.23 MB, 456 MB. */
export const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 0)} MB`
