/** Handing things to the user: a file to keep, a text to the clipboard. */
import { html, useSignal } from "../h.js";

/** @param {string} name @param {string} content @param {string} type */
export function download(name, content, type = "application/json") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** @param {{text: () => string, label?: string, small?: boolean}} props */
export function Copy({ text, label = "Copy", small = false }) {
  const said = useSignal("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text());
      said.value = "Copied.";
    } catch {
      said.value = "The browser does not let the page copy here; mark the text and copy it.";
    }
    setTimeout(() => (said.value = ""), 3000);
  };
  return html`<button type="button" class=${small ? "small" : ""} onClick=${copy}>${label}</button>
    <span role="status">${said}</span>`;
}
