/** How answers are drawn, and which columns there are. */
import { html } from "../h.js";
import { variants } from "../server.js";
import { prompted, sampling, system, variantColumns } from "../state.js";
import { NumberField } from "./field.js";

const FIELDS = /** @type {[keyof typeof sampling.value, string, number, number, number][]} */ ([
  ["max_tokens", "Tokens of an answer", 1, 100000, 1],
  ["temperature", "Temperature", 0, 2, 0.1],
  ["top_p", "Top p", 0.01, 1, 0.01],
  ["repetition_penalty", "Repetition penalty", 0.01, 2, 0.05],
  ["seed", "Seed", 0, 2 ** 32 - 1, 1],
  ["num_seeds", "Answers of each column", 1, 8, 1],
]);

export function Settings() {
  const column = (/** @type {string} */ name) => {
    const has = variantColumns.value.includes(name);
    variantColumns.value = has ? variantColumns.value.filter((one) => one !== name) : [...variantColumns.value, name];
  };
  // one that is gone stands here too, or its column could not be taken away
  const own = [
    ...new Set([...variants.value.filter((one) => !one.read_only).map((one) => one.id), ...variantColumns.value]),
  ];
  return html`<details class="settings">
    <summary>Sampling and columns</summary>
    <div class="grid">
      ${FIELDS.map(
        ([name, label, least, most, step]) =>
          html`<${NumberField}
            label=${label}
            value=${sampling.value[name]}
            min=${least}
            max=${most}
            step=${step}
            onChange=${(/** @type {number} */ value) => (sampling.value = { ...sampling.value, [name]: value })}
          />`,
      )}
    </div>
    <label class="field">
      <span>System message, of all columns</span>
      <textarea
        rows="2"
        value=${system}
        onInput=${(/** @type {any} */ event) => (system.value = event.target.value)}
      ></textarea>
    </label>
    <label class="check">
      <input
        type="checkbox"
        checked=${prompted.value !== null}
        onChange=${() => (prompted.value = prompted.value === null ? "" : null)}
      />
      a column that is asked for it in words, to compare
    </label>
    ${
      prompted.value !== null &&
      html`<label class="field">
        <span>What it is told</span>
        <textarea
          rows="2"
          placeholder="Talk about the Golden Gate Bridge."
          value=${prompted}
          onInput=${(/** @type {any} */ event) => (prompted.value = event.target.value)}
        ></textarea>
      </label>`
    }
    ${
      own.length > 0 &&
      html`<fieldset>
        <legend>Columns of variants</legend>
        ${own.map(
          (name) =>
            html`<label class="check">
              <input type="checkbox" checked=${variantColumns.value.includes(name)} onChange=${() => column(name)} />
              ${name}
            </label>`,
        )}
      </fieldset>`
    }
  </details>`;
}
