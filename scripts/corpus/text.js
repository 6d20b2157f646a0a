/** What is done to the text: folded to ASCII, lines of a paragraph joined, verse numbers removed. */

/** Printable ASCII and line feeds only: typographic signs become their typewriter forms, accents are dropped. */
export function foldToAscii(text) {
  return text
    .replace(/\r\n?/g, "\n")
    .replace(/[‘’]/g, "'")
    .replace(/[“”]/g, '"')
    .replace(/[—–]/g, "--")
    .replace(/…/g, "...")
    .replace(/\u00a0/g, " ")
    .normalize("NFKD")
    .replace(/[^\n\x20-\x7e]/g, "")
}

/** The whole text as one line, as the addresses are. */
export function joinLines(text) {
  return foldToAscii(text).replace(/\s+/g, " ").trim()
}

/** Paragraphs, which an empty line ends, become one line each with an empty line between. */
export function unwrapParagraphs(text) {
  const paragraphs = foldToAscii(text)
    .split(/\n\s*\n+/)
    .map((paragraph) => paragraph.replace(/\s+/g, " ").trim())
    .filter((paragraph) => paragraph !== "")
  return `${paragraphs.join("\n\n")}\n`
}

/** `Ge1:1 In the beginning …`, one verse a line, loses the reference; an empty line comes before each chapter. */
export function cleanVerses(text) {
  const verses = foldToAscii(text).replace(/^[1-3]?[A-Za-z]+\d+:(\d+) /gm, (_, verse) => (verse === "1" ? "\n" : ""))
  return `${verses.trim()}\n`
}
