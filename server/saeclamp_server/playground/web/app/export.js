/** The conversation and the steering as files that other programs read. */
import { textOf } from "./answer-state.js";
import { turns } from "./conversation.js";
import { saes, servedModel } from "./server.js";

/** The conversation with everything that was sent and every receipt. */
export function transcript() {
  return {
    object: "saeclamp.transcript",
    model: servedModel.value,
    saes: Object.fromEntries(saes.value.map((sae) => [sae.name, sae.sha256])),
    turns: turns.value.map((turn) => ({
      user: turn.user,
      answers: Object.entries(turn.answers).flatMap(([column, answers]) =>
        answers.map((answer) => {
          const { status, finish, receipt, cost, error } = answer.state.value;
          const { messages, ...request } = answer.body;
          const text = textOf(answer.state.value);
          return {
            column,
            seed: answer.seed,
            status,
            text,
            finish,
            cost,
            receipt,
            error: error?.message ?? null,
            messages,
            request,
          };
        }),
      ),
    })),
  };
}

const COLUMNS = [
  "loader",
  "action",
  "sparse_model",
  "hookpoint",
  "feature_index",
  "steering_coefficient",
  "sae_id",
  "description",
];

/**
 * Write the CSV of lm-eval's `steered` model, which knows additions alone, in the SAE's own units. Where the SAE's weights lie is
 * for the user to fill in: the server does not say.
 *
 * @param {import("./state.js").Edit[]} edits
 */
export function toCsv(edits, hasRules = false) {
  if (hasRules) throw new Error("lm-eval knows no rules.");
  const rows = edits.map((edit) => {
    const [name, index] = (edit.feature ?? "").split("/");
    const sae = saes.value.find((one) => one.name === name);
    if (edit.op !== "add" || edit.unit !== "act" || edit.tokens !== "all" || !sae || !/^\d+$/.test(index ?? "")) {
      const what = edit.vector ?? edit.feature;
      throw new Error(
        `lm-eval can only add to a feature that is given by its number, in the SAE's units, everywhere: ${what} is set another way.`,
      );
    }
    const [point, layer] = sae.reads[0].split(" ");
    const hook = point === "resid_post" ? `layers.${layer}` : sae.reads[0];
    return ["sparsify", "add", `PATH OF ${name}`, hook, index, edit.value, "", ""];
  });
  return `${[COLUMNS, ...rows].map((row) => row.map((cell) => quoted(String(cell))).join(",")).join("\n")}\n`;
}

/** @param {string} cell */
function quoted(cell) {
  return /[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}
