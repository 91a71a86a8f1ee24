/** Features that are known to steer, as cards of one click. */
import { ask, regenerate, stop, turns } from "../conversation.js";
import { html } from "../h.js";
import { number } from "../format.js";
import { addressOf, presets } from "../server.js";
import { draft, edits, focus, newEdit, QUESTION, rules } from "../state.js";

/** @param {any} preset */
function choose(preset) {
  const name = addressOf(preset);
  stop();
  rules.value = [];
  edits.value = [newEdit({ feature: name, value: preset.best ?? 1 })];
  focus.value = name;
  const asked = draft.value.trim();
  draft.value = "";
  // what was said before stays: the last question is answered anew
  if (asked || !turns.value.length) ask(asked || QUESTION);
  else regenerate();
}

export function Presets() {
  const isSet = (/** @type {any} */ preset) =>
    edits.value.some(
      (edit) =>
        edit.feature === addressOf(preset) &&
        edit.op === "clamp" &&
        edit.unit === "max_act" &&
        edit.value === (preset.best ?? 1),
    );
  if (!presets.value.length) {
    return html`<p class="quiet">
      No feature of these SAEs has been calibrated. Look for one under Find, or run <code>saeclamp calibrate</code>.
    </p>`;
  }
  return html`<h2>Try one</h2>
    <ul class="presets">
      ${presets.value.map(
        (preset) =>
          html`<li>
            <button class="preset" aria-pressed=${isSet(preset)} onClick=${() => choose(preset)}>
              <strong>${preset.name ?? preset.feature}</strong>
              <span>${preset.description}</span>
              <span class="quiet">set to ${number(preset.best ?? 1, 2)} × its maximum</span>
            </button>
          </li>`,
      )}
    </ul>`;
}
