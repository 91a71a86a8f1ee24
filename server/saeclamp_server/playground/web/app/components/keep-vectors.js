/** Vectors: directions of one's own, uploaded to be moved as features are. */
import { json } from "../api.js";
import { html, useSignal } from "../h.js";
import { number, siteInWords } from "../format.js";
import { reloadVectors, vectors } from "../server.js";
import { putEdit, UNMEASURED, view } from "../state.js";
import { Delete } from "./delete.js";
import { useAttempt } from "./use-attempt.js";

export function KeepVectors() {
  const name = useSignal("");
  const file = useSignal(/** @type {File | null} */ (null));
  const { attempt, outcome } = useAttempt(reloadVectors);
  const upload = (/** @type {Event} */ event) => {
    event.preventDefault();
    const body = file.value;
    if (body) {
      attempt(async () => {
        const made = await json(`v1/vectors?name=${encodeURIComponent(name.value)}`, { body });
        return `${made.name} is ${siteInWords(made.site)}; its length is ${number(made.resid_norm, 2)} of the stream's.`;
      });
    }
  };
  if (!vectors.value.max_vectors)
    return html`<section class="card">
      <h2>Vectors</h2>
      <p>This server takes none.</p>
    </section>`;
  return html`<section class="card stack">
    <h2>Vectors</h2>
    <form class="stack" onSubmit=${upload}>
      <label class="field">
        <span>Name</span>
        <input
          value=${name}
          required
          placeholder="joy"
          onInput=${(/** @type {any} */ event) => (name.value = event.target.value)}
        />
      </label>
      <label class="field">
        <span
          >File: safetensors with one vector; in its metadata layer (“12”), site (“resid_post”), sign (“+1” or “-1”) and
          source (whence it comes)</span
        >
        <input
          type="file"
          accept=".safetensors"
          required
          onChange=${(/** @type {any} */ event) => (file.value = event.target.files[0] ?? null)}
        />
      </label>
      <div><button class="main">Upload</button></div>
    </form>
    ${outcome()}
    <ul class="hits">
      ${vectors.value.data.map(
        (/** @type {any} */ vector) =>
          html`<li class="hit" key=${vector.name}>
            <p>
              <strong class="mono">${vector.name}</strong> ${siteInWords(vector.site)}, length ${number(vector.norm)}
            </p>
            <p class="quiet">${vector.source}</p>
            <div class="row">
              <button
                class="small"
                onClick=${() => {
                  putEdit({ vector: vector.name, op: "add", ...UNMEASURED });
                  view.value = "steer";
                }}
              >
                Steer<span class="unseen"> with ${vector.name}</span>
              </button>
              <${Delete}
                name=${vector.name}
                onDelete=${() =>
                  attempt(async () => {
                    await json(`v1/vectors/${encodeURIComponent(vector.name)}`, { method: "DELETE" });
                    return `${vector.name} is no more.`;
                  })}
              />
            </div>
          </li>`,
      )}
    </ul>
  </section>`;
}
