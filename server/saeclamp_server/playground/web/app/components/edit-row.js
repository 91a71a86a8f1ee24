/** One intervention: what is moved, how, and how far. */
import { html, useEffect, useSignal } from "../h.js";
import { directionInWords, OPS, SCOPES, title } from "../format.js";
import { feature as lookUp } from "../server.js";
import { changeEdit, drawer, focus, heatFeature, removeEdit, UNMEASURED } from "../state.js";
import { Choice, NumberField } from "./field.js";
import { Curve, zoneInWords, ZoneTrack } from "./zones.js";

const LEAST = -1;
const UNITS = { max_act: "× its maximum", act: "in the SAE's units", resid_norm: "× the stream's length" };
const VECTOR_UNITS = { act: "× the vector", resid_norm: "× the stream's length" };

/** @param {{edit: import("../state.js").Edit}} props */
export function EditRow({ edit }) {
  const known = useSignal(/** @type {any} */ (null));
  const fault = useSignal("");
  const name = edit.vector ?? edit.feature ?? "";
  const change = (/** @type {Partial<import("../state.js").Edit>} */ part) => changeEdit(edit.id, part);
  useEffect(() => {
    if (!edit.feature) return;
    lookUp(edit.feature).then(
      (found) => {
        known.value = found;
        // without labels there is no maximum to give a strength in
        if (found.max_act === null && edit.unit === "max_act") change(UNMEASURED);
      },
      (error) => (fault.value = error.message),
    );
  }, [edit.feature]);
  const words = known.value ? title(known.value) : name;
  const hasValue = edit.op !== "ablate";
  // zones were found by clamping
  const isClamp = edit.unit === "max_act" && edit.op === "clamp";
  return html`<li class="edit ${edit.off ? "off" : ""}">
    <p class="spaced"><strong>${words}</strong><span class="quiet mono">${words === name ? "" : name}</span></p>
    <div class="row wrap">
      <button
        class="small"
        aria-pressed=${heatFeature.value === edit.feature}
        disabled=${!edit.feature}
        onClick=${() => (focus.value = focus.value === edit.feature ? null : (edit.feature ?? null))}
        title="Show in the text where this feature is active"
      >
        In the text
      </button>
      ${
        edit.feature &&
        html`<button class="small" onClick=${() => (drawer.value = edit.feature ?? null)}>
          About<span class="unseen"> ${words}</span>
        </button>`
      }
      <button class="small" onClick=${() => removeEdit(edit.id)}>Remove<span class="unseen"> ${words}</span></button>
    </div>
    ${fault.value && html`<p class="bad-text" role="alert">${fault.value}</p>`}
    <div class="row wrap">
      <${Choice}
        label="What to do"
        hidden
        value=${edit.op}
        options=${OPS}
        onChange=${(/** @type {string} */ op) =>
          // a strength is no factor, and a factor no strength
          change(
            op === "scale" || edit.op === "scale"
              ? { op, value: op === "scale" ? 2 : (known.value?.best ?? 1) }
              : { op },
          )}
      />
      ${
        hasValue &&
        html`<${NumberField}
          label="Value"
          hidden
          step=${0.05}
          value=${edit.value}
          onChange=${(/** @type {number} */ value) => change({ value })}
        />`
      }
      ${
        hasValue &&
        edit.op !== "scale" &&
        html`<${Choice}
          label="Unit"
          hidden
          value=${edit.unit}
          options=${edit.vector ? VECTOR_UNITS : UNITS}
          onChange=${(/** @type {string} */ unit) => change({ unit })}
        />`
      }
      <${Choice}
        label="Where"
        hidden
        value=${edit.tokens}
        options=${SCOPES}
        onChange=${(/** @type {string} */ tokens) => change({ tokens })}
      />
      <label class="check">
        <input type="checkbox" checked=${!edit.off} onChange=${() => change({ off: !edit.off })} /> on
      </label>
    </div>
    ${isClamp && html`<${Slider} edit=${edit} known=${known.value} words=${words} change=${change} />`}
    ${
      (edit.off || !isClamp || edit.value <= 0) &&
      html`<p class="quiet">${edit.off ? "Off: this changes nothing." : directionInWords(edit.value, edit.op)}</p>`
    }
  </li>`;
}

/**
 * @param {{edit: import("../state.js").Edit, known: any, words: string,
 *   change: (part: Partial<import("../state.js").Edit>) => void}} props
 */
function Slider({ edit, known, words, change }) {
  const most = Math.max(2, ...(known?.curve ?? []).map((/** @type {any} */ point) => Number(point.strength ?? 0) || 0));
  const zone = zoneInWords(known, edit.value);
  return html`<div class="slider">
      <input
        type="range"
        aria-label=${`Strength of ${words}, in multiples of its maximum`}
        aria-valuetext=${`${edit.value}: ${zone.words}`}
        min=${LEAST}
        max=${most}
        step="0.05"
        value=${edit.value}
        onInput=${(/** @type {any} */ event) => change({ value: event.target.valueAsNumber })}
      />
      <${ZoneTrack} known=${known} least=${LEAST} most=${most} />
    </div>
    <p class="zone-words ${zone.kind}">
      <span class="swatch ${zone.kind}" aria-hidden="true"></span>${edit.value} × maximum: ${zone.words}
    </p>
    ${
      known?.curve &&
      html`<details>
        <summary class="quiet">Dose curve</summary>
        <${Curve} known=${known} value=${edit.value} />
      </details>`
    }`;
}
