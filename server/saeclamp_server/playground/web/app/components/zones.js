/** What calibration found of a feature, as zones of a slider's track and as a curve. */
import { html } from "../h.js";
import { number } from "../format.js";
import { BROKEN, REPEATED } from "../measures.js";

const TICK_WIDTH = 20;

/**
 * @typedef {{strength: number, isGreen: boolean, perplexity: number | null, repetition: number | null, effect: number | null}} Point
 * @typedef {{from: number, to: number, kind: "green" | "amber" | "red"}} Zone
 */

/** @param {any} known a feature, as the server describes it @returns {Point[]} */
export function pointsOf(known) {
  return (known?.curve ?? [])
    .map((/** @type {any} */ point) => {
      const drawn = point.sampled ?? point.greedy ?? {};
      return {
        strength: point.strength,
        isGreen: point.green === true,
        effect: point.score ?? null,
        perplexity: estimate(drawn.perplexity_ratio),
        repetition: estimate(drawn.repetition),
      };
    })
    .sort((/** @type {Point} */ a, /** @type {Point} */ b) => a.strength - b.strength);
}

/** Read a figure that may come with its bounds. @param {number | number[] | null | undefined} figure */
function estimate(figure) {
  return (Array.isArray(figure) ? figure[0] : figure) ?? null;
}

/**
 * Green is the zone that was found to work; red, where text broke; amber, what was tried and is neither. Elsewhere nobody looked.
 *
 * @param {any} known
 * @returns {Zone[]}
 */
export function zonesOf(known) {
  const points = pointsOf(known);
  /** @type {Zone[]} */
  const zones = [];
  points.forEach((point, number) => {
    const before = points[number - 1] ?? point;
    const after = points[number + 1] ?? point;
    const isBroken = (point.perplexity ?? 0) > BROKEN || (point.repetition ?? 0) > REPEATED;
    const zone = {
      from: (before.strength + point.strength) / 2,
      to: (point.strength + after.strength) / 2,
      kind: /** @type {"amber" | "red"} */ (isBroken ? "red" : "amber"),
    };
    if (zone.to > zone.from) zones.push(zone);
  });
  const green = known?.green_zone;
  return green ? [...zones, { from: green[0], to: green[1], kind: "green" }] : zones;
}

/** @param {any} known @param {number} value in multiples of the maximum */
export function zoneInWords(known, value) {
  const zones = zonesOf(known);
  const inside = zones.filter((zone) => value >= zone.from && value <= zone.to);
  const kinds = new Set(inside.map((zone) => zone.kind));
  if (kinds.has("green")) return { kind: "green", words: "works: answers turn to it and remain text" };
  if (kinds.has("red")) return { kind: "red", words: "text breaks here" };
  if (kinds.has("amber")) return { kind: "amber", words: "tried, and too weak or too strong to rely on" };
  return { kind: "grey", words: zones.length ? "nobody has tried this strength" : "never calibrated" };
}

/** @param {{known: any, least: number, most: number}} props */
export function ZoneTrack({ known, least, most }) {
  const at = (/** @type {number} */ value) => (100 * (Math.min(Math.max(value, least), most) - least)) / (most - least);
  return html`<svg class="zones" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
    <rect class="zone grey" x="0" y="0" width="100" height="6" />
    ${zonesOf(known).map(
      (zone) =>
        html`<rect
          class="zone ${zone.kind}"
          x=${at(zone.from)}
          y="0"
          width=${at(zone.to) - at(zone.from)}
          height="6"
        />`,
    )}
    <rect class="zero" x=${at(0) - 0.15} y="0" width="0.3" height="6" />
  </svg>`;
}

/**
 * The dose curve: what each strength that was tried did, with a cursor where the slider stands.
 *
 * @param {{known: any, value?: number | null}} props
 */
export function Curve({ known, value = null }) {
  const points = pointsOf(known);
  if (points.length < 2) return html`<p class="quiet">No strength of this feature was calibrated.</p>`;
  const most = Math.max(...points.map((point) => point.strength), value ?? 0);
  const least = Math.min(...points.map((point) => point.strength), value ?? 0, 0);
  const worst = Math.max(...points.map((point) => point.perplexity ?? 0), 1);
  const x = (/** @type {number} */ strength) => 30 + (260 * (strength - least)) / (most - least || 1);
  const y = (/** @type {number} */ share) => 110 - 95 * share;
  const line = (/** @type {(point: Point) => number | null} */ of) =>
    points
      .filter((point) => of(point) !== null)
      .map((point) => `${x(point.strength)},${y(/** @type {number} */ (of(point)))}`)
      .join(" ");
  const ticks = points.filter(
    (point, at) => at === 0 || x(point.strength) - x(points[at - 1].strength) > TICK_WIDTH || at % 3 === 0,
  );
  const words = points
    .map((point) => `${point.strength}: effect ${number(point.effect, 2)}, perplexity × ${number(point.perplexity, 2)}`)
    .join("; ");
  return html`<figure class="curve">
    <svg viewBox="0 0 300 140" role="img" aria-label=${`Dose curve. ${words}`}>
      ${zonesOf(known).map(
        (zone) =>
          html`<rect
            class="zone ${zone.kind}"
            x=${x(zone.from)}
            y="15"
            width=${x(zone.to) - x(zone.from)}
            height="95"
          />`,
      )}
      <line class="axis" x1="30" x2="290" y1="110" y2="110" />
      <polyline class="effect" points=${line((point) => point.effect)} />
      <polyline
        class="perplexity"
        points=${line((point) => (point.perplexity === null ? null : point.perplexity / worst))}
      />
      ${ticks.map(
        (point) => html`<text class="tick" x=${x(point.strength)} y="122">${number(point.strength, 2)}</text>`,
      )}
      ${value !== null && html`<line class="cursor" x1=${x(value)} x2=${x(value)} y1="10" y2="112" />`}
    </svg>
    <figcaption class="spaced">
      <span class="key effect">— effect, 0 to 1</span>
      <span class="key perplexity">┄ perplexity, up to ${number(worst, 2)} × the unsteered one;</span>
      <span>by clamp, in multiples of the maximum</span>
    </figcaption>
  </figure>`;
}
