/** Where the page begins. */
import { effect, html, render } from "./h.js";
import { App } from "./components/app.js";
import { turns } from "./conversation.js";
import { keepState, openLink, restoreState } from "./link.js";
import { load, status, watch } from "./server.js";
import { view } from "./state.js";

let isOpened = false;
// when the server has been found: a tab that is new may have to ask for a key first
effect(() => {
  if (status.value !== "ready" || isOpened) return;
  isOpened = true;
  queueMicrotask(restoreState);
});
addEventListener("hashchange", () => openLink(location.hash));
// so that Back goes to the view before, and not away from the page
history.replaceState({ view: view.value }, "");
effect(() => {
  if (history.state?.view !== view.value) history.pushState({ view: view.value }, "");
});
addEventListener("popstate", (event) => {
  if (event.state?.view) view.value = event.state.view;
});
addEventListener("pagehide", () => {
  if (isOpened) keepState(turns.value.map((turn) => turn.user));
});

render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
watch();
load();
