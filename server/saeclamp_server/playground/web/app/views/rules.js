/** Rules in plain language: when features are active, then stop or steer. */
import { textOf } from "../answer-state.js";
import { turns } from "../conversation.js";
import { ApiError, json } from "../api.js";
import { html, useSignal } from "../h.js";
import { number, tokensInWords, visible } from "../format.js";
import { addressOf, isKnown, presets } from "../server.js";
import { activeRules, isUnfinished, newRule, ruleToJson, rules, unfinishedRules } from "../state.js";
import { RuleForm } from "../components/rule-form.js";
import { Notice, Refusal } from "../components/notice.js";
import { Progress } from "../components/progress.js";
import { heatLevel } from "../components/token-text.js";
import { useTask } from "../components/use-task.js";

const NUM_HIGHEST = 5;

export function Rules() {
  const [example] = presets.value;
  return html`<div class="stack">
    <p>
      A rule watches the model while it writes, and stops the answer, or steers, where features are as active as it
      says. It sees activations as they are before any edit. Rules go with the steered column; under each answer stands
      where they held.
    </p>
    ${rules.value.map((rule) => html`<${RuleForm} key=${rule.id} rule=${rule} />`)}
    ${!rules.value.length && html`<p class="quiet">None yet.</p>`}
    <div class="row wrap">
      <button class="main" onClick=${() => (rules.value = [...rules.value, newRule()])}>Add a rule</button>
      ${
        example &&
        !rules.value.length &&
        html`<button onClick=${() => (rules.value = [newRule(addressOf(example))])}>
          For example: stop when it is about “${example.description ?? example.name}”
        </button>`
      }
    </div>
    ${rules.value.length > 0 && html`<${TryRules} />`}
  </div>`;
}

/** The rules, tried on a text: the model reads it, and says at which tokens they hold. */
function TryRules() {
  const text = useSignal("");
  const fault = useSignal("");
  const refusal = useSignal(/** @type {ApiError | null} */ (null));
  const read = useSignal(/** @type {string[]} */ ([]));
  const { state, start, stop } = useTask("v1/features/inspect");
  const active = activeRules.value;
  const look = (/** @type {Event} */ event) => {
    event.preventDefault();
    const features = [...new Set(active.flatMap((rule) => rule.tests.map((test) => test.feature)).filter(isKnown))];
    fault.value = features.length ? "" : "Name a feature in a rule first.";
    read.value = features;
    if (features.length && text.value.trim()) start({ text: text.value, features });
    check();
  };
  // what the server would refuse must not be said to act
  const check = async () => {
    refusal.value = null;
    if (unfinishedRules.value.length) return;
    try {
      await json("v1/steering/validate", { body: { steering: { rules: active.map(ruleToJson) } } });
    } catch (failure) {
      if (failure instanceof ApiError) refusal.value = failure;
      else throw failure;
    }
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
    <p class="quiet">The text is read by itself, with no question before it.</p>
    ${fault.value && html`<${Notice} kind="warn">${fault.value}<//>`}
    ${refusal.value && html`<${Refusal} error=${refusal.value} />`}
    <${Progress} task=${state.value} stop=${stop} />
    ${
      found &&
      active.map((rule) =>
        rule.tests.every((test) => read.value.includes(test.feature))
          ? html`<${Tried} rule=${rule} found=${found} works=${!refusal.value && !isUnfinished(rule)} />`
          : html`<p class="quiet">${rule.name} has changed: try again.</p>`,
      )
    }
  </section>`;
}

/** @param {{rule: import("../state.js").Rule, found: any, works: boolean}} props works: whether the server would take the rule */
function Tried({ rule, found, works }) {
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
  const first = holds.indexOf(true);
  const would = rule.then === "abort" ? "the answer would end before the first of them" : "it would act there";
  const what = works ? would : "it would do nothing, see above";
  const act = (/** @type {any} */ token) => token.features?.[rule.tests[0].feature] ?? 0;
  const maximum = maxima.get(rule.tests[0].feature) ?? Math.max(...found.tokens.map(act));
  const highest = [...found.tokens].sort((one, other) => act(other) - act(one)).slice(0, NUM_HIGHEST);
  return html`<div>
    <p>
      <strong>${rule.name}</strong>${": "}
      ${num ? `holds at ${tokensInWords(num)}, first at “${visible(found.tokens[first].text)}”; ${what}.` : "holds nowhere in this text."}
    </p>
    <p class="tokens example">
      ${found.tokens.map(
        (/** @type {any} */ token, /** @type {number} */ place) =>
          html`<span
            class=${`token heat-${heatLevel(act(token), maximum)} ${holds[place] ? "fired" : ""}`}
            title=${number(act(token))}
            >${token.text}</span
          >`,
      )}
    </p>
    <p class="quiet">
      ${`Highest of ${rule.tests[0].feature}: ${highest.map((token) => `“${visible(token.text)}” ${inMaxima(act(token), maxima.get(rule.tests[0].feature))}`).join(", ")}.`}
    </p>
    <details>
      <summary class="quiet">as JSON</summary>
      <pre>${JSON.stringify(ruleToJson(rule), null, 1)}</pre>
    </details>
  </div>`;
}

/** @param {number} act @param {number | undefined} maximum */
function inMaxima(act, maximum) {
  return maximum ? `${number(act)} (${number(act / maximum, 2)} × its maximum)` : number(act);
}
