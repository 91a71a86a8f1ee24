/** The server's HTTP interface, as everybody else calls it: JSON, and answers that come as events. */
import { signal } from "./h.js";

/** What the page is served below, so that it also works behind a proxy's prefix. */
const ROOT = new URL("..", document.baseURI);
const KEY = "saeclamp-key";

/** The key of the server, where it wants one. Kept in this tab alone. */
export const apiKey = signal(sessionStorage.getItem(KEY) ?? "");
/** True when a request was refused for want of a key, until one is given. */
export const needsKey = signal(false);
/** True while the server cannot be reached. */
export const isGone = signal(false);

/** @param {string} key */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
  apiKey.value = key;
  needsKey.value = false;
}

/** A refusal, or a failure, in the server's words. */
export class ApiError extends Error {
  /**
   * @param {number} status 0 where there was no answer
   * @param {{message?: string, code?: string | null, param?: string | null}} error
   * @param {number | null} retryAfter seconds after which it may be tried again
   */
  constructor(status, error, retryAfter = null) {
    super(error.message ?? `HTTP ${status}`);
    this.status = status;
    this.code = error.code ?? null;
    this.param = error.param ?? null;
    this.retryAfter = retryAfter;
  }
}

/** @param {unknown} error */
export function wasStopped(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/** @param {string} path such as `v1/models` */
export function address(path) {
  return new URL(path, ROOT);
}

/**
 * @param {string} path
 * @param {{method?: string, body?: unknown, signal?: AbortSignal, accept?: string}} options
 * @returns {Promise<Response>} of status 2xx
 */
async function call(path, { method, body, signal: stopped, accept } = {}) {
  /** @type {Record<string, string>} */
  const headers = {};
  if (accept) headers.Accept = accept;
  if (apiKey.value) headers.Authorization = `Bearer ${apiKey.value}`;
  const raw = body instanceof Blob;
  if (body !== undefined) headers["Content-Type"] = raw ? "application/octet-stream" : "application/json";
  let response;
  try {
    response = await fetch(address(path), {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers,
      body: body === undefined ? undefined : raw ? body : JSON.stringify(body),
      signal: stopped,
      cache: "no-store",
    });
  } catch (error) {
    if (wasStopped(error)) throw error;
    isGone.value = true;
    throw new ApiError(0, { message: "The server cannot be reached." });
  }
  isGone.value = false;
  if (response.ok) return response;
  const error = await refusal(response);
  needsKey.value ||= error.status === 401;
  throw error;
}

/** @param {Response} response */
async function refusal(response) {
  const wait = Number(response.headers.get("Retry-After"));
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's own page
  }
  return new ApiError(response.status, error, Number.isFinite(wait) && wait > 0 ? wait : null);
}

/**
 * @param {string} path
 * @param {{method?: string, body?: unknown, signal?: AbortSignal}} options
 * @returns {Promise<any>}
 */
export async function json(path, options = {}) {
  const response = await call(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (wasStopped(error)) throw error;
    throw new ApiError(0, { message: "The server's answer could not be read." });
  }
}

/** @param {string} path */
export async function text(path) {
  return (await call(path)).text();
}

/**
 * Iterate over the JSON of a stream's events, without the `[DONE]` that ends it.
 *
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} stopped
 * @returns {AsyncGenerator<any>}
 */
export async function* events(path, body, stopped) {
  const response = await call(path, { body, signal: stopped, accept: "text/event-stream" });
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    yield { type: "result", result: await response.json() };
    return;
  }
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      rest += decoder.decode(value, { stream: !done });
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop() ?? "";
      for (const part of parts) {
        const data = part
          .split(/\r?\n/)
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart())
          .join("\n");
        if (data === "[DONE]") return;
        if (data) yield parsed(data);
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

/** @param {ReadableStreamDefaultReader<Uint8Array>} reader */
async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (wasStopped(error)) throw error;
    isGone.value = true;
    throw new ApiError(0, { message: "The connection broke before the answer had ended." });
  }
}

/** @param {string} data */
function parsed(data) {
  const event = JSON.parse(data);
  if (event.error) throw new ApiError(event.status ?? 500, event.error);
  return event;
}

/**
 * Ask for what takes longer, and hear how far it is.
 *
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} stopped
 * @param {(now: {what: string, done: number, of: number}) => void} progress
 * @returns {Promise<any>}
 */
export async function longTask(path, body, stopped, progress) {
  for await (const event of events(path, body, stopped)) {
    if (event.type === "progress") progress(event);
    if (event.type === "result") return event.result;
  }
  throw new ApiError(0, { message: "The connection broke before the answer had ended." });
}
