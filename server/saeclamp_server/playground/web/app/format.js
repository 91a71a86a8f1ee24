/** Figures in words: the same ones everywhere on the page. */

/** @param {number | null | undefined} value @param {number} digits */
export function number(value, digits = 3) {
  if (value == null || !Number.isFinite(value)) return "–";
  return String(Number(value.toPrecision(digits)));
}

/** @param {number} num */
export function tokensInWords(num) {
  return num === 1 ? "one token" : `${num} tokens`;
}

/** @param {number | null | undefined} share */
export function percent(share) {
  if (share == null) return "–";
  return share > 0 && share < 0.001 ? "< 0.1 %" : `${number(100 * share, 2)} %`;
}

const SHARES = /** @type {[number, string][]} */ ([
  [0.02, "hardly anything"],
  [0.05, "a few hundredths"],
  [0.15, "about a tenth"],
  [0.29, "about a quarter"],
  [0.42, "about a third"],
  [0.6, "about half"],
  [0.85, "about three quarters"],
  [1.15, "about the whole"],
]);

/**
 * Say how long an edit is beside what it edits.
 *
 * @param {number | null | undefined} dose
 * @param {string | null} [site] such as `resid_post 23`; none: in the residual stream
 */
export function doseInWords(dose, site) {
  if (dose == null) return "";
  const whole = !site || site.startsWith("resid") ? "the stream's length" : "the length of what flows there";
  const words = SHARES.find(([most]) => dose < most)?.[1] ?? `${number(dose, 2)} times`;
  const what = dose < 0.02 ? `${words} of ${whole}` : `${words} ${dose < 1.15 ? "of " : ""}${whole}`;
  return `${what} (${number(dose, 2)})`;
}

const POINTS = /** @type {Record<string, string>} */ ({
  resid_pre: "before layer",
  resid_mid: "between attention and MLP of layer",
  resid_post: "behind layer",
  attn_z: "in the attention heads of layer",
  attn_out: "in the attention's output of layer",
  mlp_in: "in the MLP's input of layer",
  mlp_out: "in the MLP's output of layer",
});

/** @param {string} site such as `resid_post 23` */
export function siteInWords(site) {
  const [point, layer] = site.split(" ");
  return layer && POINTS[point] ? `${POINTS[point]} ${layer}` : site;
}

/**
 * Show a token's text with its blanks and line breaks to be seen.
 *
 * @param {string} token
 */
export function visible(token) {
  return token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
}

/** @param {string | null | undefined} hash */
export function shortHash(hash) {
  return hash ? hash.replace("sha256:", "").slice(0, 12) : "–";
}

/**
 * Name a feature for people: its name in the feature book, with its words.
 *
 * @param {{feature: string, name?: string | null, description?: string | null}} one
 */
export function title(one) {
  return one.description || one.name || one.feature;
}

export const OPS = /** @type {Record<string, string>} */ ({
  clamp: "set to",
  add: "add",
  at_least: "at least",
  at_most: "at most",
  scale: "multiply by",
  ablate: "switch off",
});

export const SCOPES = /** @type {Record<string, string>} */ ({
  all: "everywhere",
  prompt: "in the prompt",
  generated: "in the answer",
});

/** @param {number} value @param {string} op */
export function directionInWords(value, op) {
  if (op === "ablate" || (op === "scale" && value === 0)) return "none of it";
  if (op === "scale" && value === 1) return "as it is";
  if (op === "scale")
    return value > 1 ? "more of it, where it is" : value < 0 ? "the opposite, where it is" : "less of it";
  if (op === "at_most") return "less of it, where there is more";
  if (op === "at_least") return "more of it, where there is less";
  return value > 0 ? "more of it" : value < 0 ? "less of it" : "none of it";
}
