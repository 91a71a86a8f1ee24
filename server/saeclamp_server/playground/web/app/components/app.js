/** The page's frame: its head, the view that is chosen, and what stands above all views. */
import { ApiError, apiKey, isGone, needsKey, useKey } from "../api.js";
import { html, useSignal } from "../h.js";
import { load, servedModel, status } from "../server.js";
import { announcements, drawer, view, VIEWS } from "../state.js";
import { Find } from "../views/find.js";
import { Keep } from "../views/keep.js";
import { Rules } from "../views/rules.js";
import { Server } from "../views/server.js";
import { Steer } from "../views/steer.js";
import { FeatureDrawer } from "./feature-drawer.js";
import { Notice } from "./notice.js";

const TITLES = { steer: "Steer", find: "Find", rules: "Rules", keep: "Keep", server: "Server" };
const PAGES = { steer: Steer, find: Find, rules: Rules, keep: Keep, server: Server };

export function App() {
  return html`
    <a class="skip" href="#main">To the content</a>
    <header class="head">
      <h1>saeclamp <span class="quiet">${servedModel}</span></h1>
      <nav aria-label="Views">
        ${VIEWS.map(
          (name) =>
            html`<button
              class="tab"
              aria-current=${view.value === name ? "page" : null}
              onClick=${() => (view.value = name)}
            >
              ${TITLES[name]}
            </button>`,
        )}
      </nav>
    </header>
    ${
      isGone.value &&
      html`<${Notice} kind="bad">The server cannot be reached. The page goes on by itself when it is back.<//>`
    }
    <main id="main" tabindex="-1">${needsKey.value ? html`<${KeyForm} />` : html`<${Body} />`}</main>
    ${drawer.value && html`<${FeatureDrawer} feature=${drawer.value} key=${drawer.value} />`}
    <div class="unseen" role="log">${announcements.value.map(({ id, words }) => html`<p key=${id}>${words}</p>`)}</div>
  `;
}

function Body() {
  const now = status.value;
  if (now === "loading") return html`<p class="quiet pad" role="status">Asking the server what it has …</p>`;
  if (now instanceof ApiError) {
    return html`<${Notice} kind="bad"> ${now.message} <button onClick=${load}>Try again</button> <//>`;
  }
  const Page = PAGES[view.value];
  return html`<${Page} />`;
}

function KeyForm() {
  const typed = useSignal("");
  /** @param {SubmitEvent} event */
  const submit = (event) => {
    event.preventDefault();
    useKey(typed.value.trim());
    load();
  };
  return html`
    <form class="card narrow" onSubmit=${submit}>
      <h2>This server wants a key</h2>
      ${apiKey.value && html`<p class="bad-text">The key that was given is not one of the server's.</p>`}
      <label>
        API key
        <input
          type="password"
          autocomplete="off"
          value=${typed}
          onInput=${(/** @type {any} */ event) => (typed.value = event.target.value)}
          required
        />
      </label>
      <p class="quiet">It is kept in this tab alone, and sent to this server alone.</p>
      <button class="main">Go on</button>
    </form>
  `;
}
