/** The present state as code: what is sent, exactly, in four forms. */
import { address, apiKey } from "./api.js";
import { servedModel } from "./server.js";
import { QUESTION, sampling, steering, system } from "./state.js";

/** @param {string} question @param {{role: string, content: string}[]} asked what the last answer answers */
function parts(question, asked) {
  const { max_tokens, temperature, top_p, repetition_penalty, seed } = sampling.value;
  const first = [
    ...(system.value ? [{ role: "system", content: system.value }] : []),
    { role: "user", content: question || QUESTION },
  ];
  const messages = asked.length ? asked : first;
  const known = { model: servedModel.value, messages, max_tokens, temperature, top_p, seed };
  const extra = { repetition_penalty, ...(steering.value ? { steering: steering.value } : {}) };
  return { known, extra, body: { ...known, ...extra } };
}

/** Write JSON as Python does. @param {unknown} value @param {string} indent @returns {string} */
function python(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return JSON.stringify(value);
  const inner = `${indent}    `;
  if (Array.isArray(value)) {
    return value.length ? `[\n${value.map((one) => `${inner}${python(one, inner)},\n`).join("")}${indent}]` : "[]";
  }
  const rows = Object.entries(value).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${python(one, inner)},\n`);
  return rows.length ? `{\n${rows.join("")}${indent}}` : "{}";
}

/** @param {Record<string, unknown>} values */
function keywords(values) {
  return Object.entries(values)
    .map(([name, value]) => `    ${name}=${python(value, "    ")},\n`)
    .join("");
}

/** @param {string} text */
function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/**
 * @param {string} question
 * @param {{role: string, content: string}[]} asked what the last answer answers; empty where nothing was asked
 * @returns {Record<string, string>} by the name of the form
 */
export function codeFor(question, asked) {
  const { known, extra, body } = parts(question, asked);
  const root = address("").href.replace(/\/$/, "");
  const hasKey = Boolean(apiKey.value);
  const key = hasKey ? 'os.environ["SAECLAMP_API_KEY"]' : '"none"';
  return {
    curl: [
      `curl ${root}/v1/chat/completions`,
      ...(hasKey ? [`  -H "Authorization: Bearer $SAECLAMP_API_KEY"`] : []),
      "  -H 'Content-Type: application/json'",
      `  -d ${quoted(JSON.stringify(body, null, 1))}`,
    ].join(" \\\n"),
    "openai-python": `${hasKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${root}/v1", api_key=${key})
answer = client.chat.completions.create(
${keywords(known)}    extra_body=${python(extra, "    ")},
)
print(answer.choices[0].message.content)
`,
    saeclamp: `${hasKey ? "import os\n\n" : ""}from saeclamp import Client

with Client("${root}"${hasKey ? `, api_key=${key}` : ""}) as client:
    answer = client.chat.completions.create(
${keywords({ ...known, ...extra })
  .split("\n")
  .map((line) => line && `    ${line}`)
  .join("\n")}    )
    print(answer.choices[0].message.content)
`,
    JavaScript: `const response = await fetch("${root}/v1/chat/completions", {
  method: "POST",
  headers: { "Content-Type": "application/json"${hasKey ? ", Authorization: `Bearer ${process.env.SAECLAMP_API_KEY}`" : ""} },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
});
const answer = await response.json();
console.log(answer.choices[0].message.content);
`,
  };
}
