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
  const where = error.param ? html` <code>${error.param}</code>` : null;
  return html`<${Notice} kind="bad">${error.message}${where}<//>`;
}
