/** How strong a feature is where it is active: a histogram, counted, or else estimated from its examples. */
import { html } from "../h.js";
import { number } from "../format.js";

const WIDTH = 300;
const HEIGHT = 60;
const BINS = 30;
const MAX_ACT_QUANTILE = 0.999;

/** @param {{known: any}} props */
export function Histogram({ known }) {
  if (!known.top_act) return null;
  const shares = counted(known.histogram) ?? estimated(known);
  if (!shares) return null;
  const most = Math.max(...shares);
  const step = WIDTH / shares.length;
  const median = known.top_act * middle(shares);
  const words = `Half of its activations are below ${number(median)}, nearly all (99.9 %) below ${number(known.max_act)}; the largest is ${number(known.top_act)}.`;
  const atMax = (WIDTH * known.max_act) / known.top_act;
  return html`<figure class="histogram">
    <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${`Histogram of its activations. ${words}`}>
      ${shares.map((share, bin) => {
        const height = share > 0 ? Math.max(1, (HEIGHT * share) / most) : 0;
        return html`<rect x=${bin * step} y=${HEIGHT - height} width=${step - 1} height=${height} />`;
      })}
      <line x1=${atMax} x2=${atMax} y1="0" y2=${HEIGHT} />
    </svg>
    <figcaption class="quiet">
      ${words}${known.histogram ? "" : " Estimated from its examples: these labels hold no histogram."}
    </figcaption>
  </figure>`;
}

/** @param {number[] | null} counts */
function counted(counts) {
  if (!counts) return null;
  const sum = counts.reduce((one, other) => one + other, 0);
  return counts.map((count) => count / sum);
}

/**
 * The share of its activations in each bin, by the middles of the tenths that examples are of, and the two largest.
 *
 * @param {any} known
 */
function estimated(known) {
  const points = [[0, 0]];
  for (let tenth = 0; tenth < 9; tenth++) {
    const peaks = (known.examples ?? [])
      .filter((/** @type {any} */ one) => one.quantile === tenth)
      .map((/** @type {any} */ one) => one.peak_act);
    if (peaks.length)
      points.push([
        peaks.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b) / peaks.length,
        (tenth + 0.5) / 10,
      ]);
  }
  if (points.length < 4) return null;
  points.push([known.max_act, MAX_ACT_QUANTILE], [known.top_act, 1]);
  const below = (/** @type {number} */ act) => {
    const next = points.findIndex(([value]) => value >= act);
    if (next < 0) return 1;
    if (next === 0) return 0;
    const [[low, from], [high, to]] = [points[next - 1], points[next]];
    return from + ((to - from) * (act - low)) / (high - low || 1);
  };
  const edges = Array.from({ length: BINS + 1 }, (_, bin) => below((known.top_act * bin) / BINS));
  return edges.slice(1).map((edge, bin) => Math.max(0, edge - edges[bin]));
}

/** @param {number[]} shares */
function middle(shares) {
  let sum = 0;
  for (const [bin, share] of shares.entries()) {
    if (sum + share >= 0.5) return (bin + (0.5 - sum) / share) / shares.length;
    sum += share;
  }
  return 1;
}
