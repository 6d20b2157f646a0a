import test from "ava"
import { modelConfigFields, parseModelConfig } from "../../lib/checkpoint/families.ts"
import { modelPreset } from "../../lib/models/presets.ts"
import { llama, mistral, samba } from "./published.ts"

const parse = (fields: object) => parseModelConfig(JSON.stringify(fields), "config.json")

const ours = modelConfigFields(modelPreset("samba-421m"), "selscan") as { pattern: object[] }
const withBlock = (i: number, fields: object) => ({
  ...ours,
  pattern: ours.pattern.map((block, at) => (at === i ? { ...block, ...fields } : block)),
})

const refused: [string, object, RegExp][] = [
  ["Mega", { ...samba, use_mega: true }, /use_mega to be false, got true; load a plain SAMBA checkpoint/],
  ["a parallel residual", { ...samba, parallel_residual: true }, /parallel_residual to be false, got true/],
  ["a parallel residual by default", { ...samba, parallel_residual: undefined }, /parallel_residual .* got none/],
  ["a shared norm", { ...samba, shared_attention_norm: true }, /shared_attention_norm to be false/],
  ["biases", { ...samba, bias: true }, /bias to be false/],
  ["stretched positions", { ...samba, condense_ratio: 2 }, /condense_ratio to be 1, got 2/],
  ["LayerNorm in SAMBA", { ...samba, _norm_class: "LayerNorm" }, /_norm_class to be "FusedRMSNorm" or "RMSNorm"/],
  ["LayerNorm in its Mamba", { ...samba, mamba: true, rms_norm: false }, /rms_norm to be true/],
  ["another MLP", { ...samba, _mlp_class: "GptNeoxMLP" }, /_mlp_class to be "LLaMAMLP", got "GptNeoxMLP"/],
  ["no MLP", { ...samba, mlp: false }, /mlp to be true/],
  ["a window of zero", { ...samba, local_window: 0 }, /local_window to be at least 1, .* got 0/],
  ["a negative window", { ...samba, local_window: -2 }, /local_window .* got -2/],
  ["heads that do not divide the width", { ...samba, n_head: 7 }, /n_head to be a divisor of n_embd, 1536, got 7/],
  [
    "groups that do not divide the heads",
    { ...samba, n_query_groups: 5 },
    /n_query_groups to be a divisor of n_head, 12/,
  ],
  ["heads too wide", { ...samba, n_head: 2, n_query_groups: 2 }, /heads of at most 256 columns, got 768/],
  [
    "an odd share of turning columns",
    { ...samba, rotary_percentage: 0.12 },
    /rotary_percentage .* even number, got 0.12/,
  ],
  ["more than all columns turning", { ...samba, rotary_percentage: 2 }, /rotary_percentage .* at most 1, got 2/],
  ["a list of layers that is code", { ...samba, attn_layer_pos: "[1]+[2]" }, /attn_layer_pos .* got "\[1\]\+\[2\]"/],
  ["two layers without a comma", { ...samba, attn_layer_pos: "[1 2]" }, /attn_layer_pos to be a list/],
  ["a list of spaces", { ...samba, attn_layer_pos: `[1${" ".repeat(500_000)}` }, /attn_layer_pos to be a list/],
  ["a list of layers that is none", { ...samba, attn_layer_pos: [1] }, /attn_layer_pos to be a list of layers in text/],
  [
    "attention in a layer that is not there",
    { ...samba, attn_layer_pos: "[12]" },
    /attn_layer_pos to be layers from 0 to 11/,
  ],
  ["GLA without a head", { ...samba, n_embd: 192, gla_per_layer: 2, mb_per_layer: -1 }, /n_embd to be at least 384/],
  [
    "retention without a head",
    { ...samba, n_head: 1, n_query_groups: 1, n_embd: 64, ret_per_layer: 2, mb_per_layer: -1 },
    /n_head to be at least 2/,
  ],
  ["a vocabulary larger than its padding", { ...samba, padded_vocab_size: 100 }, /padded_vocab_size .* from 32000/],
  ["a period of nothing", { ...samba, full_per_layer: 0 }, /full_per_layer .* from 1 .* got 0/],
  ["a flag in text", { ...samba, nope: "no" }, /nope to be true or false, got "no"/],
  ["layers in text", { ...samba, n_layer: "12" }, /n_layer to be a whole number/],

  [
    "scaled positions",
    { ...llama, rope_scaling: { type: "linear", factor: 2 } },
    /rope_scaling to be without scaling.*Llama/,
  ],
  ["Llama-3.1's scaling", { ...llama, rope_scaling: { rope_type: "llama3" } }, /rope_scaling/],
  [
    "newer scaled positions",
    { ...llama, rope_parameters: { rope_type: "yarn" } },
    /rope_parameters to be without scaling/,
  ],
  ["biases of attention", { ...llama, attention_bias: true }, /attention_bias to be false/],
  ["biases of the MLP", { ...llama, mlp_bias: true }, /mlp_bias to be false/],
  ["another activation", { ...llama, hidden_act: "gelu" }, /hidden_act to be "silu", got "gelu"/],
  [
    "kv heads that do not divide",
    { ...llama, num_key_value_heads: 5 },
    /num_key_value_heads to be a divisor of .* 32, got 5/,
  ],
  [
    "a width that the heads do not divide",
    { ...llama, num_attention_heads: 24, num_key_value_heads: 8 },
    /num_attention_heads/,
  ],
  ["an odd head", { ...llama, head_dim: 33 }, /head_dim to be even/],
  ["a head too wide", { ...llama, head_dim: 512 }, /head_dim .* to 256, got 512/],
  ["no positions", { ...llama, max_position_embeddings: 0 }, /max_position_embeddings/],
  ["a base of 1", { ...llama, rope_theta: 1 }, /rope_theta to be above 1/],
  ["half of a head turning", { ...llama, partial_rotary_factor: 0.5 }, /partial_rotary_factor to be 1/],
  [
    "half of a head turning in a newer file",
    { ...llama, rope_parameters: { rope_type: "default", partial_rotary_factor: 0.5 } },
    /rope_parameters\.partial_rotary_factor to be 1, got 0.5/,
  ],
  [
    "Mistral's window of zero",
    { ...mistral, sliding_window: 0 },
    /sliding_window .* from 1 .* got 0; load a plain Mistral/,
  ],
  ["a window in text", { ...mistral, sliding_window: "4096" }, /sliding_window/],
  [
    "GPT-2",
    { model_type: "gpt2", n_embd: 768, n_layer: 12, n_head: 12 },
    /model_type to be mamba, .* got "gpt2"; give/,
  ],
  [
    "Qwen",
    { ...llama, model_type: "qwen2" },
    /model_type to be mamba, falcon_mamba, llama, mistral or selscan.* got "qwen2"/,
  ],

  [
    "a pattern that does not fit",
    { ...ours, depth: 26 },
    /a pattern that fits into at most 4096 blocks, got 4 .* depth of 26/,
  ],
  ["a norm of ours that is none", { ...ours, norm: "rms" }, /norm to be "layer", or no field for RMSNorm, got "rms"/],
  ["a mixer's eps of ours", withBlock(0, { mixerNormEps: 0 }), /pattern\[0\]\.mixerNormEps to be a number above 0/],
  ["a mixer's eps of no Mamba", withBlock(1, { mixerNormEps: 1 }), /no field pattern\[1\]\.mixerNormEps/],
  ["no pattern", { ...ours, pattern: [] }, /pattern to be a list of objects/],
  ["a pattern of names", { ...ours, pattern: ["mamba"] }, /pattern to be a list of objects/],
  ["an unknown block", withBlock(1, { kind: "moe" }), /pattern\[1\]\.kind to be one of mamba, attention, .* got "moe"/],
  ["a kind of Object.prototype", withBlock(1, { kind: "toString" }), /pattern\[1\]\.kind/],
  ["a block's unknown field", withBlock(0, { sate: 3 }), /no field pattern\[0\]\.sate, did you mean state\?/],
  ["a model's unknown field", { ...ours, layers: 24 }, /no field layers/],
  ["a block's missing field", withBlock(0, { state: undefined }), /pattern\[0\]\.state .* got none/],
  ["a negative window of ours", withBlock(2, { window: -1 }), /pattern\[2\]\.window .* from 0/],
  ["one tap", withBlock(2, { conv: 1 }), /pattern\[2\]\.conv to be 0, or 2 to 4 taps/],
  ["kv heads of ours that do not divide", withBlock(2, { kvHeads: 5 }), /kv heads that divide the heads, got 5 for 12/],
  [
    "an odd number of turning columns",
    withBlock(2, { rope: { base: 10000, rotary: 7, interleaved: false } }),
    /an even number of rotary columns/,
  ],
  [
    "more turning columns than the head has",
    withBlock(2, { rope: { base: 1e4, rotary: 130, interleaved: false } }),
    /got 130/,
  ],
  ["rope without sizes", withBlock(2, { rope: true }), /pattern\[2\]\.rope to be an object, got true/],
  [
    "GLA heads that do not divide",
    withBlock(0, { kind: "gla", heads: 5, expandK: 0.5, expandV: 1 }),
    /no field pattern\[0\]\.state|gla heads/,
  ],
]

for (const [what, fields, says] of refused) {
  test(`${what} is one clear error`, (t) => {
    const error = t.throws(() => parse(fields), { name: "SelscanError", code: "BAD_CHECKPOINT", message: says })
    t.regex(error.message, /^config\.json: expected [^\n]*, got [^\n]*; [^\n]*$/)
  })
}

test("heads of linear attention that do not divide are refused", (t) => {
  const block = { kind: "gla", heads: 5, expandK: 0.5, expandV: 1 }
  const message = /gla heads that divide its keys and values, got 5 for 768 and 1536/
  t.throws(() => parse({ ...ours, pattern: [block], depth: 2 }), { code: "BAD_CHECKPOINT", message })
})
