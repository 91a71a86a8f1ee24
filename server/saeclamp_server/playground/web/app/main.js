/** Where the page begins. */
import { effect, html, render } from "./h.js";
import { App } from "./components/app.js";
import { turns } from "./conversation.js";
import { keepState, openLink, restoreState } from "./link.js";
import { load, status, watch } from "./server.js";

let isOpened = false;
// when the server has been found: a tab that is new may have to ask for a key first
effect(() => {
  if (status.value !== "ready" || isOpened) return;
  isOpened = true;
  queueMicrotask(restoreState);
});
addEventListener("hashchange", () => openLink(location.hash));
addEventListener("pagehide", () => {
  if (isOpened) keepState(turns.value.map((turn) => turn.user));
});

render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
watch();
load();
