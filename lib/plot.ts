/**
 * Line plots as self-contained SVG. Scales and line shapes are d3's; this file only lays them out.
 */
import { scaleLinear, scaleLog } from "d3-scale"
import { line } from "d3-shape"

export interface Series {
  readonly name: string
  readonly points: readonly (readonly [x: number, y: number])[]
}

export interface PlotOptions {
  readonly title: string
  readonly x: string
  readonly y: string
  readonly series: readonly Series[]
  readonly logX?: boolean
}

const [width, height] = [720, 420]
const margin = { top: 40, right: 24, bottom: 48, left: 60 }
/** Okabe and Ito's colours, told apart by colour-blind readers too. */
const colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]

/** An SVG of one line per series, with axes, grid and legend. Points that are not finite are left out. */
export function linePlot({ title, x, y, series, logX = false }: PlotOptions): string {
  const drawn = series.map((one) => ({ ...one, points: one.points.filter((point) => point.every(Number.isFinite)) }))
  const all = drawn.flatMap((one) => one.points)
  const across = (logX ? scaleLog() : scaleLinear())
    .domain(extent(all.map(([at]) => at)))
    .range([margin.left, width - margin.right])
  const up = scaleLinear()
    .domain(extent(all.map(([, at]) => at)))
    .nice()
    .range([height - margin.bottom, margin.top])
  const path = line<readonly [number, number]>(
    (point) => across(point[0]),
    (point) => up(point[1]),
  )
  const parts = [
    text(width / 2, 22, title, 'text-anchor="middle" font-size="15" font-weight="600"'),
    ...up
      .ticks(6)
      .map(
        (tick) =>
          grid(margin.left, up(tick), width - margin.right, up(tick)) +
          text(margin.left - 8, up(tick) + 4, up.tickFormat(6)(tick), 'text-anchor="end"'),
      ),
    ...across
      .ticks(8)
      .map((tick) =>
        text(across(tick), height - margin.bottom + 18, across.tickFormat(8)(tick), 'text-anchor="middle"'),
      ),
    text(width / 2, height - 10, x, 'text-anchor="middle"'),
    text(16, height / 2, y, `text-anchor="middle" transform="rotate(-90 16 ${height / 2})"`),
    ...drawn.flatMap((one, i) => [
      `<path d="${path(one.points) ?? ""}" fill="none" stroke="${colours[i % colours.length]}" stroke-width="1.8"/>`,
      `<rect x="${width - 170}" y="${margin.top + 8 + 18 * i}" width="14" height="3" fill="${colours[i % colours.length]}"/>`,
      text(width - 150, margin.top + 14 + 18 * i, one.name, ""),
    ]),
  ]
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif" font-size="12" fill="#222">
<rect width="${width}" height="${height}" fill="#fff"/>
${parts.join("\n")}
</svg>
`
}

function extent(values: readonly number[]): [number, number] {
  if (values.length === 0) return [0, 1]
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
  for (const value of values) {
    low = Math.min(low, value)
    high = Math.max(high, value)
  }
  return low === high ? [low - 0.5, high + 0.5] : [low, high]
}

const grid = (x1: number, y1: number, x2: number, y2: number) =>
  `<line x1="${x1}" y1="${y1.toFixed(1)}" x2="${x2}" y2="${y2.toFixed(1)}" stroke="#ddd"/>`

function text(x: number, y: number, content: string, attributes: string): string {
  const escaped = content.replace(/[&<>]/g, (char) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[char]!)
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escaped}</text>`
}
