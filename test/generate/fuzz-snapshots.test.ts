/**
 * Snapshots made wrong at random: each is refused with one clear error, or is a session that works.
 */
import test from "ava"
import fc from "fast-check"
import { SelscanError } from "../../lib/errors.ts"
import { next, noise } from "./compare.ts"
import { resealed, sealed } from "./sealed.ts"
import { type TinyKind, tinyModel } from "./tiny.ts"

const numRuns = Number(process.env.SELSCAN_FUZZ ?? 200)
const property = { numRuns, ...(numRuns > 200 ? {} : { seed: 7 }), endOnFailure: true }

const odd = fc.oneof(
  fc.constantFrom<unknown>(
    null,
    true,
    "",
    "f32",
    "bf16",
    "i32",
    "__proto__",
    [],
    {},
    [[]],
    -1,
    0,
    1,
    0.5,
    2 ** 31,
    1e300,
  ),
  fc.integer(),
  fc.jsonValue({ maxDepth: 2 }),
)

for (const kind of ["mamba", "samba", "megabyte"] as TinyKind[]) {
  test(`${kind}: bytes that are cut, moved, repeated or changed are no snapshot`, async (t) => {
    await using model = await tinyModel({ kind, sessions: 1 })
    using session = model.session()
    await session.append(noise(20))
    const snapshot = await session.save()
    const place = fc.nat(snapshot.length)
    const edit = fc.tuple(place, place, place, fc.uint8Array({ maxLength: 9 }))
    await fc.assert(
      fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 4 }), async (edits) => {
        let bytes = Buffer.from(snapshot)
        for (const [at, from, end, more] of edits) {
          bytes = Buffer.concat([
            bytes.subarray(0, at),
            bytes.subarray(from, end),
            more,
            bytes.subarray(at + more.length),
          ])
        }
        if (Buffer.compare(bytes, snapshot) === 0) return
        t.is(await outcome(bytes), "BAD_SNAPSHOT")
      }),
      property,
    )

    async function outcome(bytes: Uint8Array): Promise<string> {
      try {
        ;(await model.session(bytes)).dispose()
        return "a session"
      } catch (error) {
        return error instanceof SelscanError ? error.code : String(error)
      }
    }
  })

  test(`${kind}: a header of any making is refused, or says of a session what works`, async (t) => {
    await using model = await tinyModel({ kind, sessions: 1 })
    using session = model.session()
    await session.append(noise(20))
    const snapshot = await session.save()
    const keys = ["model", "fingerprint", "rows", "before", "pending", "values"]
    const change = fc.tuple(fc.constantFrom(...keys), fc.nat(40), fc.nat(3), odd)
    const header = fc.oneof(
      fc.array(change, { minLength: 1, maxLength: 3 }).map((changes) => {
        return resealed(snapshot, (fields) => {
          for (const [key, index, inner, value] of changes) put(fields, key, index, inner, structuredClone(value))
        })
      }),
      fc.string().map((name) => resealed(snapshot, (fields) => Object.assign(fields, { model: name }))),
      fc.json().map((text) => sealed(snapshot, text)),
      fc.tuple(fc.json(), fc.nat()).map(([text, count]) => sealed(snapshot, text, count)),
    )
    let worked = 0
    await fc.assert(
      fc.asyncProperty(header, async (bytes) => {
        try {
          using restored = await model.session(bytes)
          const [token] = await next(restored, undefined, 1)
          if (token) worked++
        } catch (error) {
          if (!(error instanceof SelscanError)) throw error
          if (!["BAD_SNAPSHOT", "BAD_INPUT", "NOT_FINITE"].includes(error.code)) throw error
        }
      }),
      property,
    )
    t.true(worked > 0, "some that were changed are sessions still")
    t.is((await next(session)).length, 4)
  })
}

/** Puts a value in the place of a field, of an element of it, or of an element of that. */
function put(fields: Record<string, unknown>, key: string, index: number, inner: number, value: unknown): void {
  const field = fields[key]
  if (!Array.isArray(field) || field.length === 0 || index > 30) fields[key] = value
  else if (Array.isArray(field[index % field.length])) field[index % field.length][inner] = value
  else field[index % field.length] = value
}
