/** Variants: the steering that is set, saved under a name that any client can ask for as a model. */
import { ApiError, json } from "../api.js";
import { obstacle } from "../conversation.js";
import { html, useSignal } from "../h.js";
import { reloadVariants, variants } from "../server.js";
import { edits, newEdit, rules, steering, variantColumns, view } from "../state.js";
import { Delete } from "./delete.js";
import { download } from "./save.js";
import { useAttempt } from "./use-attempt.js";

export function KeepVariants() {
  const name = useSignal("");
  const description = useSignal("");
  const { attempt, outcome } = useAttempt(reloadVariants);
  const save = (/** @type {Event} */ event) => {
    event.preventDefault();
    attempt(async () => {
      const body = { name: name.value, description: description.value, steering: steering.value };
      const made = await json("v1/variants", { body });
      return `Saved. Any client gets it as the model ${made.id}.`;
    });
  };
  const importFile = (/** @type {any} */ event) => {
    const [file] = event.target.files;
    if (!file) return;
    attempt(async () => {
      let body;
      try {
        body = JSON.parse(await file.text());
      } catch {
        throw new ApiError(0, { message: `${file.name} is not JSON.` });
      }
      const done = await json("v1/variants/import", { body });
      return `${done.num_new} new, ${done.num_known} were here before.`;
    });
  };
  const own = variants.value.filter((variant) => !variant.read_only);
  return html`<section class="card stack">
    <h2>As a model name</h2>
    <form class="stack" onSubmit=${save}>
      <label class="field">
        <span>Name</span>
        <input
          value=${name}
          required
          placeholder="bridge"
          onInput=${(/** @type {any} */ event) => (name.value = event.target.value)}
        />
      </label>
      <label class="field">
        <span>What it is for</span>
        <input value=${description} onInput=${(/** @type {any} */ event) => (description.value = event.target.value)} />
      </label>
      <div class="row">
        <button class="main" disabled=${!steering.value || Boolean(obstacle.value)}>Save what is set</button>
        ${!steering.value && html`<span class="quiet">Nothing is set.</span>`}
      </div>
    </form>
    ${outcome()}
    <p class="quiet">Kept by the server: whoever uses it sees these, and may delete them.</p>
    <ul class="hits">
      ${own.map(
        (variant) =>
          html`<li class="hit" key=${variant.id}>
            <p><strong class="mono">${variant.id}</strong>${variant.alias ? ` (also ${variant.alias})` : ""}</p>
            <p class="quiet">${variant.description}</p>
            <div class="row">
              ${
                isPlain(variant.steering)
                  ? html`<button class="small" onClick=${() => take(variant.steering)}>
                      Load<span class="unseen"> ${variant.id}</span>
                    </button>`
                  : html`<span class="quiet">It has rules or tokens that cannot be set here; give it a column.</span>`
              }
              <${Delete}
                name=${variant.name}
                onDelete=${() =>
                  attempt(async () => {
                    await json(`v1/variants/${encodeURIComponent(variant.name)}`, { method: "DELETE" });
                    variantColumns.value = variantColumns.value.filter((name) => name !== variant.id);
                    return `${variant.id} is no more.`;
                  })}
              />
            </div>
            <details>
              <summary class="quiet">${`What it does, as JSON: version ${variant.version}`}</summary>
              <pre>${JSON.stringify(variant.steering, null, 1)}</pre>
            </details>
          </li>`,
      )}
    </ul>
    <div class="row wrap">
      <button onClick=${() => attempt(exportAll)}>Export all</button>
      <label class="check">Import <input type="file" accept=".json,application/json" onChange=${importFile} /></label>
    </div>
    <p class="quiet">
      ${`${variants.value.length - own.length} more come with the SAEs: the cards of the first screen, such as ${variants.value.find((one) => one.read_only)?.id ?? "none"}.`}
    </p>
  </section>`;
}

async function exportAll() {
  download("variants.json", JSON.stringify(await json("v1/variants/export"), null, 1));
  return "Exported.";
}

/**
 * Tell whether the page can show all that a variant does; what it cannot, it must not take over in part.
 *
 * @param {any} saved
 */
function isPlain(saved) {
  const own = saved.interventions ?? [];
  return (
    !saved.rules?.length &&
    !saved.readout &&
    own.every((/** @type {any} */ one) => typeof (one.tokens ?? "all") === "string" && !one.special_tokens)
  );
}

/** @param {any} saved */
function take(saved) {
  rules.value = [];
  edits.value = (saved.interventions ?? []).map((/** @type {any} */ one) =>
    newEdit({
      ...(one.vector ? { vector: one.vector } : { feature: nameOf(one.feature) }),
      op: one.op,
      value: one.value ?? one.factor ?? 0,
      unit: one.unit ?? "max_act",
      tokens: one.tokens ?? "all",
    }),
  );
  view.value = "steer";
}

/** @param {string | {sae: string, index: number}} feature */
function nameOf(feature) {
  return typeof feature === "string" ? feature : `${feature.sae}/${feature.index}`;
}
