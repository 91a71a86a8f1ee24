/** What the steering that is set would do, asked of the server before it is run: how far it moves the stream, and what may go wrong. */
import { ApiError, json, wasStopped } from "../api.js";
import { html, useEffect, useSignal } from "../h.js";
import { doseInWords, siteInWords } from "../format.js";
import { steering } from "../state.js";
import { Notice, Refusal } from "./notice.js";

/** Long enough that a slider that is drawn asks once. */
const REST_MS = 250;
const DEPENDING = ["ablate", "scale", "at_least", "at_most"];

export function Plan() {
  const plan = useSignal(/** @type {any} */ (null));
  const error = useSignal(/** @type {ApiError | null} */ (null));
  const asked = JSON.stringify(steering.value);
  useEffect(() => {
    if (asked === "null") {
      plan.value = error.value = null;
      return;
    }
    const controller = new AbortController();
    const timer = setTimeout(async () => {
      try {
        plan.value = await json("v1/steering/validate", {
          body: { steering: JSON.parse(asked) },
          signal: controller.signal,
        });
        error.value = null;
      } catch (failure) {
        if (wasStopped(failure)) return;
        plan.value = null;
        error.value = failure instanceof ApiError ? failure : new ApiError(0, { message: String(failure) });
      }
    }, REST_MS);
    return () => {
      clearTimeout(timer);
      controller.abort();
    };
  }, [asked]);
  if (error.value) return html`<${Refusal} error=${error.value} />`;
  if (!plan.value) return null;
  const depends = plan.value.interventions.some((/** @type {any} */ one) => DEPENDING.includes(one.op));
  const doses = Object.entries(plan.value.doses);
  return html`<div class="stack" role="status">
    ${doses.map(
      ([site, dose]) =>
        html`<p class="quiet">
          ${`Moves a token of ordinary length ${siteInWords(site)} by ${doseInWords(Number(dose), site)}${depends ? "; how far, depends on how active it is by itself" : ""}.`}
        </p>`,
    )}
    ${plan.value.warnings.map((/** @type {string} */ words) => html`<${Notice} kind="warn">${words}<//>`)}
  </div>`;
}
