/** Where the page begins. */
import { effect, html, render } from "./h.js";
import { App } from "./components/app.js";
import { openLink } from "./link.js";
import { load, status, watch } from "./server.js";

let isOpened = false;
// when the server has been found: a tab that is new may have to ask for a key first
effect(() => {
  if (status.value !== "ready" || isOpened) return;
  isOpened = true;
  queueMicrotask(() => openLink(location.hash));
});
addEventListener("hashchange", () => openLink(location.hash));

render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
watch();
load();
