/**
 * What the user has set: interventions, rules, sampling, columns. All of it is in signals, so that whatever shows a part follows
 * it, and all of it but the conversation goes into a link.
 */
import { computed, signal } from "./h.js";
import { isKnown } from "./server.js";

/**
 * @typedef {object} Edit
 * @property {number} id of the row, on this page
 * @property {string} [feature] `<sae>/<index>` or `<sae>/<name>`
 * @property {string} [vector] in place of a feature
 * @property {string} op
 * @property {number} value in `unit`, or the factor of `scale`
 * @property {string} unit
 * @property {string} tokens
 * @property {boolean} off
 */

/**
 * @typedef {object} Rule
 * @property {number} id
 * @property {string} name
 * @property {"all" | "any"} join
 * @property {{feature: string, op: "above" | "below", value: number, unit: string}[]} tests
 * @property {"abort" | "edit"} then
 * @property {"token" | "rest_of_request"} scope
 * @property {string} tokens
 * @property {Omit<Edit, "id" | "off" | "tokens">} edit
 * @property {boolean} off
 */

/** What is asked where nothing has been, so that one click shows something. */
export const QUESTION = "How can I sleep better?";

export const VIEWS = /** @type {const} */ (["steer", "find", "rules", "keep", "server"]);
/** @typedef {typeof VIEWS[number]} View */

export const SAMPLING = {
  max_tokens: 60,
  temperature: 0,
  top_p: 1,
  repetition_penalty: 1.1,
  seed: 0,
  num_seeds: 1,
};

let lastId = 0;
export const nextId = () => ++lastId;

export const view = signal(/** @type {View} */ ("steer"));
export const edits = signal(/** @type {Edit[]} */ ([]));
export const rules = signal(/** @type {Rule[]} */ ([]));
export const sampling = signal({ ...SAMPLING });
export const system = signal("");
/** Words of the prompted column; null: no such column. */
export const prompted = signal(/** @type {string | null} */ (null));
/** Names of variants that have a column. */
export const variantColumns = signal(/** @type {string[]} */ ([]));
/** The feature whose activations are shown in the text. */
export const focus = signal(/** @type {string | null} */ (null));
/** The feature that the drawer shows. */
export const drawer = signal(/** @type {string | null} */ (null));
/** Words to look for, which another view asks for. */
export const wanted = signal("");
/** What stands in the box where a question is written. */
export const draft = signal("");
/** What a screen reader is told, the last few. */
export const announcements = signal(/** @type {{id: number, words: string}[]} */ ([]));

/** @param {string} words */
export function announce(words) {
  announcements.value = [...announcements.value.slice(-5), { id: nextId(), words }];
}

/** @param {Omit<Edit, "id" | "tokens">} edit */
function toIntervention(edit) {
  const of = edit.vector ? { vector: edit.vector } : { feature: edit.feature };
  if (edit.op === "ablate") return { op: "ablate", ...of };
  if (edit.op === "scale") return { op: "scale", ...of, factor: edit.value };
  return { op: edit.op, ...of, value: edit.value, unit: edit.unit };
}

/** @param {Rule} rule */
export function ruleToJson(rule) {
  const tests = rule.tests.map(({ feature, op, value, unit }) => ({ feature, [op]: value, unit }));
  return {
    name: rule.name,
    when: tests.length === 1 ? tests[0] : { [rule.join]: tests },
    then: rule.then === "abort" ? "abort" : [toIntervention({ ...rule.edit, off: false })],
    ...(rule.then === "edit" ? { scope: rule.scope } : {}),
    ...(rule.tokens === "all" ? {} : { tokens: rule.tokens }),
  };
}

/** Rules that are on. */
export const activeRules = computed(() => rules.value.filter((rule) => !rule.off));

/**
 * Rules that are on and name no feature of this server somewhere: nothing is asked until they do, or are off, or what they were
 * made to watch would pass.
 */
export const unfinishedRules = computed(() => activeRules.value.filter(isUnfinished));

/** Rules that go with the steered column. */
export const watchingRules = computed(() => activeRules.value.filter((rule) => !isUnfinished(rule)));

/** @param {Rule} rule */
export function isUnfinished(rule) {
  return [...rule.tests, ...(rule.then === "edit" ? [rule.edit] : [])].some((one) => !isKnown(one.feature));
}

/** The `steering` object as it stands, without what shows it; null where nothing is steered. */
export const steering = computed(() => {
  const interventions = edits.value
    .filter((edit) => !edit.off)
    .map((edit) => ({ ...toIntervention(edit), ...(edit.tokens === "all" ? {} : { tokens: edit.tokens }) }));
  const active = watchingRules.value.map(ruleToJson);
  if (!interventions.length && !active.length) return null;
  return { ...(interventions.length ? { interventions } : {}), ...(active.length ? { rules: active } : {}) };
});

/** The feature whose heat is shown: the one that was chosen, else the first that is steered. */
export const heatFeature = computed(
  () => focus.value ?? edits.value.find((edit) => !edit.off && edit.feature)?.feature ?? null,
);

/** What columns there are, from left to right. */
export const columns = computed(() => [
  { id: "default", title: "Default", kind: "default" },
  { id: "steered", title: "Steered", kind: "steered" },
  ...(prompted.value === null ? [] : [{ id: "prompted", title: "Prompted", kind: "prompted" }]),
  ...variantColumns.value.map((name) => ({ id: `variant:${name}`, title: name, kind: "variant" })),
]);

/** Everything that an answer depends on, as text, to tell whether an answer is of what is set now. */
export const settingsText = computed(() =>
  JSON.stringify([steering.value, sampling.value, system.value, prompted.value, variantColumns.value]),
);

/**
 * @param {Partial<Edit>} edit
 * @returns {Edit}
 */
export function newEdit(edit) {
  return {
    id: nextId(),
    op: "clamp",
    value: 1,
    unit: edit.vector ? "act" : "max_act",
    tokens: "all",
    off: false,
    ...edit,
  };
}

/**
 * @param {string} feature
 * @param {number | null} [bound] in the SAE's units, for a feature that has no maximum
 * @returns {Rule}
 */
export function newRule(feature = "", bound = null) {
  const used = new Set(rules.value.map((rule) => rule.name));
  let numbered = rules.value.length + 1;
  while (used.has(`rule-${numbered}`)) numbered++;
  return {
    id: nextId(),
    name: `rule-${numbered}`,
    join: "all",
    tests: [{ feature, op: "above", value: bound ?? 0.5, unit: bound === null ? "max_act" : "act" }],
    then: "abort",
    scope: "token",
    tokens: "generated",
    edit: { feature: "", op: "ablate", value: 0, unit: "max_act" },
    off: false,
  };
}

/** Strength that whatever has no maximum begins with: a share of the stream's length that is felt. */
export const UNMEASURED = { unit: "resid_norm", value: 0.3 };

/** @param {Partial<Edit>} edit adds it, or replaces the one of the same feature */
export function putEdit(edit) {
  const same = edits.value.find((one) => (edit.vector ? one.vector === edit.vector : one.feature === edit.feature));
  edits.value = same
    ? edits.value.map((one) => (one === same ? { ...one, ...edit, off: false } : one))
    : [...edits.value, newEdit(edit)];
}

/** @param {number} id @param {Partial<Edit>} change */
export function changeEdit(id, change) {
  edits.value = edits.value.map((one) => (one.id === id ? { ...one, ...change } : one));
}

/** @param {number} id */
export function removeEdit(id) {
  const removed = edits.value.find((one) => one.id === id);
  if (removed?.feature === focus.value) focus.value = null;
  edits.value = edits.value.filter((one) => one.id !== id);
}
