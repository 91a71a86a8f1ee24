/** By a wish: the server thinks of features, tries them, and says whether one works. */
import { html, useSignal } from "../h.js";
import { number } from "../format.js";
import { newEdit, edits, rules, view } from "../state.js";
import { Hit } from "./hit.js";
import { Notice } from "./notice.js";
import { Progress } from "./progress.js";
import { useTask } from "./use-task.js";

export function ByWish() {
  const wish = useSignal("");
  const { state, start, stop } = useTask("v1/features/suggest", true);
  const found = state.value.result;
  const look = (/** @type {Event} */ event) => {
    event.preventDefault();
    start({ wish: wish.value });
  };
  const take = () => {
    edits.value = found.steering.interventions.map((/** @type {any} */ one) =>
      newEdit({ feature: one.feature, op: one.op, value: one.value ?? 1, unit: one.unit ?? "max_act" }),
    );
    rules.value = [];
    view.value = "steer";
  };
  return html`<form class="row" onSubmit=${look}>
      <label class="grow">
        <span class="unseen">What answers should do</span>
        <input
          value=${wish}
          placeholder="talk about the sea"
          minlength="3"
          maxlength="500"
          required
          onInput=${(/** @type {any} */ event) => (wish.value = event.target.value)}
        />
      </label>
      <button class="main">Try</button>
    </form>
    <p class="quiet">It tries features on questions of its own and holds them against random ones: minutes on a CPU.</p>
    <${Progress} task=${state.value} stop=${stop} />
    ${
      found &&
      html`<div class="stack">
        ${
          found.outcome === "found"
            ? html`<${Notice} kind="info">
                Found. <button class="main" onClick=${take}>Steer with it</button>
                ${found.best && html`<p>It gains ${number(found.best.gain)}, random features ${number(found.best.control)}, p ${number(found.best.p, 2)}.</p>`}
                ${found.example && html`<blockquote>${found.example}</blockquote>`}
              <//>`
            : html`<${Notice} kind="warn">${found.note ?? "Nothing was found that works."}<//>`
        }
        <ul class="hits two">
          ${[...found.chosen, ...found.alternatives].map(
            (/** @type {any} */ hit) =>
              html`<${Hit} key=${hit.feature} hit=${hit}>${hit.reason && html`<p class="quiet">${hit.reason}</p>`}<//>`,
          )}
        </ul>
      </div>`
    }`;
}
