/** What the unsteered model makes of an answer: how likely it finds it, and what it would have said in its place. */
import { textOf } from "./answer-state.js";
import { json, wasStopped } from "./api.js";
import { distinct2, divergence, likeliest, perplexity, repetition } from "./measures.js";
import { servedModel } from "./server.js";

export const NUM_LIKELY = 20;
const BLOCKS_AT_ONCE = 4;

/**
 * @typedef {import("./answer-state.js").Answer} Answer
 * @typedef {import("./answer-state.js").AnswerState} AnswerState
 * @typedef {import("./answer-state.js").Token} Token
 */

/**
 * Have the unsteered model read the answer: how likely it finds it, and what it would have said in its place.
 *
 * @param {Answer} answer
 * @param {{prompt: number[], answer: number[]}} ids
 * @param {(change: Partial<AnswerState>) => void} set
 * @param {AbortSignal} stopped
 */
export async function score(answer, ids, set, stopped) {
  const text = textOf(answer.state.value);
  const cost = { perplexity: null, distinct2: distinct2(text), repetition: repetition(text), kl: null };
  set({ cost });
  if (!ids.answer.length || !ids.prompt.length) return;
  let rows;
  try {
    // behind the plain prompt, so that words which ask for something do not make it likely
    const isPlain = JSON.stringify(answer.plain) === JSON.stringify(answer.messages);
    const prompt = isPlain ? ids.prompt : await promptOf(answer.plain, stopped);
    const body = {
      model: servedModel.value,
      prompt: [...prompt, ...ids.answer],
      max_tokens: 1,
      prompt_logprobs: NUM_LIKELY,
      temperature: 0,
    };
    const scored = await json("v1/completions", { body, signal: stopped });
    rows = scored.choices[0].prompt_logprobs.slice(prompt.length);
  } catch (error) {
    if (wasStopped(error)) throw error;
    return; // the answer stands; what it costs is not known
  }
  const logprobs = /** @type {number[]} */ ([]);
  const kls = /** @type {number[]} */ ([]);
  const before = answer.state.value.blocks;
  const done = /** @type {Token[][]} */ ([]);
  let number = 0;
  for (const block of before) {
    done.push(
      block.map((token) => {
        const row = rows[number];
        const own = row?.[ids.answer[number++]];
        if (!row || !own) return token;
        logprobs.push(own.logprob);
        const defaultLikely = likeliest(Object.values(row).map((one) => [one.decoded_token, one.logprob]));
        const kl = divergence(token.likely, defaultLikely);
        kls.push(kl);
        return { ...token, defaultLikely, kl };
      }),
    );
    if (done.length % BLOCKS_AT_ONCE) continue;
    set({ blocks: [...done, ...before.slice(done.length)] });
    await new Promise((resolve) => setTimeout(resolve)); // the page is drawn between, and hears its user
  }
  const kl = kls.length ? kls.reduce((sum, one) => sum + one, 0) / kls.length : null;
  set({ blocks: done, cost: { ...cost, perplexity: perplexity(logprobs), kl } });
}

/** @param {{role: string, content: string}[]} messages @param {AbortSignal} stopped @returns {Promise<number[]>} */
async function promptOf(messages, stopped) {
  const body = { model: servedModel.value, messages, add_generation_prompt: true };
  return (await json("tokenize", { body, signal: stopped })).tokens;
}
