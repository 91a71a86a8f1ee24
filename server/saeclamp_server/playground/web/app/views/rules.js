/** Rules in plain language: when features are active, then stop or steer. */
import { textOf } from "../answer-state.js";
import { turns } from "../conversation.js";
import { html, useSignal } from "../h.js";
import { number, visible } from "../format.js";
import { nextId, ruleToJson, rules } from "../state.js";
import { RuleForm } from "../components/rule-form.js";
import { Notice } from "../components/notice.js";
import { Progress } from "../components/progress.js";
import { useTask } from "../components/use-task.js";

/** @returns {import("../state.js").Rule} */
function newRule() {
  const used = new Set(rules.value.map((rule) => rule.name));
  let numbered = rules.value.length + 1;
  while (used.has(`rule-${numbered}`)) numbered++;
  return {
    id: nextId(),
    name: `rule-${numbered}`,
    join: "all",
    tests: [{ feature: "", op: "above", value: 0.5, unit: "max_act" }],
    then: "abort",
    scope: "token",
    tokens: "generated",
    edit: { feature: "", op: "ablate", value: 0, unit: "max_act" },
    off: false,
  };
}

export function Rules() {
  const firings = turns.value.flatMap((turn) =>
    Object.values(turn.answers).flatMap((answers) =>
      answers.flatMap((answer) => answer.state.value.receipt?.fired ?? []),
    ),
  );
  return html`<div class="stack">
    <p>A rule looks at every token, and acts where its features are active. Rules go with the steered column.</p>
    ${rules.value.map((rule) => html`<${RuleForm} key=${rule.id} rule=${rule} />`)}
    ${!rules.value.length && html`<p class="quiet">None yet.</p>`}
    <div><button class="main" onClick=${() => (rules.value = [...rules.value, newRule()])}>Add a rule</button></div>
    ${rules.value.length > 0 && html`<${TryRules} />`}
    ${
      firings.length > 0 &&
      html`<h2>In this conversation</h2>
        <ul>
          ${firings.map((fired) => html`<li>${fired.rule} held at token ${fired.token} (${number(fired.value)}), ${fired.num_tokens} in all</li>`)}
        </ul>`
    }
  </div>`;
}

/** The rules, tried on a text: the model reads it, and says at which tokens they hold. */
function TryRules() {
  const text = useSignal("");
  const fault = useSignal("");
  const read = useSignal(/** @type {string[]} */ ([]));
  const { state, start, stop } = useTask("v1/features/inspect");
  const active = rules.value.filter((rule) => !rule.off);
  const look = (/** @type {Event} */ event) => {
    event.preventDefault();
    const features = [...new Set(active.flatMap((rule) => rule.tests.map((test) => test.feature)).filter(Boolean))];
    fault.value = features.length ? "" : "Name a feature in a rule first.";
    read.value = features;
    if (features.length && text.value.trim()) start({ text: text.value, features });
  };
  const lastAnswer = turns.value.at(-1)?.answers.steered?.[0];
  const found = state.value.result;
  return html`<section class="card stack">
    <h2>Try them on a text</h2>
    <form class="stack" onSubmit=${look}>
      <label>
        <span class="unseen">Text to try the rules on</span>
        <textarea
          rows="3"
          value=${text}
          onInput=${(/** @type {any} */ event) => (text.value = event.target.value)}
        ></textarea>
      </label>
      <div class="row wrap">
        <button class="main">Try</button>
        ${
          lastAnswer &&
          html`<button type="button" onClick=${() => (text.value = textOf(lastAnswer.state.value))}>
            Take the last steered answer
          </button>`
        }
      </div>
    </form>
    ${fault.value && html`<${Notice} kind="warn">${fault.value}<//>`}
    <${Progress} task=${state.value} stop=${stop} />
    ${
      found &&
      active.map((rule) =>
        rule.tests.every((test) => read.value.includes(test.feature))
          ? html`<${Tried} rule=${rule} found=${found} />`
          : html`<p class="quiet">${rule.name} has changed: try again.</p>`,
      )
    }
  </section>`;
}

/** @param {{rule: import("../state.js").Rule, found: any}} props */
function Tried({ rule, found }) {
  // asked for by name or by number, and answered by number
  const maxima = new Map(
    found.features.flatMap((/** @type {any} */ one) => [
      [one.feature, one.max_act],
      [`${one.sae}/${one.name}`, one.max_act],
    ]),
  );
  const holds = found.tokens.map((/** @type {any} */ token) => {
    if (token.read === false) return false;
    const verdicts = rule.tests.map((test) => {
      const act = token.features?.[test.feature] ?? 0;
      const bound = test.unit === "max_act" ? test.value * (maxima.get(test.feature) ?? NaN) : test.value;
      return test.op === "above" ? act > bound : act < bound;
    });
    return rule.join === "all" ? verdicts.every(Boolean) : verdicts.some(Boolean);
  });
  const num = holds.filter(Boolean).length;
  const where = num === 1 ? "one token" : `${num} tokens`;
  const first = holds.indexOf(true);
  const what = rule.then === "abort" ? "the answer would end before the first of them" : "it would act there";
  return html`<div>
    <p>
      <strong>${rule.name}</strong>${": "}
      ${num ? `holds at ${where}, first at “${visible(found.tokens[first].text)}”; ${what}.` : "holds nowhere in this text."}
    </p>
    <p class="tokens example">
      ${found.tokens.map(
        (/** @type {any} */ token, /** @type {number} */ place) =>
          html`<span class=${holds[place] ? "token fired" : "token"}>${token.text}</span>`,
      )}
    </p>
    <details>
      <summary class="quiet">as JSON</summary>
      <pre>${JSON.stringify(ruleToJson(rule), null, 1)}</pre>
    </details>
  </div>`;
}
