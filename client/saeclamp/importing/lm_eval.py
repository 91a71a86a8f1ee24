"""The CSV of lm-eval's `steered` model."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from saeclamp.importing.fields import build, check_fields, index, number, refused
from saeclamp.types import Add, Steering

LM_EVAL_COLUMNS = (
    "loader",
    "action",
    "sparse_model",
    "hookpoint",
    "feature_index",
    "steering_coefficient",
    "sae_id",
    "description",
)

LOADERS = ("sparsify", "sae_lens")


def from_lm_eval(text: str, saes: Mapping[tuple[str, str], str]) -> Steering:
    """
    Take the CSV.

    Rows that add are an `add` in unit `act`, at all tokens, special ones among them.

    saes: (sparse_model, sae_id or else hookpoint) to the name under which that SAE is served
    Raises ForeignSteeringError for rows that clamp, which set a projection, not an activation; for two rows at one hook
    point, of which lm-eval heeds the last; and for `head_index`, which it does not read.
    """
    moves: list[Add] = []
    lines: dict[str, str] = {}
    for nth, row in enumerate(csv.DictReader(io.StringIO(text)), 2):  # line 1 has the names of the columns
        path = f"line {nth}"
        # cells beyond the last column come as a list: one empty cell is a comma at the end of the line
        given = {name: value for name, value in row.items() if value not in ("", None, [""])}
        check_fields(given, {*LM_EVAL_COLUMNS, "head_index"}, path)
        if "head_index" in given:
            raise refused(f"{path}.head_index", "lm-eval does not read it in a CSV, and steers all heads.")
        if given.get("loader", "sparsify") not in LOADERS:
            raise refused(f"{path}.loader", f"{given['loader']!r} is not known: {' or '.join(map(repr, LOADERS))}.")
        action = row.get("action", "add")
        if action == "clamp":
            raise refused(
                f"{path}.action",
                "lm-eval's clamp sets a projection on the decoder row, and not the feature's activation.",
            )
        if action != "add":
            raise refused(f"{path}.action", f"{action!r} is not known: 'add'.")
        key = (given.get("sparse_model", ""), given.get("sae_id") or given.get("hookpoint", ""))
        if key not in saes:
            raise refused(path, f"it is not said which served SAE is {key[0]!r}, {key[1]!r}.")
        hook = given.get("hookpoint") or "/".join(key)
        if hook in lines:
            raise refused(
                f"{path}.hookpoint",
                f"{lines[hook]} is at {hook} too, and lm-eval heeds only the last row of a hook point.",
            )
        lines[hook] = path
        feature = f"{saes[key]}/{index(given, 'feature_index', path)}"
        value = number(given, "steering_coefficient", path)
        moves.append(build(Add, path, feature=feature, value=value, unit="act", special_tokens=True))
    if not moves:
        raise refused("", "There are no rows.")
    return build(Steering, "", interventions=tuple(moves))


def to_lm_eval(steering: Steering, saes: Mapping[str, Mapping[str, str]]) -> str:
    """
    Write the CSV.

    lm-eval 0.4.9 reads it; 0.4.13 stops at every row that adds, because it gives it the SAE's bias and then asserts that
    there is none.

    saes: of each served SAE, the columns `loader`, `sparse_model`, `hookpoint` and `sae_id`
    Raises ForeignSteeringError for what lm-eval cannot do: anything but additions in unit `act` at all tokens, features by
    name, and two features at one hook point, of which it would heed the last.
    """
    written = io.StringIO()
    writer = csv.DictWriter(written, LM_EVAL_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name in ("rules", "readout"):
        if getattr(steering, name):
            raise refused(name, "lm-eval knows no rules and no readout.")
    taken: dict[tuple[str, str], str] = {}
    for nth, move in enumerate(steering.interventions):
        path = f"interventions[{nth}]"
        if not isinstance(move, Add) or move.unit != "act" or move.feature is None:
            raise refused(path, "only an 'add' on a feature in unit 'act' has an equal in lm-eval.")
        if move.tokens != "all" or not move.special_tokens:
            raise refused(path, "lm-eval steers all tokens, special ones too: say so with special_tokens.")
        name, _, number_ = str(move.feature).partition("/")
        if name not in saes or not number_.isdecimal():
            raise refused(f"{path}.feature", f"{move.feature} needs its columns, and an index in place of a name.")
        hook = (saes[name].get("hookpoint", ""), saes[name].get("sae_id", ""))
        if hook in taken:
            raise refused(path, f"lm-eval heeds one feature of a hook point, and {taken[hook]} is there already.")
        taken[hook] = str(move.feature)
        writer.writerow({"action": "add", "feature_index": number_, "steering_coefficient": move.value, **saes[name]})
    return written.getvalue()
