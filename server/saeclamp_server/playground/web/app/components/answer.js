/** One answer of a column, in whatever state it is. */
import { ApiError } from "../api.js";
import { html } from "../h.js";
import { heatFeature } from "../state.js";
import { Cost } from "./cost.js";
import { Notice, Refusal } from "./notice.js";
import { ReceiptStrip } from "./receipt-strip.js";
import { RuleTimeline } from "./rule-timeline.js";
import { TokenText } from "./token-text.js";

const ENDS = /** @type {Record<string, string>} */ ({
  length: "Cut off here: an answer may have no more tokens than that.",
  content_filter: "A rule ended the answer here.",
  abort: "The server is stopping, and ended this answer early.",
});

/**
 * @param {{answer: import("../answer-state.js").Answer, title: string, kind: string, most: number, baseline: number | null, isCurrent: boolean,
 *   onAttribute: (answer: import("../answer-state.js").Answer, token: import("../answer-state.js").Token) => void}} props
 */
export function AnswerView({ answer, title, kind, most, baseline, isCurrent, onAttribute }) {
  const state = answer.state.value;
  if (state.status === "failed") return html`<${Failed} error=${state.error} kind=${kind} />`;
  const isShown = state.numTokens > 0;
  return html`<article
    class="answer"
    aria-busy=${state.status === "running"}
    aria-label=${`${title}, seed ${answer.seed}`}
  >
    ${
      state.retryIn !== null && html`<${Notice} kind="info">The server is busy; trying again in ${state.retryIn} s.<//>`
    }
    ${
      isShown
        ? html`<${TokenText}
            blocks=${state.blocks}
            most=${most}
            label=${`Answer, ${title}`}
            receipt=${state.receipt}
            onAttribute=${(/** @type {import("../answer-state.js").Token} */ token) => onAttribute(answer, token)}
          />`
        : html`<p class="quiet">${waitingWords(state)}</p>`
    }
    ${state.status === "stopped" && html`<p class="quiet">Stopped. What was not finished has no receipt.</p>`}
    ${state.finish && ENDS[state.finish] && html`<p class=${state.finish === "length" ? "quiet" : "ended"}>${ENDS[state.finish]}</p>`}
    ${
      heatFeature.value &&
      isShown &&
      !state.read.includes(heatFeature.value) &&
      html`<p class="quiet">${heatFeature.value} was not read in this answer; regenerate to see it.</p>`
    }
    ${state.receipt && html`<${RuleTimeline} receipt=${state.receipt} state=${state} rules=${answer.body.steering?.rules} />`}
    ${state.cost && html`<${Cost} cost=${state.cost} baseline=${baseline} isSteered=${kind === "steered"} isCurrent=${isCurrent} isDefault=${kind === "default"} />`}
    ${state.receipt && kind !== "default" && kind !== "prompted" && html`<${ReceiptStrip} receipt=${state.receipt} id=${state.id} />`}
  </article>`;
}

/** @param {import("../answer-state.js").AnswerState} state */
function waitingWords(state) {
  if (state.status === "stopped") return "Stopped before the first token.";
  if (state.status === "done") return "The answer is empty.";
  return "Reading …";
}

/** @param {{error: ApiError | null, kind: string}} props */
function Failed({ error, kind }) {
  if (!error) return null;
  const isSteered = kind !== "default" && kind !== "prompted";
  const lead = isSteered ? "Not applied, so there is no answer. " : "";
  if (error.param) return html`<${Refusal} error=${error} />`;
  return html`<${Notice} kind="bad">${lead}${error.message}<//>`;
}
