/** Finding features: by words and meaning, in a text, by contrast, and by a wish. */
import { html, useSignal } from "../h.js";
import { ByContrast } from "../components/find-contrast.js";
import { InText } from "../components/find-text.js";
import { ByWish } from "../components/find-wish.js";
import { ByWords } from "../components/find-words.js";

const WAYS = /** @type {[string, string, any][]} */ ([
  ["words", "By words", ByWords],
  ["text", "In a text", InText],
  ["contrast", "By contrast", ByContrast],
  ["wish", "By a wish", ByWish],
]);

export function Find() {
  const way = useSignal("words");
  return html`<div class="stack">
    <div class="row wrap" role="group" aria-label="Ways to find a feature">
      ${WAYS.map(
        ([name, title]) =>
          html`<button aria-pressed=${way.value === name} onClick=${() => (way.value = name)}>${title}</button>`,
      )}
    </div>
    <p class="quiet">
      What fires on a subject is often not what brings it about: prefer features that were found to steer.
    </p>
    ${WAYS.map(([name, , Way]) => html`<div hidden=${way.value !== name}><${Way} /></div>`)}
  </div>`;
}
