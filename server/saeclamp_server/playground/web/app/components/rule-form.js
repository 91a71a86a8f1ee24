/** One rule, as a sentence to fill in. */
import { html, useId } from "../h.js";
import { OPS } from "../format.js";
import { addressOf, isKnown, presets } from "../server.js";
import { edits, isUnfinished, rules } from "../state.js";
import { Choice, NumberField, useTyped } from "./field.js";

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
  const isSteered = edits.value.some((edit) => !edit.off && rule.tests.some((test) => test.feature === edit.feature));
  const name = useTyped(rule.name);
  /** @param {any} event */
  const rename = (event) => {
    name.done();
    set({ name: event.target.value.replaceAll(/[^A-Za-z0-9_.-]/g, "-").slice(0, 64) || rule.name });
  };
  const setEdit = (/** @type {any} */ part) => change(({ edit }) => ({ edit: { ...edit, ...part } }));
  return html`<fieldset class="card stack rule ${rule.off ? "off" : ""}">
    <legend>
      <label>
        <span class="unseen">Name of the rule</span>
        <input value=${name.shown} pattern="[A-Za-z0-9_.\\-]{1,64}" onInput=${name.onInput} onChange=${rename} />
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
    ${isSteered && html`<p class="quiet">What it watches is steered too. It sees the activation before that edit, as the model has it by itself.</p>`}
    <div class="row">
      ${isUnfinished(rule) && html`<span class="bad-text">Unfinished: nothing is asked until it names features of this server, or is off.</span>`}
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
  const list = useId();
  const { shown, onInput, done } = useTyped(value);
  /** @param {any} event */
  const change = (event) => {
    done();
    onChange(event.target.value.trim());
  };
  return html`<label class="grow">
      <span class="unseen">Feature</span>
      <input
        placeholder="name a feature"
        list=${list}
        value=${shown}
        aria-invalid=${value && !isKnown(value) ? "true" : null}
        onInput=${onInput}
        onChange=${change}
      />
    </label>
    <datalist id=${list}>
      ${presets.value.map((/** @type {any} */ one) => html`<option value=${addressOf(one)}>${one.description}</option>`)}
    </datalist>
    ${value && !isKnown(value) && html`<span class="bad-text">not a feature of this server</span>`}`;
}
