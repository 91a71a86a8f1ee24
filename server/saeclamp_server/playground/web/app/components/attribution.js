/** By cause: which features speak for a token of an answer, measured by taking each away. */
import { textOf } from "../answer-state.js";
import { html, useEffect } from "../h.js";
import { number, visible } from "../format.js";
import { Hit } from "./hit.js";
import { Progress } from "./progress.js";
import { Term } from "./term.js";
import { useTask } from "./use-task.js";

/**
 * @param {{answer: import("../answer-state.js").Answer, token: import("../answer-state.js").Token, onClose: () => void}} props
 */
export function Attribution({ answer, token, onClose }) {
  const { state, start, stop } = useTask("v1/features/attribute", true);
  useEffect(() => {
    const said = { role: "assistant", content: textOf(answer.state.value) };
    start({ messages: [...answer.messages, said], position: token.position, num_features: 12 });
  }, [answer, token]);
  const found = state.value.result;
  return html`<section class="card attribution" aria-label="Causes of a token">
    <div class="row">
      <h3 class="grow">Why this token?</h3>
      <button class="small" onClick=${onClose}>Close</button>
    </div>
    <${Progress} task=${state.value} stop=${stop} />
    ${
      found &&
      html`<p class="spaced">
          <span class="mono">${visible(found.target.text)}</span>,
          <${Term}
            name="logprob"
          />${` ${number(found.value)} in the unsteered model. What it would be without each of these features:`}
        </p>
        ${
          found.target.text !== token.text &&
          html`<p class="quiet">
            The answer is read as text here, and falls into other tokens than it was written in: this is the one at the
            same place.
          </p>`
        }
        <ul class="hits">
          ${found.data.slice(0, 8).map((/** @type {any} */ hit) => html`<${Hit} hit=${hit}><p>${`${number(Math.abs(hit.change))} ${hit.change < 0 ? "lower: the feature speaks for the token" : "higher: it speaks against the token"}`}</p><//>`)}
        </ul>
        ${found.warnings.map((/** @type {string} */ warning) => html`<p class="quiet">${warning}</p>`)}
        <p class="quiet">${found.claim}</p>`
    }
  </section>`;
}
