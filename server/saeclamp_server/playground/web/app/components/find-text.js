/** What is active in a text: a map of it, and the features of a token or of the whole. */
import { html, useSignal } from "../h.js";
import { number, visible } from "../format.js";
import { Hit } from "./hit.js";
import { Progress } from "./progress.js";
import { heatLevel } from "./token-text.js";
import { useTask } from "./use-task.js";

const NUM_STRONGEST = 8;

export function InText() {
  const text = useSignal("");
  const chosen = useSignal(/** @type {string | null} */ (null));
  const token = useSignal(/** @type {number | null} */ (null));
  const { state, start, stop } = useTask("v1/features/inspect");
  const found = state.value.result;
  const shown = mapOf(found, chosen.value) ?? found?.features[0];
  const look = (/** @type {Event} */ event) => {
    event.preventDefault();
    chosen.value = token.value = null;
    if (text.value.trim()) start({ text: text.value, limit: 30, top_k: NUM_STRONGEST, order: "tf_idf" });
  };
  return html`<form class="stack" onSubmit=${look}>
      <label>
        <span class="unseen">Text to look into</span>
        <textarea
          rows="4"
          value=${text}
          placeholder="Paste a text: which features are active in it, and where?"
          onInput=${(/** @type {any} */ event) => (text.value = event.target.value)}
        ></textarea>
      </label>
      <div><button class="main">Look</button></div>
    </form>
    <${Progress} task=${state.value} stop=${stop} />
    ${
      found &&
      shown &&
      html`<div class="stack">
        <p class="quiet">
          ${shown.feature}, at most ${number(shown.max)} here.
          ${found.features.some((/** @type {any} */ one) => one.density !== null) ? "Below, what is most unusual for a text comes first." : "Below, the strongest come first: without labels nobody knows which are unusual."}
          Choose a token to see its features.
        </p>
        <p class="tokens card">
          ${found.tokens.map(
            (/** @type {any} */ one, /** @type {number} */ place) =>
              html`<button
                class="token bare heat-${heatLevel(shown.acts?.[place], shown.max)}"
                title=${number(shown.acts?.[place])}
                aria-pressed=${token.value === place}
                onClick=${() => (token.value = place)}
              >
                ${one.text}
              </button>`,
          )}
        </p>
        ${token.value !== null && html`<${OfToken} token=${found.tokens[token.value]} onChoose=${(/** @type {string} */ name) => (chosen.value = name)} />`}
        <ul class="hits two">
          ${found.features.map(
            (/** @type {any} */ hit) =>
              html`<${Hit} key=${hit.feature} hit=${hit}>
                <p class="quiet">
                  at most ${number(hit.max)}, ${number(100 * hit.frequency, 2)} % of the tokens
                  <button class="small" aria-pressed=${shown === hit} onClick=${() => (chosen.value = hit.feature)}>
                    Map
                  </button>
                </p>
              <//>`,
          )}
        </ul>
      </div>`
    }
    ${found && !shown && html`<p>Nothing is active in this text.</p>`}`;
}

/**
 * A feature's activations at all tokens: of one that is listed, or, as far as it is among a token's strongest, of another.
 *
 * @param {any} found
 * @param {string | null} feature
 */
function mapOf(found, feature) {
  if (!found || !feature) return undefined;
  const listed = found.features.find((/** @type {any} */ one) => one.feature === feature);
  if (listed) return listed;
  const [sae, index] = feature.split("/");
  const acts = found.tokens.map(
    (/** @type {any} */ token) =>
      token.top[sae]?.find((/** @type {any} */ one) => one.index === Number(index))?.act ?? 0,
  );
  return { feature, acts, max: Math.max(...acts) };
}

/** @param {{token: any, onChoose: (feature: string) => void}} props */
function OfToken({ token, onChoose }) {
  const strongest = Object.entries(token.top ?? {}).flatMap(([sae, found]) =>
    found.map((/** @type {any} */ one) => ({ feature: `${sae}/${one.index}`, name: one.name, act: one.act })),
  );
  const none = token.read ? "nothing is active." : "it is not read: its stream is like no other's.";
  return html`<p class="card spaced">
    <span class="mono">${visible(token.text)}</span>: ${strongest.length ? "" : none}
    ${strongest.map(
      ({ feature, name, act }) =>
        html`<button class="link" onClick=${() => onChoose(feature)}>${feature}${name ? ` ${name}` : ""}</button>
          ${number(act)}${"; "}`,
    )}
  </p>`;
}
