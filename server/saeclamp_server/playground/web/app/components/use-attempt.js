/** A change that is asked of the server: what came of it, in words, and the list of what there is, read anew. */
import { ApiError } from "../api.js";
import { html, useSignal } from "../h.js";
import { Notice, Refusal } from "./notice.js";

/** @param {() => Promise<void>} reload reads the list that the change was made to */
export function useAttempt(reload) {
  const error = useSignal(/** @type {ApiError | null} */ (null));
  const said = useSignal("");
  /** @param {() => Promise<string>} work returns what is said when it is done */
  const attempt = async (work) => {
    error.value = null;
    said.value = "";
    try {
      said.value = await work();
      await reload();
    } catch (failure) {
      if (!(failure instanceof ApiError)) throw failure;
      error.value = failure;
    }
  };
  const outcome = () => html`
    ${said.value && html`<${Notice} kind="info">${said.value}<//>`}
    ${error.value && html`<${Refusal} error=${error.value} />`}
  `;
  return { attempt, outcome };
}
