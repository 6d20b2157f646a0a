import { expect } from "../errors.ts"
import { type Dims, op } from "../graph/op.ts"

/** Rows between two saved states; native/ops/selective_scan.h has the same number. */
const chunk = 64

/** Bounds what the kernels index by: the states of a channel, and its group of B and C. */
function checkGroups({ inner, state, bands }: Dims): void {
  expect(state! <= 64, "BAD_SHAPE", () => `selectiveScan: state is 1 to 64, got ${state}`, { state })
  expect(
    bands! % state! === 0 && inner! % (bands! / state!) === 0,
    "BAD_SHAPE",
    () =>
      `selectiveScan: bands of B and C are groups·state with groups a divisor of inner ${inner}, ` +
      `got ${bands} bands for state ${state}`,
    { inner, state, bands },
  )
}

/**
 * Selective scan: the recurrence at the heart of Mamba, one independent linear system per inner channel.
 *
 *   h[t] = exp(Δ[t]·A)·h[t−1] + Δ[t]·B[t]·x[t]      y[t] = (C[t]·h[t] + D·x[t])·silu(z[t])      Δ = softplus(delta + bias)
 *
 * Without z, y is not gated; with `softplus: false`, Δ = delta + bias. B and C have bands = groups·state columns: channel d
 * uses group ⌊d/(inner/groups)⌋. Each segment starts from `initial`, else from its slot of `carried` (slot 0: zero), and
 * writes its last state to `final` and to its slot of `carried`; rows in no segment are zero, and so is the final state of
 * a segment without rows. `saved` is for the gradient: the state before every 64th row of a segment, chunk k of segment s
 * at ⌊begin/64⌋ + s + k; what lies between is computed again.
 *
 * State and arithmetic are f32. softplus(v) is v above 20, as in torch. A row has the same bits however its sequence is cut
 * into calls. Differentiable in everything but segments and carried: no gradient flows through a carried state.
 * @throws BAD_SHAPE when state is over 64 or bands are no multiple of it
 * @example const { y } = selectiveScan({ x, delta, A, B, C, D, z, bias, segments, carried })
 * @see Gu & Dao 2023, arXiv:2312.00752, Algorithm 2 and Eq. 2a–2b, 4 (zero-order hold for A, Euler for B)
 */
export const selectiveScan = op({
  name: "selectiveScan",
  inputs: {
    x: "float rows inner",
    delta: "float rows inner",
    A: "inner state",
    B: "float rows bands",
    C: "float rows bands",
    "D?": "inner",
    "z?": "float rows inner",
    "bias?": "inner",
    segments: "i32 segments 5",
    "initial?": "segments inner state",
    "carried?": "slots inner state",
  },
  outputs: { y: "float rows inner", final: "segments inner state", saved: "chunks inner state" },
  attrs: { softplus: true },
  updates: ["carried"],
  auxiliary: ["saved"],
  dims: (dims) => {
    checkGroups(dims)
    return { chunks: Math.ceil(dims.rows! / chunk) + dims.segments! }
  },
  grad: ({ x, delta, A, B, C, D, z, bias, segments }, { saved }, attrs, { y: dy, final: dfinal }) => {
    const grads = selectiveScanGrad({ dy, dfinal, x, delta, A, B, C, D, z, bias, segments, saved }, attrs)
    const { dx, ddelta, dA, dB, dC, dD, dz, dbias, dinitial } = grads
    return {
      x: dx,
      delta: ddelta,
      A: dA,
      B: dB,
      C: dC,
      D: dD,
      z: dz,
      bias: dbias,
      segments: null,
      initial: dinitial,
      carried: null,
    }
  },
})

/**
 * Gradient of `selectiveScan`, from the states saved every 64 rows; p = C·h + D·x is y before the gate.
 *
 *   dp = dy·silu(z)      dh[t] = C[t]·dp[t] + exp(Δ[t+1]·A)·dh[t+1], with dfinal after the last row
 *   dx = D·dp + Δ·Σ_n B·dh      dΔ = Σ_n dh·(A·exp(ΔA)·h[t−1] + B·x)      ddelta = dΔ·σ(delta + bias), dΔ itself above 20
 *   dA = Σ_t dh·Δ·exp(ΔA)·h[t−1]      dB = Σ_d dh·Δ·x      dC = Σ_d dp·h      dD = Σ_t dp·x      dz = dy·p·silu′(z)
 *
 * dB and dC sum over the channels of their group, dA, dD and dbias over all rows, in an order that shapes alone decide.
 * Workspace: on the cpu up to 2 KB per row; on cuda 8·state bytes per row and block of 8 to 48 channels, 4 bytes per element of x at
 * state 16.
 */
export const selectiveScanGrad = op({
  name: "selectiveScanGrad",
  inputs: {
    "dy?": "float rows inner",
    "dfinal?": "segments inner state",
    x: "float rows inner",
    delta: "float rows inner",
    A: "inner state",
    B: "float rows bands",
    C: "float rows bands",
    "D?": "inner",
    "z?": "float rows inner",
    "bias?": "inner",
    segments: "i32 segments 5",
    saved: "chunks inner state",
  },
  outputs: {
    dx: "float rows inner",
    ddelta: "float rows inner",
    dA: "inner state",
    dB: "float rows bands",
    dC: "float rows bands",
    dD: "inner",
    dz: "float rows inner",
    dbias: "inner",
    dinitial: "segments inner state",
  },
  attrs: { softplus: true },
  dims: (dims) => {
    checkGroups(dims)
    const chunks = Math.ceil(dims.rows! / chunk) + dims.segments!
    expect(
      dims.chunks === chunks,
      "BAD_SHAPE",
      () =>
        `selectiveScanGrad: saved has ⌈rows/64⌉ + segments = ${chunks} chunks, got ${dims.chunks}; pass that of selectiveScan`,
    )
    return {}
  },
  grad: null,
})
