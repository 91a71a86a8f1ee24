/** An answer while it comes in: its tokens in blocks, of which only the last one changes. */

/** @typedef {import("./api.js").ApiError} ApiError */

/**
 * @typedef {object} Token
 * @property {string} text
 * @property {number | null} logprob
 * @property {Map<string, number>} likely logprobs of the likeliest tokens, by text
 * @property {Map<string, number> | null} defaultLikely the same, of the unsteered model behind the same text
 * @property {number | null} kl
 * @property {number | null} position
 * @property {Record<string, number>} acts of the features that were asked for
 * @property {Record<string, {index: number, act: number}[]>} top the strongest features, by SAE
 * @property {{intervention: number, act_before: number, dose: number}[]} edits
 */

/**
 * @typedef {object} AnswerState
 * @property {"waiting" | "running" | "done" | "stopped" | "failed"} status
 * @property {Token[][]} blocks of tokens; full ones do not change any more
 * @property {number} numTokens
 * @property {any} receipt
 * @property {string | null} id of the answer, as the server's log and trace have it
 * @property {number | null} promptTokens
 * @property {ApiError | null} error
 * @property {string | null} finish
 * @property {number | null} firstMs from asking to the first token
 * @property {number | null} retryIn seconds, where the server is busy
 * @property {{perplexity: number | null, distinct2: number | null, repetition: number | null, kl: number | null} | null} cost
 * @property {string[]} read features whose activations were asked for
 */

/**
 * @typedef {object} Answer
 * @property {string} column
 * @property {number} seed
 * @property {import("../vendor/signals.js").Signal<AnswerState>} state
 * @property {{role: string, content: string}[]} messages what it answers
 * @property {{role: string, content: string}[]} plain what it would answer without the words of the prompted column
 * @property {any} body what was sent
 */

const BLOCK = 64;

/** @returns {AnswerState} */
export const emptyAnswer = () => ({
  status: "waiting",
  blocks: [],
  numTokens: 0,
  receipt: null,
  id: null,
  promptTokens: null,
  error: null,
  finish: null,
  firstMs: null,
  retryIn: null,
  cost: null,
  read: [],
});

/** @param {AnswerState} state */
export function textOf(state) {
  return state.blocks.map((block) => block.map((token) => token.text).join("")).join("");
}

/** @param {Token[][]} blocks @param {Token[]} tokens */
export function appended(blocks, tokens) {
  const full = blocks.slice(0, -1);
  const last = [...(blocks.at(-1) ?? []), ...tokens];
  for (let at = 0; at < last.length; at += BLOCK) full.push(last.slice(at, at + BLOCK));
  return full;
}
