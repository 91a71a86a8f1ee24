/** All that is known of a feature: what it is, where it is active, what it does. */
import { html, useEffect, useRef, useSignal } from "../h.js";
import { number, percent, title, visible } from "../format.js";
import { feature as lookUp } from "../server.js";
import { drawer, edits, focus, putEdit, UNMEASURED } from "../state.js";
import { heatLevel } from "./token-text.js";
import { Histogram } from "./histogram.js";
import { Notice } from "./notice.js";
import { Term } from "./term.js";
import { TryText } from "./try-text.js";
import { Curve } from "./zones.js";

/** @type {HTMLElement | null} */
let opener = null;

/** @param {{feature: string}} props */
export function FeatureDrawer({ feature }) {
  const known = useSignal(/** @type {any} */ (null));
  const fault = useSignal("");
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => {
    // one drawer may follow another: whoever opened the first gets the focus back
    if (document.activeElement instanceof HTMLElement && !document.activeElement.closest("dialog"))
      opener = document.activeElement;
    dialog.current?.showModal();
    lookUp(feature).then(
      (found) => (known.value = found),
      (error) => (fault.value = error.message),
    );
    return () => opener?.isConnected && opener.focus();
  }, [feature]);
  const close = () => (drawer.value = null);
  return html`<dialog class="drawer" ref=${dialog} onClose=${close} aria-label=${`Feature ${feature}`}>
    <div class="row">
      <h2 class="grow">${known.value ? title(known.value) : feature}</h2>
      <button onClick=${() => dialog.current?.close()}>Close</button>
    </div>
    ${fault.value && html`<${Notice} kind="bad">${fault.value}<//>`}
    ${!known.value && !fault.value && html`<p class="quiet">Looking it up …</p>`}
    ${known.value && html`<${About} known=${known.value} feature=${feature} />`}
  </dialog>`;
}

/** @param {{known: any, feature: string}} props */
function About({ known, feature }) {
  const edit = edits.value.find(
    (one) => one.feature === feature || one.feature === `${known.sae}/${known.name}` || one.feature === known.feature,
  );
  const hasMaximum = known.max_act !== null;
  const strength = hasMaximum ? { unit: "max_act", value: known.best ?? 1 } : UNMEASURED;
  return html`
    <p class="mono quiet">${known.feature}${known.name ? ` · ${known.name}` : ""}</p>
    ${known.num_active === 0 && html`<${Notice} kind="warn">It was active at no token that was counted: a dead feature.<//>`}
    <div class="row">
      ${
        edit
          ? html`<span class="quiet">It is steered with.</span>`
          : html`<button class="main" onClick=${() => putEdit({ feature, op: "clamp", ...strength })}>
              Steer with it, ${number(strength.value, 2)} × ${hasMaximum ? "its maximum" : "the stream's length"}
            </button>`
      }
      <button onClick=${() => (focus.value = edit?.feature ?? feature)}>Show it in the text</button>
    </div>
    <ul class="labels">
      ${known.labels.map(
        (/** @type {any} */ label) =>
          html`<li>
            ${label.text}${" "}<span class="quiet"
              >by ${label.source}${label.score === null ? "" : `, score ${number(label.score, 2)}`}</span
            >
          </li>`,
      )}
    </ul>
    <dl class="cost">
      <div>
        <dt><${Term} name="active at" /></dt>
        <dd>${percent(known.density)}</dd>
      </div>
      <div>
        <dt><${Term} name="maximum" /></dt>
        <dd>${number(known.max_act)}</dd>
      </div>
      <div>
        <dt>largest seen</dt>
        <dd>${number(known.top_act)}</dd>
      </div>
      <div>
        <dt><${Term} name="output score" /></dt>
        <dd>${number(known.output_score, 2)}</dd>
      </div>
    </dl>
    <${Histogram} known=${known} />
    ${
      known.density === null &&
      html`<${Notice} kind="info">
        Nothing was measured of it.
        <code>${`saeclamp label ${known.sae}=FOLDER --model MODEL --data TEXTS`}</code> counts where it is active, with
        maxima, examples, histogram and the tokens that it promotes;
        <code>${`saeclamp calibrate ${known.sae}=FOLDER --model MODEL --features ${known.index}=NAME`}</code> finds
        strengths that work.
      <//>`
    }
    <h3>Strength</h3>
    <${Curve} known=${known} value=${edit && edit.unit === "max_act" && edit.op !== "scale" ? edit.value : null} />
    <${Evidence} evidence=${known.evidence} />
    <h3>Try a text</h3>
    <${TryText} feature=${feature} most=${known.max_act ?? 0} />
    ${
      known.top_logits &&
      html`<h3>What it promotes, and what it holds back</h3>
        <div class="two">
          <${Logits} logits=${known.top_logits} />
          <${Logits} logits=${known.bottom_logits ?? []} />
        </div>`
    }
    ${
      known.examples?.length > 0 &&
      html`<h3>Where it is active</h3>
        <${Examples} known=${known} />`
    }
    ${
      known.neighbours?.length > 0 &&
      html`<h3>Neighbours</h3>
        <ul>
          ${known.neighbours.slice(0, 6).map(
            (/** @type {any} */ one) =>
              html`<li>
                <button class="link" onClick=${() => (drawer.value = one.feature)}>${title(one)}</button>
                <span class="quiet"> ${one.feature}, cosine ${number(one.cosine, 2)}</span>
              </li>`,
          )}
        </ul>`
    }
  `;
}

/** @param {{evidence: Record<string, string | number> | null}} props */
function Evidence({ evidence }) {
  if (!evidence) return null;
  const words = Object.entries(evidence).map(
    ([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" ? number(value) : value}`,
  );
  return html`<p class="quiet">Evidence: ${words.join(", ")}.</p>`;
}

/** @param {{logits: any[]}} props */
function Logits({ logits }) {
  return html`<ol class="logits">
    ${logits.slice(0, 8).map((/** @type {any} */ one) => html`<li><span class="chip mono">${visible(one.token)}</span> ${number(one.value, 2)}</li>`)}
  </ol>`;
}

/** @param {{known: any}} props */
function Examples({ known }) {
  const quantiles = [...new Set(known.examples.map((/** @type {any} */ one) => one.quantile))];
  return html`${quantiles.map(
    (quantile) =>
      html`<details open=${quantile === quantiles[0]}>
        <summary>${quantileInWords(Number(quantile))}</summary>
        ${known.examples
          .filter((/** @type {any} */ one) => one.quantile === quantile)
          .slice(0, 6)
          .map(
            (/** @type {any} */ one) => html`<${ExampleText} example=${one} most=${known.top_act ?? known.max_act} />`,
          )}
      </details>`,
  )}`;
}

/** @param {number} quantile */
function quantileInWords(quantile) {
  return quantile === 9
    ? "strongest tenth of its activations"
    : quantile < 0
      ? "not active"
      : `tenth ${quantile + 1} of 10`;
}

/** @param {{example: any, most: number}} props */
function ExampleText({ example, most }) {
  return html`<p class="tokens example">
    ${example.tokens.map(
      (/** @type {string} */ token, /** @type {number} */ place) =>
        html`<span class="token heat-${heatLevel(example.acts[place], most)}" title=${number(example.acts[place])}
          >${token}</span
        >`,
    )}
  </p>`;
}
