/** What the server has: its model, SAEs, vectors and variants, and what becomes of them. */
import { ApiError, isGone, json, needsKey, text } from "./api.js";
import { computed, signal } from "./h.js";

export const models = signal(/** @type {any[]} */ ([]));
export const saes = signal(/** @type {any[]} */ ([]));
export const vectors = signal(/** @type {any} */ ({ data: [], sites: [] }));
export const variants = signal(/** @type {any[]} */ ([]));
/** As many as the server lists at once. */
export const MAX_PRESETS = 100;
/** Features whose clamp was calibrated: what the first screen offers. */
export const presets = signal(/** @type {any[]} */ ([]));
/** `loading`, `ready`, or why there is nothing to show. */
export const status = signal(/** @type {"loading" | "ready" | ApiError} */ ("loading"));

/** The name of the base model. */
export const servedModel = computed(() => models.value.find((model) => !model.parent)?.id ?? "");

/** @type {Map<string, Promise<any>>} */
const features = new Map();

export async function load() {
  status.value = "loading";
  try {
    const [listed, loaded, uploaded, saved, calibrated] = await Promise.all([
      json("v1/models"),
      json("v1/saes"),
      json("v1/vectors"),
      json("v1/variants"),
      json(`v1/features?green_zone=true&limit=${MAX_PRESETS}`),
    ]);
    models.value = listed.data;
    saes.value = loaded.data;
    vectors.value = uploaded;
    variants.value = saved.data;
    presets.value = inBookOrder(calibrated.data, loaded.data);
    status.value = "ready";
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    status.value = error;
  }
}

/** Order features as the feature books do: what steers best comes first there. @param {any[]} found @param {any[]} loaded */
function inBookOrder(found, loaded) {
  const places = new Map(
    loaded
      .flatMap((sae) => sae.named.map((/** @type {string} */ name) => `${sae.name}/${name}`))
      .map((name, at) => [name, at]),
  );
  const at = (/** @type {any} */ one) => places.get(`${one.sae}/${one.name}`) ?? Infinity;
  return found.sort((one, other) => at(one) - at(other));
}

export async function reloadVariants() {
  variants.value = (await json("v1/variants")).data;
}

export async function reloadVectors() {
  vectors.value = await json("v1/vectors");
}

/**
 * Tell whether a text can name a feature; no other may become a part of an address.
 *
 * @param {string} text
 */
export function isFeature(text) {
  return /^[^/\s]+\/[^/\s]+$/.test(text) && !text.split("/").some((part) => /^\.+$/.test(part));
}

/** Name a feature as requests do, by its name where it has one. @param {{sae: string, name?: string | null, index: number}} one */
export function addressOf(one) {
  return `${one.sae}/${one.name ?? one.index}`;
}

/** The preset of a feature, however it is named; nothing, where it has none. @param {string | undefined} feature */
export function presetOf(feature) {
  return presets.value.find((one) => [addressOf(one), one.feature].includes(feature));
}

/**
 * Tell whether a feature is one of this server's.
 *
 * @param {string | null | undefined} text
 */
export function isKnown(text) {
  const [name, of] = (text ?? "").split("/");
  const sae = saes.value.find((one) => one.name === name);
  return Boolean(sae && of && (/^[0-9]+$/.test(of) ? Number(of) < sae.d_sae : sae.named.includes(of)));
}

/**
 * All that is known of a feature; asked for once.
 *
 * @param {string} feature `<sae>/<index>` or `<sae>/<name>`
 * @returns {Promise<any>}
 */
export function feature(feature) {
  if (!isFeature(feature)) {
    return Promise.reject(new ApiError(0, { message: "A feature is written <sae>/<index> or <sae>/<name>." }));
  }
  let asked = features.get(feature);
  if (!asked) {
    asked = json(`v1/features/${feature.split("/").map(encodeURIComponent).join("/")}`);
    features.set(feature, asked);
    asked.catch(() => features.delete(feature)); // so that it can be asked again
  }
  return asked;
}

/** Ask again every few seconds while the server is away, so that the page mends itself when it comes back. */
export function watch() {
  setInterval(async () => {
    if (!needsKey.value && status.value instanceof ApiError) await load();
    else if (isGone.value) await text("health").catch(() => undefined);
  }, 3000);
}
