/** The list of interventions, and how one is added. */
import { html, useSignal } from "../h.js";
import { isFeature, vectors } from "../server.js";
import { activeRules, edits, putEdit, view, wanted } from "../state.js";
import { EditRow } from "./edit-row.js";
import { Plan } from "./plan.js";

export function Interventions() {
  return html`<h2>Interventions</h2>
    ${
      edits.value.length
        ? html`<ul class="edits">
            ${edits.value.map((edit) => html`<${EditRow} key=${edit.id} edit=${edit} />`)}
          </ul>`
        : html`<p class="quiet">
            ${activeRules.value.length ? "None." : "None: both columns answer alike. Take a card above, or look for a feature."}
          </p>`
    }
    ${
      activeRules.value.length > 0 &&
      html`<p class="spaced">
        <span>${`On: ${activeRules.value.map((rule) => rule.name).join(", ")}.`}</span>
        <button class="link" onClick=${() => (view.value = "rules")}>Rules</button>
      </p>`
    }
    <${Plan} />
    <${AddForm} />`;
}

function AddForm() {
  const name = useSignal("");
  /** @param {SubmitEvent} event */
  const submit = (event) => {
    event.preventDefault();
    const typed = name.value.trim();
    if (!typed) return;
    name.value = "";
    const isVector = vectors.value.data.some((/** @type {any} */ vector) => vector.name === typed);
    if (!isVector && !isFeature(typed)) {
      wanted.value = typed;
      view.value = "find";
      return;
    }
    putEdit(isVector ? { vector: typed, op: "add", value: 1, unit: "act" } : { feature: typed });
  };
  return html`<form class="row wrap" onSubmit=${submit}>
    <label class="grow">
      <span class="unseen">Feature or vector to add</span>
      <input
        placeholder="bundled/golden-gate, bundled/94 or a vector"
        list="vector-names"
        value=${name}
        onInput=${(/** @type {any} */ event) => (name.value = event.target.value)}
      />
    </label>
    <datalist id="vector-names">
      ${vectors.value.data.map((/** @type {any} */ vector) => html`<option value=${vector.name}></option>`)}
    </datalist>
    <button>Add</button>
    <button type="button" onClick=${() => (view.value = "find")}>Find …</button>
  </form>`;
}
