/** What an answer costs: whether it is still text, and what to do where it is not. */
import { html } from "../h.js";
import { number, percent } from "../format.js";
import { BROKEN, REPEATED } from "../measures.js";
import { presetOf } from "../server.js";
import { changeEdit, edits } from "../state.js";
import { Notice } from "./notice.js";
import { Term } from "./term.js";

const STEP = 0.8;
const RAISING = ["clamp", "add", "at_least"];

/**
 * @param {{cost: NonNullable<import("../answer-state.js").AnswerState["cost"]>, baseline: number | null, isSteered: boolean, isCurrent: boolean,
 *   isDefault: boolean}} props
 *   baseline: perplexity of the default column's answer
 *   isCurrent: whether it is of the steering that is set now, so that there is something to lower
 */
export function Cost({ cost, baseline, isSteered, isCurrent, isDefault }) {
  const isUnlikely = cost.perplexity !== null && baseline !== null && cost.perplexity > BROKEN * baseline;
  const isRepeating = cost.repetition !== null && cost.repetition > REPEATED;
  return html`<dl class="cost">
      <div>
        <dt><${Term} name="perplexity" /></dt>
        <dd>${number(cost.perplexity, 2)}</dd>
      </div>
      <div>
        <dt><${Term} name="repetition" /></dt>
        <dd>${percent(cost.repetition)}</dd>
      </div>
      <div>
        <dt><${Term} name="distinct pairs" /></dt>
        <dd>${percent(cost.distinct2)}</dd>
      </div>
      ${
        cost.kl !== null &&
        !isDefault &&
        html`<div>
          <dt><${Term} name="KL" /></dt>
          <dd>${number(cost.kl, 2)}</dd>
        </div>`
      }
    </dl>
    ${isSteered && (isUnlikely || isRepeating) && html`<${Lower} isRepeating=${isRepeating} isCurrent=${isCurrent} />`}`;
}

/** @param {{isRepeating: boolean, isCurrent: boolean}} props */
function Lower({ isRepeating, isCurrent }) {
  const raised = edits.value.filter((edit) => !edit.off && RAISING.includes(edit.op) && Math.abs(edit.value) > 0.05);
  const isOneUnit = new Set(raised.map((edit) => edit.unit)).size === 1; // others cannot be compared
  const [strongest] = isOneUnit ? raised.sort((one, other) => Math.abs(other.value) - Math.abs(one.value)) : [];
  const zone = presetOf(strongest?.feature)?.green_zone;
  const [weakest, most] = zone && strongest?.unit === "max_act" && strongest.value > 0 ? zone : [0, Infinity];
  // into the zone that was found to work; below it, it would do too little
  const lower = strongest ? Number(Math.min(strongest.value * STEP, most).toFixed(2)) : 0;
  const canLower = strongest && Math.abs(lower) >= weakest;
  const what = isRepeating
    ? "The text repeats itself."
    : "The unsteered model finds this text unlikely, which a change of subject does too: read whether it is breaking.";
  return html`<${Notice} kind="warn">
    ${what}
    ${
      !isCurrent
        ? ""
        : canLower
          ? html`<button class="small" onClick=${() => changeEdit(strongest.id, { value: lower })}>
              ${strongest.value > 0 ? "Lower" : "Bring"} ${strongest.vector ?? strongest.feature} to ${lower}
            </button>`
          : zone && " It is as weak as it works; another question or seed may fare better."
    }
  <//>`;
}
