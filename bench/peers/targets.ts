/**
 * What is to be reached, beside what a run measured. A row without its measurement in the run is left out.
 */
import { statistics } from "../measure.ts"
import { aligned } from "../table.ts"
import { type Line, llama, perToken, type Result, ratio, times } from "./match.ts"
import { nameOf } from "./party.ts"

interface Target {
  readonly what: string
  readonly against: string
  readonly reach: string
  /** Undefined where the run has not what it takes. */
  readonly measured: (result: Result) => { text: string; met: boolean } | undefined
}

/** The player that targets are about is the first one of ours. */
const firstOf = ({ lines }: Result): string => lines[0]!.player

/** Whether a result is of that model and form; undefined stands for any. */
const isOf = ({ lines }: Result, model: string | undefined, form: string): boolean =>
  (model === undefined || lines[0]!.model === model) && lines[0]!.form === form

function atLeast(least: number, task: string, form: string, model?: string): Target {
  return {
    what: `${task}, ${model ?? "every model"}, ${form}`,
    against: llama,
    reach: `≥ ${least}×`,
    measured: (result) => {
      if (!isOf(result, model, form)) return undefined
      const found = ratio(result.lines, task, llama, firstOf(result))
      return found && { text: times(found.median), met: found.median >= least }
    },
  }
}

/** The time of a token of a prompt, beside one of a prompt of 512. */
function within(tokens: number, most: number): Target {
  const lineOf = (result: Result, task: string): Line | undefined =>
    result.lines.find((line) => line.player === firstOf(result) && nameOf(line.task) === task)
  return {
    what: `prefill ${tokens}`,
    against: "ours at 512, per token",
    reach: `within ${Math.round(100 * most)}%`,
    measured: (result) => {
      const [own, base] = [lineOf(result, `prefill ${tokens}`), lineOf(result, "prefill 512")]
      if (own === undefined || base === undefined) return undefined
      const more = perToken(own).median / perToken(base).median - 1
      return { text: `${more < 0 ? "" : "+"}${(100 * more).toFixed(1)}%`, met: more <= most }
    },
  }
}

function shareOfReading(least: number, form: string): Target {
  const task = "decode, batch 1"
  return {
    what: `${task}, ${form}`,
    against: "read bandwidth of the run",
    reach: `≥ ${Math.round(100 * least)}%`,
    measured: (result) => {
      const line = result.lines.find(({ player, task: own }) => player === firstOf(result) && nameOf(own) === task)
      const bytes = result.bytes.get(task)
      if (!isOf(result, undefined, form) || line === undefined || bytes === undefined) return undefined
      const bandwidth = statistics(result.read).median
      const share = bytes / perToken(line).median / bandwidth
      return { text: `${(100 * share).toFixed(0)}% of ${(bandwidth / 1e9).toFixed(1)} GB/s`, met: share >= least }
    },
  }
}

const targets: readonly Target[] = [
  atLeast(20, "prefill 512", "bf16", "mamba-130m"),
  within(509, 0.15),
  within(700, 0.15),
  atLeast(20, "prefill 4096", "bf16", "mamba-790m"),
  atLeast(1.8, "decode, batch 1", "bf16"),
  shareOfReading(0.8, "bf16"),
  atLeast(1.7, "decode, batch 1", "int8"),
  atLeast(4, "decode, batch 8", "bf16"),
]

/** One line for each target that a result has to do with; empty where there is none. */
export function verdicts(result: Result): string {
  const rows = targets.flatMap(({ what, against, reach, measured }) => {
    const found = measured(result)
    return found ? [[what, against, reach, found.text, found.met ? "met" : "NOT MET"]] : []
  })
  return rows.length === 0 ? "" : aligned(["target", "against", "reach", "measured", ""], rows, [2, 3])
}
