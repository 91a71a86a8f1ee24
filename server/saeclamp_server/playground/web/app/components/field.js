/** Labelled inputs. */
import { html, useSignal } from "../h.js";

/**
 * What is typed and not taken over yet, which a redraw in between must not take away.
 *
 * @param {string | number} value as it is taken over
 */
export function useTyped(value) {
  const typed = useSignal(/** @type {string | null} */ (null));
  return {
    shown: typed.value ?? value,
    onInput: (/** @type {any} */ event) => (typed.value = event.target.value),
    done: () => (typed.value = null),
  };
}

/**
 * @param {{label: string, value: number, onChange: (value: number) => void, min?: number, max?: number, step?: number,
 *   hidden?: boolean}} props
 */
export function NumberField({ label, value, onChange, min, max, step = 1, hidden = false }) {
  const { shown, onInput, done } = useTyped(value);
  /** @param {any} event */
  const change = (event) => {
    done();
    const typed = event.target.valueAsNumber;
    if (Number.isFinite(typed))
      onChange(Math.min(Math.max(step === 1 ? Math.round(typed) : typed, min ?? -Infinity), max ?? Infinity));
    else event.target.value = value;
  };
  return html`<label class="field">
    <span class=${hidden ? "unseen" : ""}>${label}</span>
    <input type="number" value=${shown} min=${min} max=${max} step=${step} onInput=${onInput} onChange=${change} />
  </label>`;
}

/**
 * @param {{label: string, value: string, options: Record<string, string>, onChange: (value: string) => void,
 *   hidden?: boolean}} props
 */
export function Choice({ label, value, options, onChange, hidden = false }) {
  return html`<label class="field">
    <span class=${hidden ? "unseen" : ""}>${label}</span>
    <select value=${value} onChange=${(/** @type {any} */ event) => onChange(event.target.value)}>
      ${Object.entries(options).map(([name, words]) => html`<option value=${name}>${words}</option>`)}
    </select>
  </label>`;
}
