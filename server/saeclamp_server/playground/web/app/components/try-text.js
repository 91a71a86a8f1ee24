/** A text of one's own, and where one feature is active in it. */
import { html, useSignal } from "../h.js";
import { number, visible } from "../format.js";
import { heatLevel } from "./token-text.js";
import { Progress } from "./progress.js";
import { useTask } from "./use-task.js";

/** @param {{feature: string, most: number}} props */
export function TryText({ feature, most }) {
  const text = useSignal("");
  const { state, start, stop } = useTask("v1/features/inspect");
  /** @param {SubmitEvent} event */
  const submit = (event) => {
    event.preventDefault();
    if (text.value.trim()) start({ text: text.value, features: [feature] });
  };
  const tokens = state.value.result?.tokens ?? [];
  const [shown] = state.value.result?.features ?? [];
  return html`<form onSubmit=${submit}>
      <div class="row">
        <label class="grow">
          <span class="unseen">Text to try</span>
          <input
            value=${text}
            placeholder="A walk across the bridge"
            onInput=${(/** @type {any} */ event) => (text.value = event.target.value)}
          />
        </label>
        <button>Try</button>
      </div>
    </form>
    <${Progress} task=${state.value} stop=${stop} />
    ${
      tokens.length > 0 &&
      html`<p class="tokens example">
          ${tokens.map((/** @type {any} */ token) => {
            const act = Object.values(token.features ?? {})[0];
            const level = heatLevel(/** @type {number | undefined} */ (act), most || (shown?.max ?? 0));
            return html`<span class="token heat-${level}" title=${act === undefined ? "not read" : number(Number(act))}
              >${token.text}</span
            >`;
          })}
        </p>
        <p class="quiet">
          ${shown?.max ? `At most ${number(shown.max)} here, at “${visible(tokens[shown.position].text)}”.` : "It is not active here."}
        </p>`
    }`;
}
