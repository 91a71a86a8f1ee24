/** What was asked and answered, column by column, and the box in which one asks. */
import { ask, askAll, clear, isPending, isRunning, regenerate, stop, turns } from "../conversation.js";
import { html, useEffect, useSignal } from "../h.js";
import { linkedQuestions, mismatches } from "../link.js";
import { feature as lookUp } from "../server.js";
import { columns, draft, heatFeature } from "../state.js";
import { AnswerView } from "./answer.js";
import { Attribution } from "./attribution.js";
import { Notice } from "./notice.js";

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
  return html`
    ${mismatches.value.map((words) => html`<${Notice} kind="warn">${words}<//>`)}
    <${LinkedConversation} />
    ${
      feature &&
      turns.value.length > 0 &&
      html`<p class="legend quiet spaced">
        <span class="token heat-1">low</span> <span class="token heat-3">middle</span>
        <span class="token heat-5">high</span> where ${feature} is active, before any edit;
        <span class="token edited">underlined</span> where tokens were edited.
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
          Take a card, or write a question: it is answered as the model would, and steered, side by side.
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

function LinkedConversation() {
  const questions = linkedQuestions.value;
  if (!questions.length || turns.value.length) return null;
  const run = () => {
    linkedQuestions.value = [];
    askAll(questions);
  };
  return html`<${Notice} kind="info">
    This link holds ${questions.length === 1 ? "a question" : `${questions.length} questions`}: “${questions[0]}”
    <button class="main" onClick=${run}>Run it</button>
  <//>`;
}

/**
 * @param {{turn: import("../conversation.js").Turn, most: number,
 *   onAttribute: (answer: import("../answer-state.js").Answer, token: import("../answer-state.js").Token) => void}} props
 */
function TurnView({ turn, most, onAttribute }) {
  const shown = columns.value.filter((column) => turn.answers[column.id]);
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
                  onAttribute=${onAttribute}
                />`,
            )}
          </div>`,
      )}
    </div>
  </section>`;
}

function Composer() {
  const send = () => {
    const words = draft.value.trim();
    if (!words || isRunning.value) return;
    draft.value = "";
    ask(words);
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
        isRunning.value
          ? html`<button type="button" class="main" onClick=${stop}>Stop</button>`
          : html`<button class="main">Send</button>`
      }
    </div>
    <div class="row wrap">
      <button type="button" class="small" onClick=${regenerate} disabled=${!turns.value.length}>Regenerate</button>
      <button type="button" class="small" onClick=${clear} disabled=${!turns.value.length}>New conversation</button>
      ${isRunning.value && html`<span class="quiet">Answering; the next question can be sent when it is done, or stopped.</span>`}
    </div>
  </form>`;
}
