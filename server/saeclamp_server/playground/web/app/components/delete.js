/** A button that asks before it deletes. */
import { html, useSignal } from "../h.js";

/** @param {{name: string, onDelete: () => void}} props */
export function Delete({ name, onDelete }) {
  const isSure = useSignal(false);
  if (!isSure.value) {
    return html`<button class="small" onClick=${() => (isSure.value = true)}>
      Delete<span class="unseen"> ${name}</span>
    </button>`;
  }
  return html`<button class="small" onClick=${onDelete}>Delete for good</button>
    <button class="small" onClick=${() => (isSure.value = false)}>Keep</button>`;
}
