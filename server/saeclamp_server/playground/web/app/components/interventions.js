/** The list of interventions, and how one is added. */
import { html, useSignal } from "../h.js";
import { isFeature, isKnown, presetOf, presets, saes, vectors } from "../server.js";
import { edits, putEdit, UNMEASURED, view, wanted, watchingRules } from "../state.js";
import { isPending, isRunning, obstacle, regenerate } from "../conversation.js";
import { EditRow } from "./edit-row.js";
import { Notice } from "./notice.js";
import { Plan } from "./plan.js";

export function Interventions() {
  const watching = watchingRules.value;
  return html`<h2>Interventions: what is turned up or down</h2>
    ${
      edits.value.length
        ? html`<ul class="edits">
            ${edits.value.map((edit) => html`<${EditRow} key=${edit.id} edit=${edit} />`)}
          </ul>`
        : html`<p class="quiet">
            ${watching.length ? "None." : presets.value.length ? "None: both columns answer alike. Take a card above, or look for a feature." : "None: both columns answer alike. Look for a feature."}
          </p>`
    }
    ${
      watching.length > 0 &&
      html`<p class="spaced">
        <span>${`Watching: ${watching.map((rule) => rule.name).join(", ")}.`}</span>
        <button class="link" onClick=${() => (view.value = "rules")}>Rules</button>
      </p>`
    }
    ${
      obstacle.value &&
      html`<${Notice} kind="bad">
        ${obstacle.value} <button class="small" onClick=${() => (view.value = "rules")}>Rules</button>
      <//>`
    }
    <${Plan} />
    ${
      isPending.value &&
      !isRunning.value &&
      html`<div>
        <button class="main" disabled=${Boolean(obstacle.value)} onClick=${regenerate}>Run with this</button>
      </div>`
    }
    <${AddForm} />`;
}

function AddForm() {
  const name = useSignal("");
  const fault = useSignal("");
  /** @param {SubmitEvent} event */
  const submit = (event) => {
    event.preventDefault();
    const written = name.value.trim();
    if (!written) return;
    const [only, ...others] = saes.value;
    const typed = only && !others.length && /^[0-9]+$/.test(written) ? `${only.name}/${written}` : written;
    fault.value = "";
    const isVector = vectors.value.data.some((/** @type {any} */ vector) => vector.name === typed);
    if (isFeature(typed) && !isVector && !isKnown(typed)) {
      fault.value = `This server has no feature ${typed}. To look for it by words, leave the slash out.`;
      return;
    }
    name.value = "";
    if (!isVector && !isFeature(typed)) {
      wanted.value = typed;
      view.value = "find";
      return;
    }
    const preset = presetOf(typed);
    putEdit(isVector ? { vector: typed, op: "add", ...UNMEASURED } : { feature: typed, value: preset?.best ?? 1 });
  };
  return html`<form class="row wrap" onSubmit=${submit}>
    <label class="grow">
      <span class="unseen">Feature or vector to add</span>
      <input
        placeholder=${`${saes.value[0]?.name ?? "sae"}/94, a name or a vector`}
        list="vector-names"
        value=${name}
        onInput=${(/** @type {any} */ event) => (name.value = event.target.value)}
      />
    </label>
    <datalist id="vector-names">
      ${vectors.value.data.map((/** @type {any} */ vector) => html`<option value=${vector.name}></option>`)}
    </datalist>
    ${fault.value && html`<span class="bad-text" role="alert">${fault.value}</span>`}
    <button>Add</button>
    <button type="button" onClick=${() => (view.value = "find")}>Find …</button>
  </form>`;
}
