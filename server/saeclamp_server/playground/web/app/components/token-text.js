/**
 * An answer as its tokens: how active the chosen feature was at each, which were edited, and a card of the one that is looked at.
 *
 * One element takes the events of all tokens, and full blocks are drawn once, so that thousands of tokens cost as much as one
 * block while more come in.
 */
import { html, useMemo, useSignal } from "../h.js";
import { heatFeature } from "../state.js";
import { TokenCard } from "./token-card.js";

const LEVELS = 5;
const CARD_WIDTH = 310;
const CARD_HEIGHT = 360;

/** @param {number | undefined} act @param {number} most */
export function heatLevel(act, most) {
  if (!act || act <= 0 || most <= 0) return 0;
  return Math.min(LEVELS, Math.max(1, Math.ceil((LEVELS * act) / most)));
}

/**
 * @param {{blocks: import("../answer-state.js").Token[][], most: number, label: string, receipt: any,
 *   onAttribute?: (token: import("../answer-state.js").Token) => void}} props
 *   most: activation of the feature at which the heat is full
 */
export function TokenText({ blocks, most, label, receipt, onAttribute }) {
  const current = useSignal(/** @type {number | null} */ (null));
  const place = useSignal(/** @type {Record<string, string>} */ ({}));
  const feature = heatFeature.value;
  const firsts = useMemo(() => {
    let sum = 0;
    return blocks.map((block) => (sum += block.length) - block.length);
  }, [blocks]);
  // of a feature without a stored maximum the largest activation here is the fullest colour
  const full = most > 0 || !feature ? most : largest(blocks, feature);
  const num = (firsts.at(-1) ?? 0) + (blocks.at(-1)?.length ?? 0);
  const tokenAt = (/** @type {number} */ number) => {
    const of = firsts.findLastIndex((first) => first <= number);
    return blocks[of]?.[number - firsts[of]];
  };
  /** @param {HTMLElement} box @param {number} number */
  const show = (box, number) => {
    const span = /** @type {HTMLElement | null} */ (box.querySelector(`[data-n="${number}"]`));
    if (!span) return;
    current.value = number;
    const { left, top, bottom } = span.getBoundingClientRect();
    const isLow = bottom > innerHeight - CARD_HEIGHT && top > innerHeight - bottom;
    place.value = {
      left: `${Math.max(4, Math.min(left, innerWidth - CARD_WIDTH - 8))}px`,
      ...(isLow ? { bottom: `${innerHeight - top}px` } : { top: `${bottom}px` }),
    };
  };
  /** @param {any} event */
  const point = (event) => {
    const number = event.target.dataset?.n;
    if (number !== undefined) show(event.currentTarget, Number(number));
  };
  const hide = () => (current.value = null);
  /** @param {import("../answer-state.js").Token} token */
  const trace = (token) => {
    hide(); // the card would lie over what comes
    onAttribute?.(token);
  };
  /** @param {any} event */
  const leave = (event) => {
    if (!event.currentTarget.contains(event.relatedTarget)) hide();
  };
  /** @param {KeyboardEvent} event */
  const escape = (event) => {
    if (event.key === "Escape") hide();
  };
  /** @param {any} event */
  const key = (event) => {
    const now = current.value ?? -1;
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: num - 1 }[/** @type {string} */ (event.key)];
    if (to === undefined || to < 0 || to >= num) return;
    event.preventDefault();
    show(event.currentTarget, to);
  };
  const token = current.value === null ? undefined : tokenAt(current.value);
  return html`<div class="token-box" onMouseLeave=${hide} onFocusOut=${leave} onKeyDown=${escape}>
    <div
      class="tokens"
      tabindex="0"
      role="group"
      aria-label=${`${label}. Arrow keys go through its tokens`}
      onMouseOver=${point}
      onClick=${point}
      onKeyDown=${key}
    >
      ${blocks.map(
        (block, number) =>
          html`<${Block}
            block=${block}
            first=${firsts[number]}
            feature=${feature}
            most=${full}
            current=${inBlock(current.value, firsts[number], block.length)}
          />`,
      )}
    </div>
    ${token && html`<${TokenCard} token=${token} receipt=${receipt} place=${place.value} onAttribute=${onAttribute && trace} />`}
  </div>`;
}

/** @param {import("../answer-state.js").Token[][]} blocks @param {string} feature */
function largest(blocks, feature) {
  return Math.max(0, ...blocks.flat().map((token) => token.acts[feature] ?? 0));
}

/** @param {number | null} current @param {number} first @param {number} length */
function inBlock(current, first, length) {
  return current !== null && current >= first && current < first + length ? current : null;
}

/**
 * @param {{block: import("../answer-state.js").Token[], first: number, feature: string | null, most: number,
 *   current: number | null}} props
 */
function Block({ block, first, feature, most, current }) {
  return useMemo(
    () =>
      html`<span
        >${block.map((token, number) => {
          const act = feature ? token.acts[feature] : undefined;
          const classes = [
            "token",
            `heat-${heatLevel(act, most)}`,
            token.edits.length ? "edited" : "",
            current === first + number ? "current" : "",
          ];
          return html`<span class=${classes.join(" ").trim()} data-n=${first + number}>${token.text}</span>`;
        })}</span
      >`,
    [block, first, feature, most, current],
  );
}
