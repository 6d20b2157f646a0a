/**
 * Learning rate over steps: linear warm-up from 0, then half a cosine down to `minRate`.
 *
 *   rate(s) = peak·(s+1)/warmup                                    s < warmup
 *   rate(s) = min + (peak − min)·½(1 + cos(π·(s − warmup)/(steps − warmup)))   after
 *
 * @see Mamba (arXiv 2312.00752) §E.2.1: linear warm-up, cosine decay to 10⁻⁵
 */
export function learningRate(
  step: number,
  { steps, warmup, rate, minRate }: { steps: number; warmup: number; rate: number; minRate: number },
): number {
  if (step < warmup) return (rate * (step + 1)) / warmup
  const progress = Math.min(1, (step - warmup) / Math.max(1, steps - warmup))
  return minRate + ((rate - minRate) * (1 + Math.cos(Math.PI * progress))) / 2
}
