/** Where the page begins. */
import { html, render } from "./h.js";
import { App } from "./components/app.js";
import { openLink } from "./link.js";
import { load, status, watch } from "./server.js";

render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
await load();
watch();
if (status.value === "ready") openLink(location.hash);
