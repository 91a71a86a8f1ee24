/** The receipt under an answer: what was applied, where, and how much; or that nothing was shown because it was not. */
import { html } from "../h.js";
import { doseInWords, number, OPS, shortHash, siteInWords } from "../format.js";
import { Notice } from "./notice.js";

/** @param {{receipt: any, id: string | null}} props */
export function ReceiptStrip({ receipt, id }) {
  const { interventions, fired, warnings } = receipt;
  const edited = interventions.reduce(
    (/** @type {number} */ sum, /** @type {any} */ one) => sum + one.tokens.prompt + one.tokens.generated,
    0,
  );
  const several = `${interventions.length} interventions, ${edited} edits of tokens`;
  const words = interventions.length > 1 ? several : edited ? `${edited} tokens edited` : "nothing was edited";
  return html`<details class="receipt">
      <summary>
        <span aria-hidden="true">✔ </span>${`Receipt: ${words}, by steering ${shortHash(receipt.spec)}`}
      </summary>
      ${interventions.map((/** @type {any} */ one) => html`<${Applied} one=${one} />`)}
      <p class="quiet mono">
        ${id ? html`answer ${id}<br />` : null} ${`steering ${receipt.spec}`}<br />${`model ${receipt.model}${receipt.variant ? `, variant ${receipt.variant}` : ""}`}
        ${Object.entries(receipt.sae).map(([name, sha256]) => html`<br />${name} ${sha256}`)}
        ${receipt.server && html`<br />${`saeclamp ${receipt.server.version}, vllm ${receipt.server.vllm}, on ${receipt.server.replica}`}`}
      </p>
      ${fired.length > 0 && html`<p>${fired.map(firedInWords).join(" ")}</p>`}
    </details>
    ${warnings.map((/** @type {string} */ warning) => html`<${Notice} kind="warn">${warning}<//>`)}`;
}

/** @param {any} fired */
function firedInWords(fired) {
  return `Rule ${fired.rule} first held at position ${fired.token} of prompt and answer (${number(fired.value)}), at ${fired.num_tokens} tokens in all.`;
}

/** @param {{one: any}} props */
function Applied({ one }) {
  const what = one.op === "scale" ? number(one.factor) : one.op === "ablate" ? "" : `${number(one.value)} ${one.unit}`;
  const applied =
    one.value_act === null || one.unit === "act"
      ? ""
      : ` = ${number(one.value_act)} ${one.vector ? "times the vector" : "in the SAE's units"}`;
  const layer = one.site ? siteInWords(one.site) : `layer ${one.layer}`;
  return html`<p>
    <strong>${one.description ?? one.feature ?? one.vector}</strong>
    ${`${one.rule ? ` (rule ${one.rule})` : ""}: ${OPS[one.op] ?? one.op} ${what}${applied}, ${layer}; ${one.tokens.prompt} tokens of the prompt, ${one.tokens.generated} of the answer.`}
    ${one.dose && html` On average ${doseInWords(one.dose.mean, one.site)}, at most ${number(one.dose.max, 2)}.`}
    ${one.act_before && html` Before: ${number(one.act_before.mean)} on average, ${number(one.act_before.max)} at most.`}
    ${one.approximation && html` The SAE is an approximation: ${one.approximation}.`}
  </p>`;
}
