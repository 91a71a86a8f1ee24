/** Work of the server that takes a while: begun, followed, stopped, and never left running behind a view that is gone. */
import { ApiError, json, longTask, wasStopped } from "../api.js";
import { useEffect, useMemo, useSignal } from "../h.js";

/**
 * @typedef {object} Task
 * @property {any} result
 * @property {ApiError | null} error
 * @property {{what: string, done: number, of: number} | null} progress
 * @property {boolean} isRunning
 * @property {boolean} isStopped
 */

/** @type {Task} */
const IDLE = { result: null, error: null, progress: null, isRunning: false, isStopped: false };

/**
 * @param {string} path
 * @param {boolean} isLong whether the endpoint says how far it is
 */
export function useTask(path, isLong = false) {
  const state = useSignal(IDLE);
  const controller = useMemo(() => ({ now: /** @type {AbortController | null} */ (null) }), []);
  useEffect(() => () => controller.now?.abort(), []);
  /** @param {unknown} body @param {string} at another path, as of a query */
  const start = async (body, at = path) => {
    controller.now?.abort();
    const own = (controller.now = new AbortController());
    state.value = { ...IDLE, isRunning: true };
    const set = (/** @type {Partial<Task>} */ change) => {
      if (controller.now === own) state.value = { ...state.value, ...change };
    };
    try {
      const result = isLong
        ? await longTask(at, body, own.signal, (progress) => set({ progress }))
        : await json(at, { body: body ?? undefined, signal: own.signal });
      set({ result, isRunning: false });
    } catch (error) {
      const failure = error instanceof ApiError ? error : new ApiError(0, { message: String(error) });
      set({ error: wasStopped(error) ? null : failure, isRunning: false, isStopped: wasStopped(error) });
    }
  };
  const stop = () => controller.now?.abort();
  return { state, start, stop };
}
