/** Search by words and by meaning, with filters, a page at a time. */
import { html, useEffect, useSignal } from "../h.js";
import { saes } from "../server.js";
import { wanted } from "../state.js";
import { Choice, NumberField } from "./field.js";
import { Hit } from "./hit.js";
import { Progress } from "./progress.js";
import { useTask } from "./use-task.js";

const PAGE = 20;

export function ByWords() {
  const query = useSignal("");
  const filters = useSignal({ sae: "", min_density: 0, max_density: 1, min_output_score: 0, green_zone: false });
  const offset = useSignal(0);
  const { state, start, stop } = useTask("v1/features");
  const look = (/** @type {number} */ from) => {
    offset.value = from;
    const { sae, min_density, max_density, min_output_score, green_zone } = filters.value;
    const params = new URLSearchParams({ query: query.value.trim(), limit: String(PAGE), offset: String(from) });
    if (sae) params.set("sae", sae);
    if (min_density > 0) params.set("min_density", String(min_density));
    if (max_density < 1) params.set("max_density", String(max_density));
    if (min_output_score > 0) params.set("min_output_score", String(min_output_score));
    if (green_zone) params.set("green_zone", "true");
    start(null, `v1/features?${params}`);
  };
  useEffect(() => {
    if (!wanted.value) return;
    query.value = wanted.value;
    wanted.value = "";
    look(0);
  }, [wanted.value]);
  const set = (/** @type {Partial<typeof filters.value>} */ part) => (filters.value = { ...filters.value, ...part });
  const found = state.value.result;
  return html`<form
      class="stack"
      onSubmit=${(/** @type {Event} */ event) => {
        event.preventDefault();
        look(0);
      }}
    >
      <div class="row">
        <label class="grow">
          <span class="unseen">Words to look for</span>
          <input
            value=${query}
            placeholder="cooking recipes"
            maxlength="500"
            onInput=${(/** @type {any} */ event) => (query.value = event.target.value)}
          />
        </label>
        <button class="main">Search</button>
      </div>
      <details>
        <summary>Filters</summary>
        <div class="grid">
          <${Choice}
            label="SAE"
            value=${filters.value.sae}
            options=${{ "": "all", ...Object.fromEntries(saes.value.map((sae) => [sae.name, sae.name])) }}
            onChange=${(/** @type {string} */ sae) => set({ sae })}
          />
          <${NumberField}
            label="Active at least at (share)"
            value=${filters.value.min_density}
            min=${0}
            max=${1}
            step=${0.001}
            onChange=${(/** @type {number} */ min_density) => set({ min_density })}
          />
          <${NumberField}
            label="Active at most at (share)"
            value=${filters.value.max_density}
            min=${0}
            max=${1}
            step=${0.001}
            onChange=${(/** @type {number} */ max_density) => set({ max_density })}
          />
          <${NumberField}
            label="Output score at least"
            value=${filters.value.min_output_score}
            min=${0}
            max=${1}
            step=${0.001}
            onChange=${(/** @type {number} */ min_output_score) => set({ min_output_score })}
          />
          <label class="check">
            <input
              type="checkbox"
              checked=${filters.value.green_zone}
              onChange=${() => set({ green_zone: !filters.value.green_zone })}
            />
            only what was found to steer
          </label>
        </div>
      </details>
    </form>
    <${Progress} task=${state.value} stop=${stop} />
    ${
      found &&
      html`<p class="quiet" role="status">${found.num_found} found${found.note ? `. ${found.note}` : ""}</p>
        <ul class="hits two">
          ${found.data.map((/** @type {any} */ hit) => html`<${Hit} key=${hit.feature} hit=${hit} />`)}
        </ul>
        <div class="row">
          <button disabled=${offset.value === 0} onClick=${() => look(offset.value - PAGE)}>Before</button>
          <button disabled=${offset.value + PAGE >= found.num_found} onClick=${() => look(offset.value + PAGE)}>
            More
          </button>
        </div>`
    }`;
}
