import test from "ava"
import { cac } from "cac"
import fc from "fast-check"
import { dashed, readWords } from "../../lib/cli/words.ts"

const { options } = cac("selscan")
  .command("try")
  .option("-h, --help", "")
  .option("--json", "")
  .option("--max-tokens <n>", "")
  .option("--rate <x>", "")
  .option("--stop <...text>", "")
  .option("--model <model|size>", "")

const read = (...words: string[]) => readWords("try", options, words)

test("words belong to the option before them, and else to nobody", (t) => {
  t.deepEqual(read("a", "--json", "1.50", "--max-tokens", "12", "b"), {
    args: ["a", "1.50", "b"],
    options: { json: true, maxTokens: 12 },
  })
  t.deepEqual(read("-h"), { args: [], options: { help: true } })
  t.deepEqual(read("--json", "--json"), { args: [], options: { json: true } })
  t.deepEqual(read("-"), { args: ["-"], options: {} })
  t.deepEqual(read("--json", "--", "--json", "-x", "--"), { args: ["--json", "-x", "--"], options: { json: true } })
})

test("numbers are numbers where they are asked for, and text stays as it was typed", (t) => {
  t.deepEqual(read("--rate", "-0.5", "--max-tokens=1e3").options, { rate: -0.5, maxTokens: 1000 })
  t.deepEqual(read("--rate", "hot", "--max-tokens", "").options, { rate: "hot", maxTokens: "" })
  t.deepEqual(read("--model", "007").options, { model: "007" })
  t.deepEqual(read("--stop", "\n", "--stop=", "--stop=a=b", "--stop", "-x").options, { stop: ["\n", "", "a=b", "-x"] })
})

test("any text arrives as it is, after an option and behind two dashes", (t) => {
  const property = fc.property(fc.string(), fc.array(fc.string()), (value, rest) => {
    t.deepEqual(read(`--stop=${value}`, "--", ...rest), { args: rest, options: { stop: [value] } })
    if (!value.startsWith("--")) t.deepEqual(read("--model", value).options, { model: value })
  })
  t.notThrows(() => fc.assert(property, { seed: 5, numRuns: 300 }))
})

test("no words are misread without a word", (t) => {
  const refused: [string[], RegExp][] = [
    [["--modle", "x"], /^try: unknown option --modle, did you mean --model\?$/],
    [["--maxTokens", "1"], /^try: unknown option --maxTokens, did you mean --max-tokens\?$/],
    [["--no-json"], /^try: unknown option --no-json/],
    [["-j"], /^try: unknown option -j, write "--" before words that begin with a dash$/],
    [["--model"], /^try: a value is expected after --model, got none; see --model <model\|size>$/],
    [["--model", "--json"], /^try: a value is expected after --model, got none/],
    [["--model", "--", "x"], /^try: a value is expected after --model, got none/],
    [["--json=true"], /^try: --json takes no value, got true; leave it out$/],
    [["--rate", "1", "--rate=2"], /^try: --rate is expected once, got it twice$/],
    [["--__proto__=1"], /^try: unknown option --__proto__/],
  ]
  for (const [words, message] of refused) t.throws(() => read(...words), { code: "BAD_OPTION", message })
})

test("names are typed with dashes", (t) => {
  t.deepEqual(["maxTokens", "topK", "json", "h"].map(dashed), ["--max-tokens", "--top-k", "--json", "-h"])
})
