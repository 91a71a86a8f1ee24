/** A message that stands in a place of its own. */
import { html } from "../h.js";

/** @param {{kind?: "bad" | "warn" | "info", children?: any}} props */
export function Notice({ kind = "info", children }) {
  const mark = { bad: "✖", warn: "⚠", info: "ℹ" }[kind];
  return html`<div class="notice ${kind}" role=${kind === "bad" ? "alert" : "note"}>
    <span class="mark" aria-hidden="true">${mark}</span>
    <div>${children}</div>
  </div>`;
}

/** @param {{error: import("../api.js").ApiError}} props */
export function Refusal({ error }) {
  // many messages begin with the place
  const { param, message } = error;
  const words = param && message.startsWith(`${param}: `) ? message.slice(param.length + 2) : message;
  return html`<${Notice} kind="bad">${words}${param ? html`<br /><code class="quiet">${param}</code>` : null}<//>`;
}
