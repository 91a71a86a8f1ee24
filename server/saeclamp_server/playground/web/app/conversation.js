/** The conversation: what was asked, and each column's answers while they come in. */
import { emptyAnswer, textOf } from "./answer-state.js";
import { ApiError, wasStopped } from "./api.js";
import { computed, signal } from "./h.js";
import { NUM_LIKELY, score } from "./score.js";
import { isKnown, servedModel } from "./server.js";
import { stream } from "./streaming.js";
import {
  activeRules,
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
  unfinishedRules,
} from "./state.js";

const NUM_STRONGEST = 5;
const MAX_SHOWN = 16;

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

/** Why nothing may be asked now; empty where it may. */
export const obstacle = computed(() => {
  const [rule] = unfinishedRules.value;
  return rule
    ? `${rule.name} is on and names no feature of this server, so it would watch nothing: complete it, or switch it off.`
    : "";
});

/** @param {string} user a question, or what comes next in the conversation */
export function ask(user) {
  if (obstacle.value) return;
  const before = turns.value;
  const turn = { id: nextId(), user, settings: settingsText.value, answers: {} };
  turns.value = [...before, answered(turn, before)];
}

/** Answer the last question again, with what is set now. */
export function regenerate() {
  const last = turns.value.at(-1);
  if (!last || obstacle.value) return;
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

/** Take the last question back, if nothing of its answers is there. @returns {string} the question, or nothing */
export function takeBack() {
  const last = turns.value.at(-1);
  const answers = Object.values(last?.answers ?? {}).flat();
  if (!last || answers.some((answer) => answer.state.value.numTokens || answer.state.value.status === "failed"))
    return "";
  turns.value = turns.value.slice(0, -1);
  return last.user;
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

/**
 * Features whose activations are asked for beside the answer: that of the heat, and in the steered column those that are steered
 * or watched. Elsewhere a feature that does not exist would take the answer away from a column that has nothing to do with it.
 *
 * @param {boolean} isSteered
 */
function featuresToRead(isSteered) {
  const moved = edits.value.filter((edit) => !edit.off).map((edit) => edit.feature);
  const watched = activeRules.value.flatMap((rule) => rule.tests).map((test) => test.feature);
  const asked = isSteered ? [heatFeature.value, ...moved, ...watched] : [heatFeature.value].filter(isKnown);
  return [...new Set(asked)].flatMap((feature) => feature || []).slice(0, MAX_SHOWN);
}

/**
 * @param {{id: string, title: string, kind: string}} column
 * @param {number} seed
 * @param {{role: string, content: string}[]} messages
 * @param {{role: string, content: string}[]} plain the same without the words of the prompted column
 * @returns {Answer}
 */
function begin(column, seed, messages, plain) {
  const isSteered = column.kind === "steered";
  const features = featuresToRead(isSteered);
  const own = isSteered ? steering.value : null;
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
