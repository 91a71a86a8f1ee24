/** By contrast: what tells two lists of texts apart, and whether that could be chance. */
import { html, useSignal } from "../h.js";
import { number } from "../format.js";
import { Hit } from "./hit.js";
import { Notice } from "./notice.js";
import { Progress } from "./progress.js";
import { Term } from "./term.js";
import { useTask } from "./use-task.js";

/** @param {string} lines */
function textsOf(lines) {
  return lines
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
}

export function ByContrast() {
  const positive = useSignal("");
  const negative = useSignal("");
  const { state, start, stop } = useTask("v1/features/contrast", true);
  const found = state.value.result;
  const look = (/** @type {Event} */ event) => {
    event.preventDefault();
    start({ positive: textsOf(positive.value), negative: textsOf(negative.value), limit: 20 });
  };
  return html`<form class="stack" onSubmit=${look}>
      <div class="two">
        ${[
          { label: "Texts with it, one a line", of: positive },
          { label: "Texts without it, one a line", of: negative },
        ].map(
          ({ label, of }) =>
            html`<label class="field">
              <span>${label}</span>
              <textarea
                rows="6"
                value=${of}
                onInput=${(/** @type {any} */ event) => (of.value = event.target.value)}
              ></textarea>
            </label>`,
        )}
      </div>
      <div><button class="main">Compare</button></div>
    </form>
    <${Progress} task=${state.value} stop=${stop} />
    ${
      found &&
      html`${found.warnings.map((/** @type {string} */ words) => html`<${Notice} kind="warn">${words}<//>`)}
        <p class="quiet" role="status">
          ${`${found.num_significant} of ${found.num_features} differ by more than chance (p at most 0.05, corrected). Test: ${found.test}.`}
        </p>
        <ul class="hits two">
          ${found.data.map(
            (/** @type {any} */ hit) =>
              html`<${Hit} key=${hit.feature} hit=${hit}>
                <p class="quiet">
                  ${`${number(Math.abs(hit.difference))} ${hit.difference < 0 ? "less" : "more"} where it is, `}
                  <${Term} name="effect" />${` ${number(hit.effect, 2)}, `}<${Term} name="p" />
                  ${` ${number(hit.p, 2)}${hit.p <= 0.05 ? "" : " (may be chance)"}`}
                </p>
              <//>`,
          )}
        </ul>`
    }`;
}
