import { spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"
import type { CAC } from "cac"
import { expect, SelscanError } from "../errors.ts"
import { failedTrial } from "../trial.ts"

interface Flags {
  device?: unknown
  jobs?: unknown
  json?: boolean
}

/** What SELSCAN_CUDA says to the build, by device; `auto` leaves it as it is. */
const cudaOf: Readonly<Record<string, string | undefined>> = { auto: undefined, cpu: "0", cuda: "1" }

/** `selscan build`: compiles the addon on this machine, from the sources that the package brings. */
export function buildCommand(cli: CAC): void {
  cli
    .command("build", "Compile the addon on this machine, where no prebuilt binary fits; takes minutes")
    .option(
      "--device <device>",
      "cpu, cuda (nvcc of CUDA 12.8 is needed), or auto: cuda where nvcc and a driver are found",
      {
        default: "auto",
      },
    )
    .option("--jobs <n>", "Files compiled at once (as many as there are processors)")
    .option("--json", "Print one object: path and seconds; what the compiler says goes to stderr")
    .example("selscan build")
    .example("selscan build --device cuda")
    .action(build)
}

async function build({ device = "auto", jobs, json }: Flags): Promise<number> {
  const known = Object.hasOwn(cudaOf, String(device))
  expect(known, "BAD_OPTION", () => `build: --device is one of auto, cpu, cuda, got ${device}`)
  const isCount = jobs === undefined || (Number.isSafeInteger(jobs) && Number(jobs) >= 1)
  expect(isCount, "BAD_OPTION", () => `build: --jobs is a whole number of at least 1, got ${jobs}`)
  const script = fileURLToPath(new URL("../../native/install.cjs", import.meta.url))
  const addon = fileURLToPath(new URL("../../build/Release/selscan.node", import.meta.url))
  expect(
    existsSync(script),
    "NOT_FOUND",
    () => `build: the package's sources are expected beside it, got no ${script}; install selscan anew`,
  )
  const cuda = cudaOf[String(device)]
  const env = {
    ...process.env,
    ...(cuda !== undefined && { SELSCAN_CUDA: cuda }),
    ...(jobs !== undefined && { SELSCAN_JOBS: String(jobs) }),
  }
  const began = performance.now()
  // All that compilers say goes to stderr. Ctrl-C reaches the child and its compilers too.
  const child = spawn(process.execPath, [script, "--force"], { env, stdio: ["ignore", 2, 2] })
  const [status, signal] = (await once(child, "close")) as [number | null, string | null]
  if (signal !== null) throw new SelscanError("ABORTED", `build: ended by ${signal}; run it again to go on`)
  if (status !== 0) return 1 // the script has said why, in one line at the end
  const failure = failedTrial(addon)
  expect(
    failure === undefined,
    "ADDON_MISSING",
    () => `build: an addon that loads is expected, got ${addon}, ${failure}; report it with what was printed above`,
  )
  const seconds = (performance.now() - began) / 1000
  console.log(json ? JSON.stringify({ path: addon, seconds }) : `${addon} in ${seconds.toFixed(0)} s`)
  return 0
}
