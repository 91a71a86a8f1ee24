/** One answer's way from the server onto the page, token by token, to its receipt. */
import { appended } from "./answer-state.js";
import { ApiError, events } from "./api.js";
import { likeliest } from "./measures.js";

const RETRY_S = 2;

/** @typedef {import("./answer-state.js").Answer} Answer */
/** @typedef {import("./answer-state.js").AnswerState} AnswerState */
/** @typedef {import("./answer-state.js").Token} Token */

/**
 * Show an answer while it comes in, and wait where the server is busy.
 *
 * @param {Answer} answer
 * @param {(change: Partial<AnswerState>) => void} set
 * @param {AbortSignal} stopped
 * @returns {Promise<{prompt: number[], answer: number[]}>} token ids
 */
export async function stream(answer, set, stopped) {
  for (;;) {
    try {
      return await streamOnce(answer, set, stopped);
    } catch (error) {
      const isBusy = error instanceof ApiError && error.status === 429;
      if (!isBusy || answer.state.value.numTokens) throw error;
      for (let left = error.retryAfter ?? RETRY_S; left > 0; left--) {
        set({ retryIn: left });
        await pause(1000, stopped);
      }
      set({ retryIn: null });
    }
  }
}

/** @param {number} ms @param {AbortSignal} stopped */
function pause(ms, stopped) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms, undefined);
    stopped.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

/**
 * @param {Answer} answer
 * @param {(change: Partial<AnswerState>) => void} set
 * @param {AbortSignal} stopped
 */
async function streamOnce(answer, set, stopped) {
  const start = performance.now();
  const ids = { prompt: /** @type {number[]} */ ([]), answer: /** @type {number[]} */ ([]) };
  /** @type {Token[]} */
  let arrived = [];
  let frame = 0;
  const flush = () => {
    frame = 0;
    if (!arrived.length) return;
    const tokens = arrived;
    arrived = [];
    const { blocks, numTokens } = answer.state.value;
    set({ blocks: appended(blocks, tokens), numTokens: numTokens + tokens.length });
  };
  set({ status: "running" });
  let receipt = null;
  try {
    for await (const chunk of events("v1/chat/completions", answer.body, stopped)) {
      if (answer.state.value.id === null) set({ id: chunk.id });
      ids.prompt = chunk.prompt_token_ids ?? ids.prompt;
      receipt = chunk.steering ?? receipt;
      const [choice] = chunk.choices ?? [];
      if (!choice) continue;
      ids.answer.push(...(choice.token_ids ?? []));
      const tokens = tokensOf(choice);
      if (tokens.length && answer.state.value.firstMs === null) set({ firstMs: performance.now() - start });
      arrived.push(...tokens);
      if (choice.finish_reason) set({ finish: choice.finish_reason });
      // at most once a frame, however fast tokens come; a hidden page draws no frames
      if (arrived.length && !frame) frame = document.hidden ? (flush(), 0) : requestAnimationFrame(flush);
    }
  } finally {
    // nothing may be drawn behind an error, which takes the answer away
    cancelAnimationFrame(frame);
    flush();
  }
  set({ receipt, promptTokens: ids.prompt.length });
  if (receipt?.applied !== true) {
    throw new ApiError(0, {
      message: "The answer came without its receipt, so it is not shown.",
      code: "steering_not_applied",
    });
  }
  return ids;
}

/** @param {any} choice @returns {Token[]} */
function tokensOf(choice) {
  const shown = choice.steering?.tokens ?? [];
  const decoder = new TextDecoder("utf-8", { fatal: false });
  const content = choice.logprobs?.content ?? [];
  return content.map((/** @type {any} */ one, /** @type {number} */ number) => {
    const read = shown[number];
    // the token that ended the answer is one of its tokens, and no part of its text
    const isEnd = choice.finish_reason === "stop" && number === content.length - 1;
    return {
      text: isEnd ? "" : one.bytes ? decoder.decode(new Uint8Array(one.bytes)) : one.token,
      logprob: one.logprob,
      likely: likeliest(one.top_logprobs.map((/** @type {any} */ top) => [top.token, top.logprob])),
      defaultLikely: null,
      kl: null,
      position: read?.position ?? null,
      acts: read?.features ?? {},
      top: read?.top ?? {},
      edits: read?.edits ?? [],
    };
  });
}
