/**
 * A link: the whole state in the URL's fragment, which no server sees, with hashes of what it was made against, so that opening
 * it elsewhere says what is different.
 */
import { batch, signal } from "./h.js";
import { isFeature, saes, servedModel } from "./server.js";
import { OPS } from "./format.js";
import * as state from "./state.js";

const VERSION = 1;
const DAMAGED = "This link is damaged or incomplete, so nothing of it was taken over: ask for it again.";

/** Questions of the link that was opened, until they are asked: nobody's link starts work by itself. */
export const linkedQuestions = signal(/** @type {string[]} */ ([]));
/** True if what was opened is what this tab held before it was loaded again. */
export const isFromTab = signal(false);
/** What a link was made for that this server does not have. */
export const mismatches = signal(/** @type {string[]} */ ([]));

/** @param {string} text */
function toBase64(text) {
  const bytes = new TextEncoder().encode(text);
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replace(/=+$/, "");
}

/** @param {string} text */
function fromBase64(text) {
  const bytes = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)));
}

/** @param {string[]} questions @returns {string} URL of the page as it stands */
export function makeLink(questions) {
  const used = new Set(
    [
      ...state.edits.value.map((edit) => edit.feature),
      ...state.rules.value.flatMap((rule) => [rule.edit.feature, ...rule.tests.map((test) => test.feature)]),
      state.focus.value ?? undefined,
    ]
      .filter((feature) => feature !== undefined)
      .map((feature) => feature.split("/")[0]),
  );
  const content = {
    v: VERSION,
    model: servedModel.value,
    saes: Object.fromEntries(saes.value.filter((sae) => used.has(sae.name)).map((sae) => [sae.name, sae.sha256])),
    edits: state.edits.value.map(({ id: _, ...edit }) => edit),
    rules: state.rules.value.map(({ id: _, ...rule }) => rule),
    sampling: state.sampling.value,
    system: state.system.value,
    prompted: state.prompted.value,
    variants: state.variantColumns.value,
    focus: state.focus.value,
    questions,
    draft: state.draft.value,
  };
  const url = new URL(location.href);
  url.hash = toBase64(JSON.stringify(content));
  return url.href;
}

/** Where a tab keeps what is set, so that a reload loses nothing but the answers. */
const KEPT = "saeclamp-state";

/** @param {string[]} questions */
export function keepState(questions) {
  // those that were not asked again yet are not lost by another reload
  sessionStorage.setItem(KEPT, new URL(makeLink(questions.length ? questions : linkedQuestions.value)).hash);
}

/** Take over what a link says, or else what the tab has kept. */
export function restoreState() {
  const isLink = location.hash.length > 1 && !document.getElementById(location.hash.slice(1));
  openLink(isLink ? location.hash : (sessionStorage.getItem(KEPT) ?? ""));
  isFromTab.value = !isLink;
}

/** @param {unknown} value @param {number} most */
const textOf = (value, most = 100_000) => (typeof value === "string" ? value.slice(0, most) : "");
/** @param {unknown} value @param {number} otherwise @param {number} least @param {number} most */
const numberOf = (value, otherwise, least, most) =>
  typeof value === "number" && Number.isFinite(value) ? Math.min(Math.max(value, least), most) : otherwise;
/** @param {unknown} value @returns {any[]} */
const listOf = (value) => (Array.isArray(value) ? value.slice(0, 64) : []);

/** @param {unknown} value */
const featureOf = (value) => (isFeature(textOf(value, 256)) ? textOf(value, 256) : "");
/** @param {unknown} value @param {number} otherwise @param {number} least @param {number} most */
const wholeOf = (value, otherwise, least, most) => Math.round(numberOf(value, otherwise, least, most));

/** @param {any} one @returns {Omit<import("./state.js").Edit, "id">} */
function editFrom(one) {
  return {
    ...(one?.vector ? { vector: textOf(one.vector, 64) } : { feature: featureOf(one?.feature) }),
    op: Object.hasOwn(OPS, one?.op) ? one.op : "clamp",
    value: numberOf(one?.value, 1, -1e6, 1e6),
    unit: ["max_act", "act", "resid_norm"].includes(one?.unit) ? one.unit : "max_act",
    tokens: ["all", "prompt", "generated"].includes(one?.tokens) ? one.tokens : "all",
    off: one?.off === true,
  };
}

/** @param {any} one @returns {Omit<import("./state.js").Rule, "id">} */
function ruleFrom(one) {
  const { tokens: _, off: __, ...edit } = editFrom(one?.edit ?? {});
  return {
    name: textOf(one?.name, 64).replaceAll(/[^A-Za-z0-9_.-]/g, "-") || "rule",
    join: one?.join === "any" ? "any" : "all",
    tests: (listOf(one?.tests).length ? listOf(one.tests) : [{}]).map((test) => ({
      feature: featureOf(test?.feature),
      op: test?.op === "below" ? "below" : "above",
      value: numberOf(test?.value, 0.5, -1e6, 1e6),
      unit: test?.unit === "act" ? "act" : "max_act",
    })),
    then: one?.then === "edit" ? "edit" : "abort",
    scope: one?.scope === "rest_of_request" ? "rest_of_request" : "token",
    tokens: ["all", "prompt", "generated"].includes(one?.tokens) ? one.tokens : "all",
    edit,
    off: one?.off === true,
  };
}

/**
 * Take over what a link says; nothing, where there is none that can be read. Whoever made it may be anybody, so everything is
 * checked, and nothing is run.
 *
 * @param {string} fragment
 */
export function openLink(fragment) {
  let content;
  try {
    content = JSON.parse(fromBase64(fragment.replace(/^#/, "")));
  } catch {
    content = null;
  }
  isFromTab.value = false;
  if (content?.v !== VERSION) {
    if (fragment.length > 1 && !document.getElementById(fragment.slice(1))) mismatches.value = [DAMAGED];
    return;
  }
  const sampling = content.sampling ?? {};
  batch(() => {
    state.edits.value = listOf(content.edits).map((one) => ({ ...editFrom(one), id: state.nextId() }));
    state.rules.value = listOf(content.rules)
      .slice(0, 16)
      .map((one) => ({ ...ruleFrom(one), id: state.nextId() }));
    state.sampling.value = {
      max_tokens: wholeOf(sampling.max_tokens, state.SAMPLING.max_tokens, 1, 100_000),
      temperature: numberOf(sampling.temperature, state.SAMPLING.temperature, 0, 2),
      top_p: numberOf(sampling.top_p, state.SAMPLING.top_p, 0.01, 1),
      repetition_penalty: numberOf(sampling.repetition_penalty, state.SAMPLING.repetition_penalty, 0.01, 2),
      seed: wholeOf(sampling.seed, 0, 0, 2 ** 32 - 1),
      num_seeds: wholeOf(sampling.num_seeds, 1, 1, 8),
    };
    state.system.value = textOf(content.system);
    state.prompted.value = typeof content.prompted === "string" ? textOf(content.prompted) : null;
    state.variantColumns.value = listOf(content.variants).map((name) => textOf(name, 256));
    state.focus.value = saes.value.some((sae) => textOf(content.focus).startsWith(`${sae.name}/`))
      ? featureOf(content.focus) || null
      : null;
    state.draft.value = textOf(content.draft);
    linkedQuestions.value = listOf(content.questions).map((question) => textOf(question));
    mismatches.value = differences(content);
  });
}

/** @param {any} content */
function differences(content) {
  const found = [];
  if (content.model !== servedModel.value) {
    found.push(`The link was made with the model ${textOf(content.model, 256)}; this server has ${servedModel.value}.`);
  }
  for (const [name, sha256] of Object.entries(content.saes ?? {})) {
    const here = saes.value.find((sae) => sae.name === name);
    if (!here) found.push(`The link needs the SAE ${name.slice(0, 256)}, which this server has not loaded.`);
    else if (here.sha256 !== sha256) {
      found.push(`The SAE ${name} of this server is not the one of the link: its features may mean something else.`);
    }
  }
  return found;
}
