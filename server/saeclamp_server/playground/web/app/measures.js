/** What an answer costs, computed as the server's `compare` computes it: see text_metrics.py and likelihoods.py. */

/** Perplexity, in multiples of the unsteered one, above which text is broken: as calibration and `suggest` have it. */
export const BROKEN = 3;
/** Repetition above which text goes in circles. */
export const REPEATED = 0.5;

const LAST_WORDS = 20;
/** What a share that rounding has left of nothing is taken for. */
const LEAST = 1e-12;

/** @param {string} text */
function words(text) {
  return text.toLowerCase().match(/[\p{L}\p{N}_]+(?:['’][\p{L}\p{N}_]+)*/gu) ?? [];
}

/**
 * Share of different pairs among all pairs of neighbouring words; null for fewer than two words.
 *
 * @param {string} text
 */
export function distinct2(text) {
  const all = words(text);
  if (all.length < 2) return null;
  return new Set(all.slice(1).map((word, before) => `${all[before]} ${word}`)).size / (all.length - 1);
}

/**
 * Share of the last 20 words that have stood among these before; null for a text without words.
 *
 * @param {string} text
 */
export function repetition(text) {
  const last = words(text).slice(-LAST_WORDS);
  return last.length ? 1 - new Set(last).size / last.length : null;
}

/**
 * The likeliest tokens, likeliest first. Two of one text cannot be told apart, nor can parts of characters: they are left out.
 *
 * @param {[string, number][]} tokens with their logprobs
 */
export function likeliest(tokens) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const [text] of tokens) counts.set(text, (counts.get(text) ?? 0) + 1);
  return new Map(
    tokens
      .filter(([text]) => text && !text.includes("\ufffd") && counts.get(text) === 1)
      .sort(([, one], [, other]) => other - one),
  );
}

/**
 * A lower bound of the Kullback-Leibler divergence of `own` from `other`, in nats: of the tokens that both lists have, and of
 * all others as one.
 *
 * @param {Map<string, number>} own logprobs by token
 * @param {Map<string, number>} other
 */
export function divergence(own, other) {
  let [sum, ownRest, otherRest] = [0, 1, 1];
  for (const [token, logprob] of own) {
    const there = other.get(token);
    if (there === undefined) continue;
    sum += Math.exp(logprob) * (logprob - there);
    ownRest -= Math.exp(logprob);
    otherRest -= Math.exp(there);
  }
  const [p, q] = [Math.max(ownRest, 0), Math.max(otherRest, LEAST)];
  return Math.max(0, sum + (p > LEAST ? p * Math.log(p / q) : 0));
}

/** @param {number[]} logprobs */
export function perplexity(logprobs) {
  return logprobs.length ? Math.exp(-logprobs.reduce((sum, one) => sum + one, 0) / logprobs.length) : null;
}
