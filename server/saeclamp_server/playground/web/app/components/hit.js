/** A feature in a list of what was found. */
import { html } from "../h.js";
import { number, percent, title, visible } from "../format.js";
import { MAX_PRESETS, presets } from "../server.js";
import { drawer, edits, newRule, putEdit, removeEdit, rules, view } from "../state.js";

/**
 * @param {{hit: any, children?: any}} props
 *   hit: as search, inspect, contrast, attribute, neighbours and suggest name features
 */
export function Hit({ hit, children }) {
  const name = hit.feature;
  const steered = edits.value.find((edit) => edit.feature === name || edit.feature === `${hit.sae}/${hit.name}`);
  const toggle = () => (steered ? removeEdit(steered.id) : putEdit({ feature: name, value: hit.best ?? 1 }));
  const watch = () => {
    // half of what was seen, where there is no maximum to take half of
    rules.value = [...rules.value, newRule(name, hit.max_act == null ? Math.round((hit.max ?? 2) / 2) : null)];
    view.value = "rules";
  };
  return html`<li class="hit">
    <div class="row wrap">
      <strong class="grow">${title(hit)}</strong>
      <${Steers} hit=${hit} />
    </div>
    <p class="quiet">
      <span class="mono">${name}</span>${hit.name ? ` · ${hit.name}` : ""}
      ${hit.label ? ` · labelled by ${hit.label.source}${hit.label.score === null ? "" : `, score ${number(hit.label.score, 2)}`}` : ""}
      ${hit.density == null ? "" : ` · active at ${percent(hit.density)} of tokens`}
      ${hit.output_score == null ? "" : ` · output score ${number(hit.output_score, 2)}`}
      ${hit.similarity == null ? "" : ` · ${number(hit.similarity, 2)} alike`}
    </p>
    ${
      hit.tokens?.length > 0 &&
      html`<p class="quiet">
        active on ${hit.tokens.map((/** @type {string} */ one) => html`<span class="chip mono">${visible(one)}</span>`)}
      </p>`
    }
    ${
      hit.promotes?.length > 0 &&
      html`<p class="quiet">
        promotes
        ${hit.promotes.map((/** @type {string} */ one) => html`<span class="chip mono">${visible(one)}</span>`)}
      </p>`
    }
    ${children}
    <div class="row">
      <button class="small" aria-pressed=${Boolean(steered)} onClick=${toggle}>
        ${steered ? "Steered" : "Steer"}<span class="unseen"> with ${title(hit)}</span>
      </button>
      ${steered && html`<button class="small" onClick=${() => (view.value = "steer")}>Go to Steer</button>`}
      <button class="small" onClick=${() => (drawer.value = name)}>
        About<span class="unseen"> ${title(hit)}</span>
      </button>
      <button class="small" onClick=${watch}>Watch<span class="unseen"> for ${title(hit)} by a rule</span></button>
    </div>
  </li>`;
}

/** @param {{hit: any}} props */
function Steers({ hit }) {
  const zone = hit.green_zone ?? presets.value.find((preset) => preset.feature === hit.feature)?.green_zone;
  // where the list does not say, it may be one of those that the page has not asked for
  if (!zone)
    return "green_zone" in hit || presets.value.length < MAX_PRESETS
      ? html`<span class="badge grey">not calibrated</span>`
      : null;
  return html`<span class="badge green">steers, ${number(zone[0], 2)} to ${number(zone[1], 2)}</span>`;
}
