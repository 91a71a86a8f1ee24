/** One rule, as a sentence to fill in. */
import { html } from "../h.js";
import { OPS } from "../format.js";
import { rules } from "../state.js";
import { Choice, NumberField } from "./field.js";

const WHERE = { generated: "in what is generated", prompt: "in the prompt", all: "anywhere" };
const THEN = { abort: "stop the answer", edit: "steer" };
const SCOPES = { token: "at that token", rest_of_request: "from there on" };
const UNITS = { max_act: "× its maximum", act: "in the SAE's units" };

/** @typedef {import("../state.js").Rule} Rule */

/** @param {{rule: Rule}} props */
export function RuleForm({ rule }) {
  const set = (/** @type {Partial<Rule>} */ part) => change(() => part);
  // of the rule as it is now: what was drawn may be older than what the last event has set
  const change = (/** @type {(now: Rule) => Partial<Rule>} */ part) => {
    rules.value = rules.value.map((one) => (one.id === rule.id ? { ...one, ...part(one) } : one));
  };
  const setTest = (/** @type {number} */ at, /** @type {any} */ part) =>
    change(({ tests }) => ({ tests: tests.map((test, number) => (number === at ? { ...test, ...part } : test)) }));
  const isComplete = rule.tests.every((test) => test.feature) && (rule.then === "abort" || rule.edit.feature);
  const setEdit = (/** @type {any} */ part) => change(({ edit }) => ({ edit: { ...edit, ...part } }));
  return html`<fieldset class="card stack rule ${rule.off ? "off" : ""}">
    <legend>
      <label>
        <span class="unseen">Name of the rule</span>
        <input
          value=${rule.name}
          pattern="[A-Za-z0-9_.\\-]{1,64}"
          onChange=${(/** @type {any} */ event) =>
            set({ name: event.target.value.replaceAll(/[^A-Za-z0-9_.-]/g, "-").slice(0, 64) || rule.name })}
        />
      </label>
    </legend>
    ${rule.tests.map(
      (test, number) =>
        html`<div class="row wrap">
          <span>${number === 0 ? "When" : rule.join === "all" ? "and" : "or"}</span>
          <${FeatureField}
            value=${test.feature}
            onChange=${(/** @type {string} */ feature) => setTest(number, { feature })}
          />
          <${Choice}
            label="Comparison"
            hidden
            value=${test.op}
            options=${{ above: "is above", below: "is below" }}
            onChange=${(/** @type {string} */ op) => setTest(number, { op })}
          />
          <${NumberField}
            label="Bound"
            hidden
            value=${test.value}
            step=${0.05}
            onChange=${(/** @type {number} */ value) => setTest(number, { value })}
          />
          <${Choice}
            label="Unit of the bound"
            hidden
            value=${test.unit}
            options=${UNITS}
            onChange=${(/** @type {string} */ unit) => setTest(number, { unit })}
          />
          ${
            rule.tests.length > 1 &&
            html`<button
              type="button"
              class="small"
              onClick=${() => change(({ tests }) => ({ tests: tests.filter((_, at) => at !== number) }))}
            >
              Remove
            </button>`
          }
        </div>`,
    )}
    <div class="row wrap">
      <${Choice}
        label="Where it looks"
        hidden
        value=${rule.tokens}
        options=${WHERE}
        onChange=${(/** @type {string} */ tokens) => set({ tokens })}
      />
      <button
        type="button"
        class="small"
        onClick=${() => change(({ tests }) => ({ tests: [...tests, { ...tests[0] }] }))}
      >
        Another condition
      </button>
      ${
        rule.tests.length > 1 &&
        html`<${Choice}
          label="Conditions"
          hidden
          value=${rule.join}
          options=${{ all: "all must hold", any: "one is enough" }}
          onChange=${(/** @type {"all" | "any"} */ join) => set({ join })}
        />`
      }
    </div>
    <div class="row wrap">
      <span>then</span>
      <${Choice}
        label="Then"
        hidden
        value=${rule.then}
        options=${THEN}
        onChange=${(/** @type {"abort" | "edit"} */ then) => set({ then })}
      />
      ${
        rule.then === "edit" &&
        html`<${FeatureField}
            value=${rule.edit.feature ?? ""}
            onChange=${(/** @type {string} */ feature) => setEdit({ feature })}
          />
          <${Choice}
            label="What to do"
            hidden
            value=${rule.edit.op}
            options=${OPS}
            onChange=${(/** @type {string} */ op) => setEdit({ op })}
          />
          ${
            rule.edit.op !== "ablate" &&
            html`<${NumberField}
              label="Value"
              hidden
              value=${rule.edit.value}
              step=${0.05}
              onChange=${(/** @type {number} */ value) => setEdit({ value })}
            />`
          }
          <${Choice}
            label="How long"
            hidden
            value=${rule.scope}
            options=${SCOPES}
            onChange=${(/** @type {"token" | "rest_of_request"} */ scope) => set({ scope })}
          />`
      }
    </div>
    <div class="row">
      ${!isComplete && html`<span class="bad-text">It does nothing until it names a feature.</span>`}
      <label class="check"
        ><input type="checkbox" checked=${!rule.off} onChange=${() => set({ off: !rule.off })} /> on</label
      >
      <button
        type="button"
        class="small"
        onClick=${() => (rules.value = rules.value.filter((one) => one.id !== rule.id))}
      >
        Remove the rule
      </button>
    </div>
  </fieldset>`;
}

/** @param {{value: string, onChange: (feature: string) => void}} props */
function FeatureField({ value, onChange }) {
  return html`<label class="grow">
    <span class="unseen">Feature</span>
    <input
      placeholder="bundled/golden-gate"
      value=${value}
      onChange=${(/** @type {any} */ event) => onChange(event.target.value.trim())}
    />
  </label>`;
}
