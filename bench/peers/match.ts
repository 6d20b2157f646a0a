/**
 * One model in one form: every player does every task, in turns, round after round.
 */
import { type Measurement, type Statistics, statistics } from "../measure.ts"
import { aligned, digits } from "../table.ts"
import { nameOf, type Player, promptOf, type Task, tokensOf } from "./party.ts"

/** What the players have in common, and whether one of them is llama.cpp. */
export interface Setting {
  /** `mamba-130m` */
  readonly model: string
  /** `bf16` */
  readonly form: string
  readonly vocab: number
  /** The largest relative distance of logits. */
  readonly apart: number
}

export interface Plan {
  readonly tasks: readonly Task[]
  readonly repeats: number
  /** Seconds that one task may take in all; it is done once in any case. */
  readonly most: number
  readonly tell: (what: string) => void
}

/** The seconds of a player at a task, round by round. */
export interface Line extends Setting {
  readonly player: string
  readonly task: Task
  readonly seconds: readonly number[]
}

export interface Result {
  readonly lines: readonly Line[]
  /** Bytes per second, of every round. */
  readonly read: readonly number[]
  /** Bytes of weights and states behind a token, by task of decoding. */
  readonly bytes: ReadonlyMap<string, number>
  /** How far the logits of each were from the first one's. */
  readonly distances: ReadonlyMap<string, number>
}

export const llama = "llama.cpp"

/** Throws where the logits of a prompt say that not all compute the same. */
export async function match(players: readonly Player[], setting: Setting, plan: Plan): Promise<Result> {
  const distances = await checkLogits(players, setting)
  const { tasks, repeats, most, tell } = plan
  const ours = players[0]!
  const taken = new Map(tasks.flatMap((task) => players.map((player) => [keyOf(player.name, task), [] as number[]])))
  for (const task of tasks) for (const player of players) await player.warm(task)
  const spent = new Map<Task, number>()
  const read: number[] = []
  for (let round = 0; round < repeats; round++) {
    read.push(await ours.readBandwidth())
    for (const task of tasks) {
      const before = spent.get(task) ?? 0
      const done = taken.get(keyOf(ours.name, task))!.length
      if (done > 0 && before * (1 + 1 / done) > most) continue
      tell(`${setting.model}, ${setting.form}: round ${round + 1} of ${repeats}, ${nameOf(task)}`)
      const began = performance.now()
      // Who is first goes last in the next round: what the one before leaves behind is everybody's turn.
      const order = round % 2 === 0 ? players : players.toReversed()
      for (const player of order) taken.get(keyOf(player.name, task))!.push(await player.seconds(task))
      spent.set(task, before + (performance.now() - began) / 1000)
    }
  }
  const lines = tasks.flatMap((task) =>
    players.map(({ name }) => ({ ...setting, player: name, task, seconds: taken.get(keyOf(name, task))! })),
  )
  const decoding = tasks.filter(({ kind }) => kind === "decode")
  const bytes = new Map<string, number>()
  for (const task of decoding) bytes.set(nameOf(task), await ours.bytesPerToken(task))
  return { lines, read, bytes, distances }
}

const keyOf = (player: string, task: Task) => `${player}\n${nameOf(task)}`

async function checkLogits(players: readonly Player[], { model, form, vocab, apart }: Setting) {
  const ids = promptOf(0, 24, vocab)
  const [first, ...others] = players
  const expected = await first!.logits(ids)
  const distances = new Map<string, number>()
  for (const player of others) {
    const found = await player.logits(ids)
    const distance = Math.sqrt(squares(found.map((v, i) => v - expected[i]!)) / squares(expected))
    if (!(distance <= apart && found.length === expected.length)) {
      throw new Error(
        `peers: logits of ${model}, ${form}, are expected within ${apart} of each other, got ${player.name} ${distance} from ${first!.name}: they do not compute the same`,
      )
    }
    distances.set(player.name, distance)
  }
  return distances
}

const squares = (values: readonly number[]): number => values.reduce((sum, v) => sum + v * v, 0)

/** Of two players at a task, how many times the other's speed the first one has, round by round. */
export function ratio(lines: readonly Line[], task: string, over: string, player: string): Statistics | undefined {
  const of = (name: string) => lines.find((line) => line.player === name && nameOf(line.task) === task)?.seconds
  const [mine, theirs] = [of(player), of(over)]
  return mine && theirs && statistics(mine.map((seconds, i) => theirs[i]! / seconds))
}

/** Seconds of a token, of all sequences together. */
export const perToken = ({ task, seconds }: Line): Statistics => statistics(seconds.map((one) => one / tokensOf(task)))

/** Three digits. */
export const times = (value: number): string => `${value >= 100 ? value.toFixed(0) : value.toPrecision(3)}×`

/** Lines for people; a loss is called one. */
export function tableOf({ lines, distances }: Result): string {
  const names = [...new Set(lines.map(({ player }) => player))]
  const rows = lines.map((line, i) => {
    const { player, task } = line
    const name = nameOf(task)
    const rates = statistics(line.seconds.map((seconds) => tokensOf(task) / seconds))
    const over = names.includes(llama) && player !== llama ? ratio(lines, name, llama, player)! : undefined
    const cost = player === names[0] || player === llama ? undefined : ratio(lines, name, player, names[0]!)!
    return [
      i % names.length === 0 ? name : "",
      player,
      digits(rates.median),
      `${digits(rates.min)} – ${digits(rates.max)}`,
      over ? `${times(over.median)}${over.median < 1 ? " LOSS" : ""}` : "",
      over ? `${times(over.min)} – ${times(over.max)}` : "",
      cost ? times(cost.median) : "",
    ]
  })
  const heads = ["", "", "tokens/s", "min – max", `over ${llama}`, "min – max", "time over the first"]
  const far = [...distances].map(([name, distance]) => `${name} ${distance.toExponential(1)}`)
  const table = aligned(heads, rows, [2, 3, 4, 5, 6])
  return far.length === 0
    ? table
    : `${table}\nlogits of 24 tokens, relative distance from ${names[0]}: ${far.join(", ")}`
}

/** Records in the form of the other benchmarks. */
export function measurements({ lines, read, bytes }: Result): Measurement[] {
  const bandwidth = statistics(read).median
  return lines.flatMap((line): Measurement[] => {
    const { model, form, task, player } = line
    const shape = `${model}, ${form}: ${nameOf(task)}`
    const { median, min, max } = perToken(line)
    const rate = { value: 1 / median, unit: "tokens/s" }
    const moved = player === llama ? undefined : bytes.get(nameOf(task))
    const share = moved && { value: moved / median / bandwidth, of: `${(bandwidth / 1e9).toFixed(1)} GB/s read` }
    const times = { median: 1e3 * median, min: 1e3 * min, max: 1e3 * max }
    const own = { shape: `${shape}, ${player}`, unit: "ms per token", ...times, rate }
    const over = player === llama ? undefined : ratio(lines, nameOf(task), llama, player)
    return [
      { ...own, ...(moved && { bytes: moved }), ...(share && { share }) },
      ...(over ? [{ shape: `${shape}, ${player} over ${llama}`, unit: "×", ...over }] : []),
    ]
  })
}
