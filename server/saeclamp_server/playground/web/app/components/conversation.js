/** What was asked and answered, column by column, and the box in which one asks. */
import {
  ask,
  askAll,
  clear,
  isPending,
  isRunning,
  obstacle,
  regenerate,
  stop,
  takeBack,
  turns,
} from "../conversation.js";
import { html, useEffect, useRef, useSignal } from "../h.js";
import { isFromTab, linkedQuestions, makeLink, mismatches } from "../link.js";
import { feature as lookUp } from "../server.js";
import { columns, draft, heatFeature, settingsText } from "../state.js";
import { AnswerView } from "./answer.js";
import { Attribution } from "./attribution.js";
import { Notice } from "./notice.js";
import { Copy } from "./save.js";

const DOUBLE_CLICK_MS = 700;

export function Conversation() {
  const most = useSignal(0);
  const asked = useSignal(
    /** @type {{answer: import("../answer-state.js").Answer, token: import("../answer-state.js").Token} | null} */ (
      null
    ),
  );
  const feature = heatFeature.value;
  useEffect(() => {
    let isLast = true;
    most.value = 0;
    if (feature) {
      lookUp(feature).then(
        (found) => isLast && (most.value = found.max_act ?? 0),
        () => undefined,
      );
    }
    return () => {
      isLast = false;
    };
  }, [feature]);
  const traced = asked.value?.answer;
  const isTracedShown = turns.value.some((turn) =>
    Object.values(turn.answers)
      .flat()
      .some((one) => one === traced),
  );
  const last = turns.value.at(-1)?.id;
  useEffect(() => {
    // where a new answer comes in, whatever was read before
    if (last !== undefined) document.querySelector(".turn:last-child")?.scrollIntoView({ block: "start" });
  }, [last]);
  return html`
    ${
      feature &&
      turns.value.length > 0 &&
      html`<p class="legend quiet spaced">
        <span class="token heat-1">little</span> <span class="token heat-3">some</span>
        <span class="token heat-5">much</span>
        ${`of ${feature} in the model by itself, as it wrote the token, before any edit;`}
        <span class="token edited">dotted</span> where a token was edited. Choose a token to see more.
      </p>`
    }
    <div class="turns">
      ${turns.value.map(
        (turn) =>
          html`<${TurnView}
            key=${turn.id}
            turn=${turn}
            most=${most.value}
            onAttribute=${(
              /** @type {import("../answer-state.js").Answer} */ answer,
              /** @type {import("../answer-state.js").Token} */ token,
            ) => (asked.value = { answer, token })}
          />`,
      )}
      ${
        !turns.value.length &&
        html`<p class="quiet pad">
          Turn an idea inside the model up or down, and read what it writes beside what it would have written. Take a
          card, or write a question.
        </p>`
      }
    </div>
    ${
      asked.value &&
      isTracedShown &&
      html`<${Attribution}
        answer=${asked.value.answer}
        token=${asked.value.token}
        onClose=${() => (asked.value = null)}
      />`
    }
    <${Composer} />
  `;
}

/** What was opened, before anything is asked: whatever a link holds, or this tab held, waits for a click. */
export function Opened() {
  const questions = linkedQuestions.value;
  const run = () => {
    linkedQuestions.value = [];
    askAll(questions);
  };
  const num = questions.length === 1 ? "a question" : `${questions.length} questions`;
  return html`
    ${mismatches.value.map((words) => html`<${Notice} kind="warn">${words}<//>`)}
    ${
      questions.length > 0 &&
      !turns.value.length &&
      html`<${Notice} kind="info">
        ${isFromTab.value ? `Your last conversation had ${num}` : `This link holds ${num}`}: “${questions[0]}”
        <button class="main" disabled=${Boolean(obstacle.value)} onClick=${run}>
          ${isFromTab.value ? "Ask again" : "Run it"}
        </button>
        ${isFromTab.value && html`<button onClick=${() => (linkedQuestions.value = [])}>Forget</button>`}
      <//>`
    }
  `;
}

/**
 * @param {{turn: import("../conversation.js").Turn, most: number,
 *   onAttribute: (answer: import("../answer-state.js").Answer, token: import("../answer-state.js").Token) => void}} props
 */
function TurnView({ turn, most, onAttribute }) {
  const shown = columns.value.filter((column) => turn.answers[column.id]);
  const isCurrent = turn.settings === settingsText.value;
  const baseline = turn.answers.default?.[0]?.state.value.cost?.perplexity ?? null;
  return html`<section class="turn">
    <p class="user"><span class="unseen">You asked: </span>${turn.user}</p>
    <div class="columns" style=${{ "--columns": String(shown.length) }}>
      ${shown.map(
        (column) =>
          html`<div class="column ${column.kind}">
            <h3>${column.title}</h3>
            ${turn.answers[column.id].map(
              (answer) =>
                html`<${AnswerView}
                  key=${answer.seed}
                  answer=${answer}
                  title=${column.title}
                  kind=${column.kind}
                  most=${most}
                  baseline=${baseline}
                  isCurrent=${isCurrent}
                  onAttribute=${onAttribute}
                />`,
            )}
          </div>`,
      )}
    </div>
  </section>`;
}

function Composer() {
  const sentAt = useRef(0);
  const send = () => {
    const words = draft.value.trim();
    if (!words || isRunning.value || obstacle.value) return;
    draft.value = "";
    sentAt.current = performance.now();
    ask(words);
  };
  const halt = () => {
    // the second half of a double click on Send, which is where Stop is now
    if (performance.now() - sentAt.current < DOUBLE_CLICK_MS) return;
    stop();
    const taken = takeBack();
    if (taken && !draft.value) draft.value = taken;
  };
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  return html`<form
    class="composer"
    onSubmit=${(/** @type {Event} */ event) => {
      event.preventDefault();
      send();
    }}
  >
    ${
      isPending.value &&
      html`<p class="pending" role="status">
        Changed since the last answer, and not run yet.
        <button type="button" class="small" onClick=${regenerate}>Run it again</button>
      </p>`
    }
    <div class="row">
      <label class="grow">
        <span class="unseen">Your question, for all columns</span>
        <textarea
          rows="2"
          placeholder="Ask all columns something"
          value=${draft}
          onInput=${(/** @type {any} */ event) => (draft.value = event.target.value)}
          onKeyDown=${key}
        ></textarea>
      </label>
      ${
        // by keys two elements: one that became the other while it is clicked would send what it has just given back
        isRunning.value
          ? html`<button key="stop" type="button" class="main" onClick=${halt}>Stop</button>`
          : html`<button key="send" class="main">Send</button>`
      }
    </div>
    <div class="row wrap">
      <button type="button" class="small" onClick=${regenerate} disabled=${!turns.value.length}>Regenerate</button>
      <${Copy} small label="Copy a link to this" text=${() => makeLink(turns.value.map((turn) => turn.user))} />
      <button type="button" class="small" onClick=${clear} disabled=${!turns.value.length}>New conversation</button>
      ${isRunning.value && html`<span class="quiet">Answering; the next question can be sent when it is done, or stopped.</span>`}
    </div>
  </form>`;
}
