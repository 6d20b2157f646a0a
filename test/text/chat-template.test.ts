import test from "ava"
import { SelscanError } from "../../lib/errors.ts"
import { type ChatMessage, ChatTemplates, renderChat } from "../../lib/text/chat-template.ts"

const chatMl =
  "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}" +
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
const zephyr = `{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}`
const talk: readonly ChatMessage[] = [
  { role: "user", content: "Hi " },
  { role: "assistant", content: "Hello!" },
  { role: "user", content: "Bye" },
]

test("a conversation is written as its template says", (t) => {
  const body =
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
  t.is(renderChat(chatMl, talk), `${body}<|im_start|>assistant\n`)
  t.is(renderChat(chatMl, talk, { generationPrompt: false }), body)
  t.is(
    renderChat(zephyr, talk, { variables: { bos_token: "<s>", eos_token: "</s>" } }),
    "<s><|user|>\nHi </s>\n<|assistant|>\nHello!</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
  )
})

test("the bounds that stand before a template change nothing of its text", (t) => {
  for (const source of [
    "\n a",
    "  {% if true %}\n  x\n  {% endif %}\ny",
    "{%- if true %} z {%- endif %}\n\n",
    "{# c #}\n{{ 1 }}",
  ])
    t.is(renderChat(source, talk), renderChat(`{{ "" }}${source}`, talk).replace(/^ {2}(?= {2}x)/, ""), source)
  t.is(
    renderChat("{% for i in range(2, 8, 3) %}{{ i }},{% endfor %}{% for i in range(2) %}{{ i }}{% endfor %}", talk),
    "2,5,01",
  )
  t.is(renderChat("{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}", talk), "321")
})

test("tools, documents and variables reach the template, and are none where none are given", (t) => {
  const source = "{{ tools is none }} {{ documents is none }} {% if tools %}{{ tools[0].name }}{% endif %} {{ mood }}"
  t.is(renderChat(source, talk), "true true  ")
  t.is(
    renderChat(source, talk, { tools: [{ name: "clock" }], documents: [{}], variables: { mood: "calm" } }),
    "false false clock calm",
  )
})

test("a tokenizer's template is chosen by name, and by tools where one is for them", (t) => {
  const list = [
    { name: "default", template: "plain {{ eos_token }}{{ pad_token }}" },
    { name: "tool_use", template: "tools" },
  ]
  const templates = ChatTemplates.of(list, { eos_token: { content: "E" }, pad_token: null, other: "x" }, "config")!
  t.deepEqual(templates.names, ["default", "tool_use"])
  t.is(templates.render(talk), "plain E")
  t.is(templates.render(talk, { tools: [{}] }), "tools")
  t.is(templates.render(talk, { tools: [{}], template: "default" }), "plain E")
  t.is(templates.render(talk, { template: "{{ messages | length }} {{ eos_token }}" }), "3 E")
  const unnamed = ChatTemplates.of([{ name: "rag", template: "x" }], {}, "config")!
  t.throws(() => unnamed.render(talk), { code: "BAD_OPTION", message: /choose a template: rag$/ })
})

const refused = (t: import("ava").ExecutionContext, code: string, pattern: RegExp, work: () => unknown) => {
  const error = t.throws(work, { instanceOf: SelscanError, code } as object)
  t.regex(error!.message, pattern)
  t.notRegex(error!.message, /\n/)
}

test("what a template refuses is the messages' fault, what it cannot do is its own", (t) => {
  const system = [{ role: "system", content: "" }]
  refused(t, "BAD_INPUT", /got: Only user and assistant roles are supported$/, () => renderChat(zephyr, system))
  refused(t, "BAD_TEMPLATE", /expected to be Jinja, got /, () => renderChat("{% if %}", talk))
  refused(t, "BAD_TEMPLATE", /expected to take these messages, got /, () => renderChat("{{ 'a' | nonsense }}", talk))
  refused(t, "BAD_TEMPLATE", /expected to take these messages, got /, () =>
    renderChat("{{ messages[9].content.strip() }}", talk),
  )
})

test("messages that are none are refused before the template sees them", (t) => {
  for (const [messages, got] of [
    [null, /got null$/],
    ["hi", /got string$/],
    [[], /got none$/],
    [[talk[0], { content: "x" }], /at index 1; give it a role/],
  ] as const)
    refused(t, "BAD_INPUT", got, () => renderChat(chatMl, messages as never))
  const circle: Record<string, unknown> = { role: "user" }
  circle.content = circle
  refused(t, "BAD_INPUT", /expected to be data, got .*circular .*; give/, () => renderChat(chatMl, [circle as never]))
  refused(t, "BAD_OPTION", /did you mean tools\?$/, () => renderChat(chatMl, talk, { tool: [] } as never))
  refused(t, "BAD_OPTION", /template is a text/, () => renderChat(3 as never, talk))
})

test("a template that does not end, or writes without end, is stopped", (t) => {
  const many = "{% for a in range(60000) %}"
  const began = performance.now()
  refused(t, "BAD_TEMPLATE", /end within 1000 ms/, () => renderChat(`${many}${many}${"{% endfor %}".repeat(2)}`, talk))
  t.true(performance.now() - began < 10_000)
  refused(t, "BAD_TEMPLATE", /range\(\) has at most 65536 numbers/, () => renderChat("{{ range(65537) }}", talk))
  const double =
    "{% set ns = namespace(x='abcdefgh') %}{% for i in range(22) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
  refused(t, "BAD_TEMPLATE", /write at most 16777216 characters, got 33554432/, () => renderChat(double, talk))
})

test("what a template says of messages is quoted on one line, without what a terminal obeys", (t) => {
  const template = "{{ raise_exception('no\\n' + messages[0].content) }}"
  const messages = [{ role: "user", content: "\u001b[2J\u202egnol" }]
  const { message } = t.throws(() => renderChat(template, messages), { code: "BAD_INPUT" })
  t.notRegex(message, /[\p{Cc}\p{Cf}]/u)
})

test("a template that takes long to be read is stopped", (t) => {
  const began = performance.now()
  refused(t, "BAD_TEMPLATE", /end within 1000 ms/, () => renderChat(`${" ".repeat(500_000)}x`, talk))
  t.true(performance.now() - began < 10_000)
})

test("a template sees data alone: no prototype, no constructor, no function of a message", (t) => {
  const sneaky = [{ role: "user", content: "x", run: () => "ran" }]
  for (const source of [
    "{{ messages.constructor }}",
    "{{ messages[0]['__proto__'] }}",
    "{{ messages[0].run }}",
    "{{ ''.constructor }}",
    "{{ range.constructor }}",
    "{{ raise_exception.__proto__ }}",
    "{{ process }}{{ globalThis }}{{ require }}",
  ])
    t.regex(renderChat(source, sneaky), /^(undefined)*$/, source)
})
