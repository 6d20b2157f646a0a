import test from "ava"
import { type Builder, isTuple, PickleGlobal, type PickleValue, unpickle } from "../../lib/checkpoint/pickle.ts"
import { SelscanError } from "../../lib/errors.ts"
import * as w from "./torch-writer.ts"

/** Knows one function, which gives its arguments, and every persistent id. */
const builder: Builder = {
  global: (module, name) => {
    if (module === "m" && name === "f") return new PickleGlobal("m.f", (args) => [...args])
    throw new SelscanError("BAD_FILE", `m: expected m.f, got ${module}.${name}; use it`)
  },
  persistent: (id) => id,
}
const run = (...parts: readonly (string | number | Uint8Array)[]): PickleValue =>
  unpickle(w.bytesOf(0x80, 2, ...parts, "."), "m", builder)

const u32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer)
const u64 = (value: number) => new Uint8Array(BigUint64Array.of(BigInt(value)).buffer)

const values: [string, readonly (string | number | Uint8Array)[], unknown][] = [
  ["None", ["N"], null],
  ["booleans", [0x88, 0x89, 0x86], [true, false]],
  ["a small number", ["K", 255], 255],
  ["a number of two bytes", ["M", 1, 2], 513],
  ["a negative number", ["J", u32(0xffffffff)], -1],
  ["a long of no bytes", [0x8a, 0], 0],
  ["a negative long", [0x8a, 2, 0, 0x80], -32768],
  ["a long beyond 2^53", [0x8a, 8, u64(2 ** 60)], 2n ** 60n],
  ["a long of ten bytes", [0x8b, u32(10), new Uint8Array(9), 1], 2n ** 72n],
  ["a double, big-endian", ["G", 0x3f, 0xf8, 0, 0, 0, 0, 0, 0], 1.5],
  ["text", [w.text("é数")], "é数"],
  ["short text", [0x8c, 1, "a"], "a"],
  ["long text", [0x8d, u64(1), "a"], "a"],
  ["Python 2's text", ["U", 1, 0xe9], "é"],
  ["bytes", ["C", 2, 1, 2], Uint8Array.of(1, 2)],
  ["a list by parts", ["]", "K", 1, "a", "(", "K", 2, "K", 3, "e"], [1, 2, 3]],
  ["a list at once", ["(", "K", 1, "K", 2, "l"], [1, 2]],
  ["tuples", [")", "K", 1, 0x85, "K", 1, "K", 2, 0x86, 0x87], [[], [1], [1, 2]]],
  [
    "a dict by parts",
    ["}", "K", 1, "K", 2, "s", "(", "K", 3, "K", 4, "u"],
    new Map([
      [1, 2],
      [3, 4],
    ]),
  ],
  ["a dict at once", ["(", "K", 1, "K", 2, "d"], new Map([[1, 2]])],
  ["a set", [0x8f, "(", "K", 1, "K", 1, 0x90], new Set([1])],
  ["a frozen set", ["(", "K", 1, 0x91], new Set([1])],
  ["the memo", ["K", 7, "q", 3, "0", "h", 3, "r", u32(70000), "0", "j", u32(70000)], 7],
  ["the memo by turns", ["K", 7, 0x94, "0", "K", 8, 0x94, "h", 0, 0x86], [8, 7]],
  ["the stack", ["K", 1, "2", 0x86, "(", "K", 9, "1"], [1, 1]],
  ["a frame", [0x95, u64(2), "K", 1], 1],
  ["a call", [w.global("m", "f"), ")", "R"], []],
  ["a call of a name on the stack", [w.text("m"), w.text("f"), 0x93, "K", 1, 0x85, "R"], [1]],
  ["a persistent id", ["K", 5, "Q"], 5],
  ["attributes of a dict", ["}", "}", "b"], new Map()],
]

for (const [what, parts, expected] of values) {
  test(`${what} is read`, (t) => {
    t.deepEqual(run(...parts) as unknown, expected)
  })
}

test("tuples are frozen, lists are not", (t) => {
  t.true(isTuple(run(")")))
  t.false(isTuple(run("]")))
})

test("a list that holds itself is one object", (t) => {
  const list = run("]", "q", 0, "h", 0, "a") as readonly PickleValue[]
  t.is(list[0], list)
})

/** What is wrong, the pickle after its protocol, and what the message must say. */
const refused: [string, readonly (string | number | Uint8Array)[], RegExp][] = [
  ["an instance by name", ["(", "ios\nsystem\n"], /opcode 0x69/],
  ["an object of a class", ["(", w.global("m", "f"), "o"], /opcode 0x6f/],
  ["a new object", [w.global("m", "f"), ")", 0x81], /opcode 0x81/],
  ["an extension", [0x82, 1], /opcode 0x82/],
  ["a persistent id in a line", ["Px\n"], /opcode 0x50/],
  ["a buffer", [0x97], /opcode 0x97/],
  ["a number in text", ["I1\n"], /opcode 0x49/],
  ["an unknown opcode", [0], /opcode 0x0/],
  ["protocol 1", [0x80, 1], /protocol 2 to 5, got 1/],
  ["protocol 6", [0x80, 6], /protocol 2 to 5, got 6/],
  ["a global that nobody knows", [w.global("os", "system")], /got os\.system/],
  ["a name without end", ["c", "a".repeat(300)], /a name of less than 256 characters/],
  ["a value called that is none", ["K", 1, ")", "R"], /something that may be called, got a number/],
  ["arguments that are no tuple", [w.global("m", "f"), "]", "R"], /a tuple of arguments, got a list/],
  ["attributes of a list", ["]", "}", "b"], /a dict to give attributes to, got a list/],
  ["a value that is not there", ["0"], /a value on the stack, got none/],
  ["a value behind a mark", ["K", 1, "(", "0"], /a value on the stack, got none/],
  ["a mark that is not there", ["t"], /a mark, got none/],
  ["a memo that is not there", ["h", 1], /a value 1 in the memo, got none/],
  ["two values at the end", ["K", 1, "K", 2], /one value at the end, got more/],
  ["a mark at the end", ["K", 1, "("], /a value on the stack, got none/],
  ["a key without a value", ["}", "(", "K", 1, "u"], /keys with values/],
  ["items of a list", ["]", "K", 1, "K", 2, "s"], /a dict to set items of, got a list/],
  ["a tuple that grows", [")", "K", 1, "a"], /a list to append to, got a tuple/],
  ["a set that is none", ["]", "(", 0x90], /a set to add to, got a list/],
  ["names that are no text", ["K", 1, "K", 2, 0x93], /names in text, got a number/],
  ["text that is not UTF-8", ["X", u32(1), 0xff], /text in UTF-8/],
  ["text beyond the end", ["X", u32(2 ** 31)], /2147483648 bytes, got the last/],
  ["bytes beyond 2^63", [0x8e, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], /bytes, got the last/],
  ["a number of a megabyte", [0x8b, u32(1 << 20), new Uint8Array(1 << 20)], /a number of at most 255 bytes/],
  ["a key beyond 2^53", ["}", 0x8a, 8, u64(2 ** 60), "N", "s"], /a key, got a bigint/],
  ["a fraction as a key", ["}", "G", 0x3f, 0xf8, 0, 0, 0, 0, 0, 0, "N", "s"], /a key, got a number/],
  ["a key beyond 2^31", ["}", 0x8a, 5, 0, 0, 0, 0x80, 0, "N", "s"], /a key, got a number/],
  ["a place far out in the memo", ["N", "r", u32(2 ** 31)], /places of the memo below 4000000, got 2147483648/],
  ["more after the end", ["N", "."], /the end after the last opcode/],
]

for (const [what, parts, says] of refused) {
  test(`${what} is refused in one sentence`, (t) => {
    const error = t.throws(() => run(...parts), { name: "SelscanError", code: "BAD_FILE", message: says })
    t.true(error!.message.length < 500 && !error!.message.includes("\n"))
  })
}

test("a pickle that is cut is refused at any offset", (t) => {
  const whole = w.pickle(w.dict({ a: w.list(w.int(1), w.text("é")), b: w.call(w.global("m", "f"), w.none) }))
  unpickle(whole, "m", builder)
  for (let length = 0; length < whole.length; length++) {
    t.throws(() => unpickle(whole.slice(0, length), "m", builder), { code: "BAD_FILE" })
  }
})

test("what a memo repeats is one object, so a billion laughs are one", (t) => {
  // Each of 200 lists holds the one before it nine times.
  const list = (level: number) => [
    "]",
    "q",
    level,
    "(",
    ...Array(9)
      .fill(["h", level - 1])
      .flat(),
    "e",
  ]
  const levels = Array.from({ length: 199 }, (_, i) => [...list(i + 1), "0"]).flat()
  const started = performance.now()
  let laughs = run("]", "q", 0, "0", ...levels, "h", 199) as readonly PickleValue[]
  t.true(performance.now() - started < 1000)
  for (let level = 199; level > 0; level--) {
    t.is(laughs.length, 9)
    t.true(laughs.every((one) => one === laughs[0]))
    laughs = laughs[0] as readonly PickleValue[]
  }
  t.deepEqual(laughs, [])
})

test("a pickle of millions of steps or containers is refused within seconds and some memory", (t) => {
  const fill = (code: number, length: number) => w.bytesOf(0x80, 2, new Uint8Array(length).fill(code), ".")
  const started = performance.now()
  t.throws(() => unpickle(fill(0x4e, 5_000_000), "m", builder), { message: /at most 4000000 steps/ })
  t.throws(() => unpickle(fill(0x7d, 5_000_000), "m", builder), { message: /at most 1000000 containers/ })
  t.throws(() => unpickle(fill(0x28, 5_000_000), "m", builder), { message: /at most 4000000 steps/ })
  t.true(performance.now() - started < 20_000)
})
