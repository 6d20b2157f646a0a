import test from "ava"
import fc from "fast-check"
import { Patches, type Piece, startId } from "../../lib/models/patches.ts"

const sizes = fc.integer({ min: 1, max: 9 })
const positions = fc.integer({ min: 0, max: 60 })

test("rows are in patches as their bytes are, and every patch begins once", (t) => {
  const patches = new Patches(4)
  const rows = Array.from({ length: 14 }, (_, q) => q)
  t.deepEqual(
    rows.map((q) => patches.patchOf(q)),
    [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3],
  )
  t.deepEqual(
    rows.map((q) => patches.placeOf(q)),
    [0, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1],
  )
  t.deepEqual(
    rows.filter((q) => patches.begins(q)),
    [0, 5, 9, 13],
  )
})

test("runs that are cut so take all rows, begin patches or stay in one, and are no longer than they may be", (t) => {
  fc.assert(
    fc.property(
      sizes,
      positions,
      fc.integer({ min: 1, max: 200 }),
      fc.integer({ min: 1, max: 64 }),
      (size, from, count, most) => {
        const patches = new Patches(size)
        for (let at = from, left = count, runs = 0; left > 0; runs++) {
          const rows = patches.cut(at, left, most)
          t.true(rows >= 1 && rows <= Math.min(left, most))
          if (!patches.begins(at)) t.is(patches.patchOf(at + rows - 1), patches.patchOf(at))
          else {
            const begun = Array.from({ length: rows }, (_, i) => at + i).filter((q) => patches.begins(q)).length
            t.true(begun >= 1 && begun <= patches.mostBegun(at, rows))
          }
          at += rows
          left -= rows
          t.true(runs <= count)
        }
      },
    ),
    { seed: 1 },
  )
})

/** Segment lines without those of no rows. */
const used = (lines: Int32Array) =>
  Array.from({ length: lines.length / 5 }, (_, s) => [...lines.subarray(5 * s, 5 * s + 5)]).filter(
    ([begin, end]) => begin! < end!,
  )

test("a run from the start has the start's row once, and a start row before every later patch", (t) => {
  const piece: Piece = { begin: 0, end: 6, position: 0, from: 0, to: 2, ring: 1, ids: [startId, 10, 11, 12, 13, 14] }
  const inputs = new Patches(2).inputs([piece], 8, 4)
  t.deepEqual(used(inputs.segments!), [[1, 6, 0, 0, 2]])
  t.deepEqual(used(inputs["patch.segments"]!), [[0, 3, 0, 0, 2]])
  t.deepEqual([...inputs["patch.bytes"]!], [-1, -1, 10, 11, 12, 13, -1, -1])
  t.deepEqual([...inputs["patch.index"]!], [-1, 1, 2, -1])
  t.deepEqual([...inputs["patch.starts"]!], [0, -1, -1, -1])
  t.deepEqual([...inputs["patch.places"]!], [-1, 0, 1, -1])
  t.deepEqual(used(inputs["local.segments"]!), [
    [0, 3, 0, 0, 0],
    [3, 6, 0, 0, 0],
    [6, 8, 0, 0, 2],
  ])
  t.deepEqual([...inputs["local.rings"]!], [0, 0, 1, 0])
  t.deepEqual([...inputs["local.ids"]!.subarray(0, 8)], [-1, 10, 11, -1, 12, 13, -1, 14])
  t.deepEqual([...inputs["local.starts"]!.subarray(0, 8)], [0, -1, -1, 0, -1, -1, 0, -1])
  t.deepEqual([...inputs["local.places"]!.subarray(0, 8)], [-1, 0, 1, -1, 0, 1, -1, 0])
  t.deepEqual([...inputs["local.index"]!], [0, 1, 2, 4, 5, 7, -1, -1])
})

test("a run that goes on reads the bytes of the patch before it from those already run", (t) => {
  const piece: Piece = {
    begin: 1,
    end: 4,
    position: 7,
    from: 1,
    to: 2,
    patchFrom: 2,
    patchTo: 1,
    ring: 3,
    ids: [16, 17, 18],
    before: [9, 13, 14, 15],
  }
  const inputs = new Patches(3).inputs([piece], 4, 2)
  t.deepEqual([...inputs["patch.bytes"]!], [13, 14, 15, -1, -1, -1])
  t.deepEqual(used(inputs["patch.segments"]!), [[0, 1, 2, 2, 1]])
  t.deepEqual([...inputs["local.index"]!], [-1, 1, 2, 3])
  t.deepEqual(used(inputs["local.segments"]!), [[0, 4, 0, 0, 2]])
  t.deepEqual(used(inputs.segments!), [[1, 4, 6, 1, 2]])
})

test("a run inside a patch has its rows as they are", (t) => {
  const piece: Piece = { begin: 0, end: 2, position: 6, from: 1, to: 2, ring: 3, ids: [5, 6] }
  const inputs = new Patches(4).inputs([piece], 4, 0)
  t.deepEqual(Object.keys(inputs).sort(), ["local.places", "local.segments", "rings", "segments"])
  t.deepEqual(used(inputs["local.segments"]!), [[0, 2, 2, 1, 2]])
  t.deepEqual([...inputs["local.places"]!], [1, 2, -1, -1])
})

test("nothing is recorded before a sequence's first byte, whatever slot it continues", (t) => {
  const piece = { begin: 0, end: 1, from: 5, to: 6, ring: 1 }
  const patches = new Patches(4)
  t.deepEqual(used(patches.inputs([{ ...piece, position: 0, ids: [startId] }], 1, 1).segments!), [])
  t.deepEqual(used(patches.inputs([{ ...piece, position: 1, ids: [7] }], 1, 0).segments!), [[0, 1, 0, 0, 6]])
  t.deepEqual(used(patches.inputs([{ ...piece, position: 2, ids: [7] }], 1, 0).segments!), [[0, 1, 1, 5, 6]])
})

test("pieces that leave their patch, or begin where none does, are refused", (t) => {
  const piece = { begin: 0, end: 3, from: 1, to: 2, ring: 1, ids: [1, 2, 3] }
  const patches = new Patches(4)
  const refused = { code: "BAD_INPUT", message: /got 3 rows from 3; cut them by Patches\.cut/ }
  t.throws(() => patches.inputs([{ ...piece, position: 3 }], 4, 0), refused)
  t.throws(() => patches.inputs([{ ...piece, position: 3 }], 4, 2), refused)
  t.throws(() => patches.inputs([{ ...piece, position: 5 }], 4, 0), { code: "BAD_INPUT" })
  t.notThrows(() => patches.inputs([{ ...piece, position: 2 }], 4, 0))
})
