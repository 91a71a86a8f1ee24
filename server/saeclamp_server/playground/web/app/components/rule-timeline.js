/** Where rules held, on a line as long as the answer. */
import { html } from "../h.js";
import { number } from "../format.js";

/** @param {{receipt: any, state: import("../answer-state.js").AnswerState}} props */
export function RuleTimeline({ receipt, state }) {
  if (!receipt.fired.length) return null;
  const positions = state.blocks.flat().map((token) => token.position);
  const first = positions.find((position) => position !== null) ?? 0;
  const length = Math.max(positions.length, 1);
  return html`<figure class="timeline">
    ${receipt.fired.map((/** @type {any} */ fired) => {
      const inPrompt = fired.token < first;
      const at = inPrompt ? 0 : Math.min(1, (fired.token - first) / length);
      const where = inPrompt
        ? "in the prompt"
        : `at token ${fired.token - first + 1} of the answer, position ${fired.token}`;
      return html`<div class="timeline-row">
        <span>${fired.rule}</span>
        <svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
          <line x1="0" x2="100" y1="4" y2="4" />
          <rect x=${100 * at - 0.6} y="0" width="1.2" height="8" />
        </svg>
        <span class="quiet">first ${where}, at ${number(fired.value)}; ${fired.num_tokens} in all</span>
      </div>`;
    })}
  </figure>`;
}
