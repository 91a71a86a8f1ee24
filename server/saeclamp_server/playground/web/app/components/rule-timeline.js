/** Where rules held, on a line as long as the answer. */
import { html } from "../h.js";
import { number, tokensInWords } from "../format.js";

/**
 * @param {{receipt: any, state: import("../answer-state.js").AnswerState, rules?: any[]}} props
 *   rules: as they were sent; none of a variant's, which are known by their firing alone
 */
export function RuleTimeline({ receipt, state, rules }) {
  const sent = /** @type {any[]} */ (rules ?? []);
  const idle = sent.filter((rule) => !receipt.fired.some((/** @type {any} */ fired) => fired.rule === rule.name));
  if (!receipt.fired.length && !idle.length) return null;
  const first = state.promptTokens ?? 0;
  const length = Math.max(state.numTokens, 1);
  return html`<figure class="timeline">
    ${receipt.fired.map((/** @type {any} */ fired) => {
      const inPrompt = fired.token < first;
      const at = inPrompt ? 0 : Math.min(1, (fired.token - first) / length);
      const nth = fired.token - first + 1;
      const where = inPrompt ? `at token ${fired.token + 1} of the prompt` : `at token ${nth} of the answer`;
      const ended = !inPrompt && nth > state.numTokens ? ", which was not written any more" : "";
      const values = Object.entries(fired.acts ?? {}).map(([feature, act]) => `${feature} ${number(Number(act))}`);
      return html`<div class="timeline-row">
        <span>${fired.rule}</span>
        <svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
          <line x1="0" x2="100" y1="4" y2="4" />
          <rect x=${100 * at - 0.6} y="0" width="1.2" height="8" />
        </svg>
        <span class="quiet">
          ${`first ${where}${ended} (position ${fired.token}): ${values.length ? values.join(", ") : number(fired.value)}; held at ${tokensInWords(fired.num_tokens)} in all`}
        </span>
      </div>`;
    })}
    ${idle.map((rule) => html`<p class="quiet">${idleInWords(rule, state)}</p>`)}
  </figure>`;
}

/**
 * That a rule watched and did not hold, with how near it came.
 *
 * @param {any} rule
 * @param {import("../answer-state.js").AnswerState} state
 */
function idleInWords(rule, state) {
  const features = featuresOf(rule.when);
  const highest = features
    .map((feature) => ({
      feature,
      act: Math.max(...state.blocks.flat().map((token) => token.acts[feature] ?? Number.NEGATIVE_INFINITY)),
    }))
    .filter((one) => Number.isFinite(one.act))
    .map((one) => `${one.feature} at most ${number(one.act)} in the answer`);
  return `${rule.name} watched and never held${highest.length ? `: ${highest.join(", ")}` : ""}.`;
}

/** @param {any} when @returns {string[]} */
function featuresOf(when) {
  if (when.feature) return [when.feature];
  return [...new Set((when.all ?? when.any ?? []).flatMap(featuresOf))];
}
