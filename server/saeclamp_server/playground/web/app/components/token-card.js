/** A card of one token: what was active, what was changed, and what else could have stood there. */
import { html } from "../h.js";
import { doseInWords, number, percent, visible } from "../format.js";
import { drawer, focus, heatFeature } from "../state.js";

const NUM_SHOWN = 5;

/**
 * @param {{token: import("../answer-state.js").Token, receipt: any, place: Record<string, string>,
 *   onAttribute?: (token: import("../answer-state.js").Token) => void}} props
 */
export function TokenCard({ token, receipt, place, onAttribute }) {
  const feature = heatFeature.value;
  const strongest = Object.entries(token.top).flatMap(([sae, found]) =>
    found.map(({ index, act }) => ({ feature: `${sae}/${index}`, act })),
  );
  return html`<div class="card token-card" role="status" style=${place}>
    <p>
      <strong class="mono">${visible(token.text)}</strong>
      ${token.logprob !== null && html` <span class="quiet">probability ${percent(Math.exp(token.logprob))}</span>`}
    </p>
    ${
      feature &&
      token.acts[feature] !== undefined &&
      html`<p>
        ${feature}: <strong>${number(token.acts[feature])}</strong> <span class="quiet">before any edit</span>
      </p>`
    }
    ${token.edits.map((edit) => html`<${Edited} edit=${edit} receipt=${receipt} />`)}
    ${token.defaultLikely && html`<${Likely} token=${token} />`}
    ${
      strongest.length > 0 &&
      html`<p class="quiet spaced">
        Strongest here:
        ${strongest.map(
          (one) =>
            html` <button
                class="link"
                onMouseDown=${(/** @type {Event} */ event) => event.preventDefault()}
                onClick=${() => {
                  focus.value = one.feature;
                  drawer.value = one.feature;
                }}
              >
                ${one.feature}
              </button>
              ${number(one.act)}`,
        )}
      </p>`
    }
    ${
      onAttribute &&
      token.position !== null &&
      html`<button
        class="small"
        onMouseDown=${(/** @type {Event} */ event) => event.preventDefault()}
        onClick=${() => onAttribute(token)}
      >
        Which features caused it?
      </button>`
    }
  </div>`;
}

/** @param {{edit: {intervention: number, act_before: number, dose: number}, receipt: any}} props */
function Edited({ edit, receipt }) {
  const of = receipt?.interventions?.[edit.intervention];
  const name = of ? (of.name ?? of.feature ?? of.vector) : `intervention ${edit.intervention}`;
  const after = of?.op === "clamp" || of?.op === "ablate" ? (of.value_act ?? 0) : null;
  const words = `${name}: ${number(edit.act_before)}${after === null ? "" : ` → ${number(after)}`}, ${doseInWords(edit.dose, of?.site)}`;
  return html`<p class="edited-line"><span aria-hidden="true">✎ </span>${words}</p>`;
}

/** @param {{token: import("../answer-state.js").Token}} props */
function Likely({ token }) {
  const own = [...token.likely].slice(0, NUM_SHOWN);
  const plain = [...(token.defaultLikely ?? [])].slice(0, NUM_SHOWN);
  return html`<table class="likely">
      <caption class="unseen">
        The likeliest tokens here
      </caption>
      <tr>
        <th scope="col" colspan="2">here</th>
        <th scope="col" colspan="2">unsteered</th>
      </tr>
      ${own.map(
        ([text, logprob], row) =>
          html`<tr>
            <td class="mono">${visible(text)}</td>
            <td>${percent(Math.exp(logprob))}</td>
            <td class="mono">${plain[row] ? visible(plain[row][0]) : ""}</td>
            <td>${plain[row] ? percent(Math.exp(plain[row][1])) : ""}</td>
          </tr>`,
      )}
    </table>
    <p class="quiet">KL from unsteered: at least ${number(token.kl, 2)}</p>`;
}
