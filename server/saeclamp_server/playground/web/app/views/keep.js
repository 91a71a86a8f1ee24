/** What is to outlast the page: a model name, a vector, code, a link, a file. */
import { obstacle, turns } from "../conversation.js";
import { html, useSignal } from "../h.js";
import { codeFor } from "../code.js";
import { makeLink } from "../link.js";
import { draft, edits, rules, steering } from "../state.js";
import { transcript, toCsv } from "../export.js";
import { KeepVariants } from "../components/keep-variants.js";
import { KeepVectors } from "../components/keep-vectors.js";
import { Notice } from "../components/notice.js";
import { Copy, download } from "../components/save.js";

export function Keep() {
  return html` ${obstacle.value && html`<${Notice} kind="bad">${obstacle.value} What stands below is without it.<//>`}
    <div class="two">
      <${KeepVariants} />
      <${Code} />
      <${Link} />
      <${Files} />
      <${KeepVectors} />
    </div>`;
}

function Code() {
  const form = useSignal("curl");
  const code = codeFor(draft.value, turns.value.at(-1)?.answers.steered?.[0]?.messages ?? []);
  return html`<section class="card stack">
    <h2>As code</h2>
    <div class="row wrap" role="group" aria-label="Form of the code">
      ${Object.keys(code).map(
        (name) =>
          html`<button class="small" aria-pressed=${form.value === name} onClick=${() => (form.value = name)}>
            ${name}
          </button>`,
      )}
    </div>
    <pre tabindex="0" role="region" aria-label="The code">${code[form.value]}</pre>
    <div><${Copy} text=${() => code[form.value]} /></div>
  </section>`;
}

function Link() {
  const link = makeLink(turns.value.map((turn) => turn.user));
  return html`<section class="card stack">
    <h2>As a link</h2>
    <p class="quiet">
      What is set and what was asked, without the answers: whoever opens it runs it with one click. It is in the part of
      the address that no server sees.
    </p>
    <input aria-label="Link" readonly value=${link} onFocus=${(/** @type {any} */ event) => event.target.select()} />
    <div><${Copy} text=${() => link} /></div>
  </section>`;
}

function Files() {
  const fault = useSignal("");
  const saveCsv = () => {
    fault.value = "";
    try {
      download(
        "steering.csv",
        toCsv(
          edits.value.filter((edit) => !edit.off),
          rules.value.some((rule) => !rule.off),
        ),
        "text/csv",
      );
    } catch (error) {
      fault.value = error instanceof Error ? error.message : String(error);
    }
  };
  return html`<section class="card stack">
    <h2>As files</h2>
    <div class="row wrap">
      <button
        disabled=${!turns.value.length}
        onClick=${() => download("transcript.json", JSON.stringify(transcript(), null, 1))}
      >
        Transcript with receipts
      </button>
      <button
        disabled=${!steering.value}
        onClick=${() => download("steering.json", JSON.stringify(steering.value, null, 1))}
      >
        Steering as JSON
      </button>
      <button disabled=${!edits.value.length} onClick=${saveCsv}>Steering for lm-eval</button>
    </div>
    ${fault.value && html`<${Notice} kind="warn">${fault.value}<//>`}
  </section>`;
}
