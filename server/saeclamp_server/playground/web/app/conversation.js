/** The conversation: what was asked, and each column's answers while they come in. */
import { appended, emptyAnswer, textOf } from "./answer-state.js";
import { ApiError, events, wasStopped } from "./api.js";
import { computed, signal } from "./h.js";
import { likeliest } from "./measures.js";
import { NUM_LIKELY, score } from "./score.js";
import { servedModel } from "./server.js";
import {
  announce,
  columns,
  heatFeature,
  edits,
  nextId,
  prompted,
  sampling,
  settingsText,
  steering,
  system,
} from "./state.js";

const NUM_STRONGEST = 5;
const MAX_SHOWN = 16;
const RETRY_S = 2;

/**
 * @typedef {import("./answer-state.js").Answer} Answer
 * @typedef {import("./answer-state.js").AnswerState} AnswerState
 * @typedef {import("./answer-state.js").Token} Token
 */

/**
 * @typedef {object} Turn
 * @property {number} id
 * @property {string} user
 * @property {string} settings as text, of when it was asked
 * @property {Record<string, Answer[]>} answers by column, one for each seed
 */

export const turns = signal(/** @type {Turn[]} */ ([]));
/** What stops each answer that is running. */
const running = signal(/** @type {Set<AbortController>} */ (new Set()));
export const isRunning = computed(() => running.value.size > 0);
/** True where the last answers are not of what is set now. */
export const isPending = computed(() => {
  const last = turns.value.at(-1);
  return last !== undefined && last.settings !== settingsText.value;
});

/** @param {string} user a question, or what comes next in the conversation */
export function ask(user) {
  const before = turns.value;
  const turn = { id: nextId(), user, settings: settingsText.value, answers: {} };
  turns.value = [...before, answered(turn, before)];
}

/** Answer the last question again, with what is set now. */
export function regenerate() {
  const last = turns.value.at(-1);
  if (!last) return;
  stop();
  const before = turns.value.slice(0, -1);
  turns.value = [...before, answered({ ...last, settings: settingsText.value, answers: {} }, before)];
}

/** Raised by everything that ends what was going on, so that whoever asks several questions knows to ask no more. */
let epoch = 0;

export function stop() {
  epoch++;
  for (const controller of running.value) controller.abort();
}

/** Ask one question after the other in a new conversation, each when the one before is answered. @param {string[]} questions */
export async function askAll(questions) {
  clear();
  const own = epoch;
  for (const question of questions) {
    if (own !== epoch) return;
    ask(question);
    while (isRunning.value) await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export function clear() {
  stop();
  turns.value = [];
}

/** @param {Turn} turn @param {Turn[]} before @returns {Turn} */
function answered(turn, before) {
  const { seed, num_seeds } = sampling.value;
  for (const column of columns.value) {
    turn.answers[column.id] = Array.from({ length: num_seeds }, (_, number) =>
      begin(
        column,
        seed + number,
        messagesOf(column, turn.user, before),
        messagesOf({ ...column, kind: "default" }, turn.user, before),
      ),
    );
  }
  return turn;
}

/** @param {{id: string, kind: string}} column @param {string} user @param {Turn[]} before */
function messagesOf(column, user, before) {
  const words = [system.value, column.kind === "prompted" ? (prompted.value ?? "") : ""].filter(Boolean).join("\n\n");
  const messages = words ? [{ role: "system", content: words }] : [];
  for (const turn of before) {
    messages.push({ role: "user", content: turn.user });
    const first = turn.answers[column.id]?.[0] ?? turn.answers.default?.[0];
    const said = first ? textOf(first.state.value) : "";
    if (said) messages.push({ role: "assistant", content: said });
  }
  return [...messages, { role: "user", content: user }];
}

/** Features whose activations are asked for beside the answer: that of the heat, and those that are steered. */
function featuresToRead() {
  const asked = [heatFeature.value, ...edits.value.filter((edit) => !edit.off).map((edit) => edit.feature)];
  return [...new Set(asked.filter((feature) => feature != null))].slice(0, MAX_SHOWN);
}

/**
 * @param {{id: string, title: string, kind: string}} column
 * @param {number} seed
 * @param {{role: string, content: string}[]} messages
 * @param {{role: string, content: string}[]} plain the same without the words of the prompted column
 * @returns {Answer}
 */
function begin(column, seed, messages, plain) {
  const features = featuresToRead();
  const own = column.kind === "steered" ? steering.value : null;
  const { max_tokens, temperature, top_p, repetition_penalty } = sampling.value;
  const body = {
    model: column.kind === "variant" ? column.title : servedModel.value,
    messages,
    max_tokens,
    temperature,
    top_p,
    repetition_penalty,
    seed,
    stream: true,
    stream_options: { include_usage: true },
    logprobs: true,
    top_logprobs: NUM_LIKELY,
    return_token_ids: true,
    steering: { ...own, readout: { features, top_k: NUM_STRONGEST }, receipt: "tokens" },
  };
  const answer = {
    column: column.id,
    seed,
    messages,
    plain,
    body,
    state: signal({ ...emptyAnswer(), read: features }),
  };
  const controller = new AbortController();
  running.value = new Set([...running.value, controller]);
  run(answer, column.title, controller.signal).finally(() => {
    running.value = new Set([...running.value].filter((one) => one !== controller));
  });
  return answer;
}

/** @param {Answer} answer @param {string} title @param {AbortSignal} stopped */
async function run(answer, title, stopped) {
  const set = (/** @type {Partial<AnswerState>} */ change) => {
    answer.state.value = { ...answer.state.value, ...change };
  };
  try {
    const ids = await stream(answer, set, stopped);
    set({ status: "done" });
    announce(`${title}: ${textOf(answer.state.value)}`);
    await score(answer, ids, set, stopped);
  } catch (error) {
    if (wasStopped(error)) {
      if (answer.state.value.status !== "done") set({ status: "stopped", retryIn: null });
      return;
    }
    const failure = error instanceof ApiError ? error : new ApiError(0, { message: String(error) });
    // what was not applied, or not proven, is not shown as if it had been
    set({ status: "failed", error: failure, blocks: [], numTokens: 0, retryIn: null });
    announce(`${title} failed: ${failure.message}`);
  }
}

/**
 * Show an answer while it comes in, and wait where the server is busy.
 *
 * @param {Answer} answer
 * @param {(change: Partial<AnswerState>) => void} set
 * @param {AbortSignal} stopped
 * @returns {Promise<{prompt: number[], answer: number[]}>} token ids
 */
async function stream(answer, set, stopped) {
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
  set({ receipt });
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
