/** How far long work is, and a button that stops it. */
import { html } from "../h.js";
import { Refusal } from "./notice.js";

/** @param {{task: import("./use-task.js").Task, stop: () => void}} props */
export function Progress({ task, stop }) {
  if (task.error) return html`<${Refusal} error=${task.error} />`;
  if (task.isStopped) return html`<p class="quiet" role="status">Stopped; nothing came of it.</p>`;
  if (!task.isRunning) return null;
  const { what, done, of } = task.progress ?? { what: "asking", done: 0, of: 0 };
  return html`<div class="progress row" role="status">
    <label class="grow">
      ${what}${of ? `: ${done} of ${of}` : " …"}
      <progress max=${of || 1} value=${of ? done : undefined}></progress>
    </label>
    <button type="button" onClick=${stop}>Stop</button>
  </div>`;
}
