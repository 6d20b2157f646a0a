/**
 * Byte-pair encoding of one word: of all neighbours, the pair of lowest rank is merged first, of several the leftmost, until none is left.
 *
 * A word is a list of places linked to their neighbours; a heap holds rank · 2²⁶ + place of every pair that may be merged. A merge
 * makes two new pairs, and those it made stale are seen when they are taken: no symbol at that place, or a pair of another rank. So a word of
 * n symbols takes O(n log n) steps and no text is joined on the way, which matters where a whole text is one word: a million letters.
 */

const places = 2 ** 26
/** Words up to this length share one working memory: allocating it took longer than the merges. */
const shortWord = 64

/** Working memory of a word of so many characters. A merge offers two pairs, so a heap holds three for each character at most. */
const scratch = (count: number) => ({
  symbols: new Int32Array(count),
  next: new Int32Array(count),
  previous: new Int32Array(count),
  heap: new Heap(3 * count),
})

export class BytePairs {
  /** A symbol's number, for all that occur in merges. */
  readonly #symbols = new Map<string, number>()
  /** Rank of a pair, by first · count + second. */
  readonly #ranks = new Map<number, number>()
  /** By rank: the number of the merged symbol. */
  readonly #merged: Int32Array
  readonly #count: number
  readonly #short = scratch(shortWord)

  constructor(merges: readonly (readonly [string, string])[]) {
    this.#count = 3 * merges.length + 1
    this.#merged = Int32Array.from(merges, ([first, second], rank) => {
      this.#ranks.set(this.#number(first) * this.#count + this.#number(second), rank)
      return this.#number(first + second)
    })
  }

  #number(symbol: string): number {
    let number = this.#symbols.get(symbol)
    if (number === undefined) {
      number = this.#symbols.size
      this.#symbols.set(symbol, number)
    }
    return number
  }

  /** The symbols of a word, which begins as its characters. */
  split(word: string): string[] {
    const characters = Array.from(word)
    if (characters.length < 2) return characters
    if (characters.length > places)
      throw new RangeError(`a word of ${characters.length} characters; ${places} are possible`)
    const ends = this.#merge(characters)
    const symbols: string[] = []
    for (let from = 0, at = 0, to = 0; from < characters.length; from = ends[from]!) {
      for (let i = from; i < ends[from]!; i++) to += characters[i]!.length
      symbols.push(word.slice(at, to))
      at = to
    }
    return symbols
  }

  /** By place of a symbol that is left: the place after it. */
  #merge(characters: readonly string[]): Int32Array {
    const count = characters.length
    const { symbols, next, previous, heap } = count <= shortWord ? this.#short : scratch(count)
    for (let place = 0; place < count; place++) {
      symbols[place] = this.#symbols.get(characters[place]!) ?? -1
      next[place] = place + 1
      previous[place] = place - 1
    }
    const rankAt = (place: number): number | undefined => {
      if (place < 0 || next[place]! >= count) return undefined
      const [first, second] = [symbols[place]!, symbols[next[place]!]!]
      return first < 0 || second < 0 ? undefined : this.#ranks.get(first * this.#count + second)
    }
    const offer = (place: number) => {
      const rank = rankAt(place)
      if (rank !== undefined) heap.push(rank * places + place)
    }
    for (let place = 0; place + 1 < count; place++) offer(place)
    while (heap.size > 0) {
      const key = heap.pop()
      const [rank, place] = [Math.floor(key / places), key % places]
      if (symbols[place] === -2 || rankAt(place) !== rank) continue
      symbols[next[place]!] = -2 // swallowed
      symbols[place] = this.#merged[rank]!
      next[place] = next[next[place]!]!
      if (next[place]! < count) previous[next[place]!] = place
      offer(previous[place]!)
      offer(place)
    }
    return next
  }
}

/** A heap of numbers, the smallest first. */
class Heap {
  readonly #keys: Float64Array
  size = 0

  constructor(capacity: number) {
    this.#keys = new Float64Array(capacity)
  }

  push(key: number): void {
    const keys = this.#keys
    let at = this.size++
    for (let parent = (at - 1) >> 1; at > 0 && keys[parent]! > key; parent = (at - 1) >> 1) {
      keys[at] = keys[parent]!
      at = parent
    }
    keys[at] = key
  }

  pop(): number {
    const keys = this.#keys
    const top = keys[0]!
    const last = keys[--this.size]!
    let at = 0
    for (let child = 1; child < this.size; child = 2 * at + 1) {
      if (child + 1 < this.size && keys[child + 1]! < keys[child]!) child++
      if (keys[child]! >= last) break
      keys[at] = keys[child]!
      at = child
    }
    keys[at] = last
    return top
  }
}
