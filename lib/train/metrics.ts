/**
 * The metrics of a run: one JSON object per line, and a plot of them.
 */
import { appendFile, readFile } from "node:fs/promises"
import { writeFileAtomically } from "../checkpoint/atomic.ts"
import { SelscanError } from "../errors.ts"
import { linePlot } from "../plot.ts"

export interface StepMetrics {
  readonly step: number
  readonly bitsPerByte: number
  readonly rate: number
  readonly norm: number
  readonly seconds: number
}

export interface ValidationMetrics {
  readonly step: number
  readonly validation: number
}

export type MetricsLine = StepMetrics | ValidationMetrics

export class Metrics {
  readonly path: string
  readonly lines: MetricsLine[]

  private constructor(path: string, lines: MetricsLine[]) {
    this.path = path
    this.lines = lines
  }

  /** Opens the metrics of a run that goes on after `step`: lines of later steps, whose work was lost, are dropped. */
  static async open(path: string, step: number): Promise<Metrics> {
    const lines = step === 0 ? [] : (await readLines(path)).filter((line) => line.step <= step)
    await writeFileAtomically(path, lines.map((line) => `${JSON.stringify(line)}\n`).join(""))
    return new Metrics(path, lines)
  }

  async append(line: MetricsLine): Promise<void> {
    this.lines.push(line)
    await appendFile(this.path, `${JSON.stringify(line)}\n`).catch((cause: Error) => {
      throw new SelscanError(
        "DISK",
        `${this.path}: could not be written: ${cause.message}`,
        { path: this.path },
        { cause },
      )
    })
  }

  /** Bits per byte over steps as SVG: training (averaged over a hundredth of the run) and validation. */
  async plot(path: string): Promise<void> {
    const steps = this.lines.filter((line): line is StepMetrics => "bitsPerByte" in line)
    const judged = this.lines.filter((line): line is ValidationMetrics => "validation" in line)
    const svg = linePlot({
      title: "Bits per byte",
      x: "step",
      y: "bits per byte",
      series: [
        { name: "training", points: averaged(steps.map((line) => [line.step, line.bitsPerByte])) },
        { name: "validation", points: judged.map((line) => [line.step, line.validation]) },
      ],
    })
    await writeFileAtomically(path, svg)
  }
}

/** A line that a killed process left half-written is no line. */
async function readLines(path: string): Promise<MetricsLine[]> {
  const text = await readFile(path, "utf8").catch(() => "")
  return text.split("\n").flatMap((line) => {
    try {
      return [JSON.parse(line) as MetricsLine]
    } catch {
      return []
    }
  })
}

type Point = readonly [number, number]

function averaged(points: readonly Point[]): Point[] {
  const width = Math.max(1, Math.floor(points.length / 100))
  const out: Point[] = []
  for (let i = 0; i + width <= points.length; i += width) {
    const part = points.slice(i, i + width)
    out.push([part.at(-1)![0], part.reduce((total, [, y]) => total + y, 0) / width])
  }
  return out
}
