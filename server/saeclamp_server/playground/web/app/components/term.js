/** A word that not everybody knows: choosing it shows what it means, with a mouse, a finger or the keyboard. */
import { html, useId } from "../h.js";

const MEANINGS = /** @type {Record<string, string>} */ ({
  perplexity:
    "How surprising the unsteered model finds the text, token by token: 1 is no surprise at all. A few times the default answer's perplexity means that the text is breaking, or that it changed its subject.",
  repetition: "Share of the last 20 words that had stood among these before. Above one half the text goes in circles.",
  "distinct pairs":
    "Share of the pairs of neighbouring words that are different. Ordinary text has nearly all different.",
  KL: "Kullback-Leibler divergence, in nats: how far the distribution of the next token has moved from that of the unsteered model, mean over the tokens. 0 is not at all. Only the likeliest tokens are compared, so it is at least this much.",
  maximum:
    "99.9th percentile of the feature's activations in the texts of its labels: about as active as it gets by itself, one activation in a thousand is stronger. Strengths and bounds are multiples of it.",
  "output score":
    "How well amplifying the feature brings out the tokens that it promotes, 0 to 1. Features with a low one may be about a subject without steering towards it.",
  "active at":
    "Share of the tokens of the labels' texts at which the feature is active at all. Rare features say more.",
  logprob: "Natural logarithm of the probability of a token: 0 is certain, -0.7 one half, -4.6 one in a hundred.",
  p: "Probability that chance alone would give a difference as large, corrected for the number of features that were compared.",
  effect: "Cliff's delta, -1 to 1: how often a text of the first list exceeds one of the second, less the reverse.",
  "explained variance here":
    "How much of what the model computes the SAE reproduces, measured in this server at its start. Far below what its authors report, it was made for another model.",
});

/** @param {{name: string}} props name: one of those above, shown as it is */
export function Term({ name }) {
  const id = useId();
  return html`<button type="button" class="term" popovertarget=${id}>${name}</button>
    <span id=${id} class="meaning" popover>${MEANINGS[name]}</span>`;
}
