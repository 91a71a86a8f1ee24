"""What files and databases of users are found by: hashes, identities and columns. One of these changed is data lost."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import tiny_training
from tests.support.bundled import ENTRY
from tests.support.sae_entries import served_saes
from tests.support.tiny_models import make

from saeclamp.types import Steering
from saeclamp_saes.labelling.schema import SCHEMA
from saeclamp_saes.training.run import train
from saeclamp_server.calibration.client import GREEDY, sampling_decoding
from saeclamp_server.calibration.green_zone import Criteria
from saeclamp_server.calibration.prompts import Prompts
from saeclamp_server.calibration.settings import STRENGTHS, CalibrationSettings
from saeclamp_server.engine.scheduler.prefix_cache import BlockEdits
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.steering import SteeringContext, resolve
from saeclamp_server.steering.chat_spans import ChatSpans
from saeclamp_server.variants.version import canonical_json, resolved_fingerprint

STEERINGS: dict[str, Any] = {
    "clamp": {"interventions": [{"op": "clamp", "feature": "bundled/golden-gate", "value": 0.75}]},
    "all operations": {
        "interventions": [
            {"op": "clamp", "feature": "bundled/1", "value": 3, "unit": "act", "tokens": "prompt"},
            {"op": "add", "feature": "bundled/2", "value": -0.5, "unit": "resid_norm", "tokens": "generated"},
            {"op": "at_least", "feature": "bundled/sea", "value": 0.5, "tokens": {"first": 4}},
            {
                "op": "at_most",
                "feature": {"sae": "bundled", "index": 4},
                "value": 1,
                "unit": "act",
                "special_tokens": True,
            },
            {"op": "scale", "feature": "bundled/5", "factor": 1.5, "tokens": {"positions": [1, 2, 3, 7]}},
            {"op": "ablate", "feature": "bundled/6", "tokens": {"after": 9}},
        ]
    },
    "by role": {
        "interventions": [{"op": "clamp", "feature": "bundled/sea", "value": 1, "tokens": {"roles": ["user"]}}]
    },
    "rules": {
        "rules": [
            {
                "name": "no-bridges",
                "when": {
                    "all": [
                        {"feature": "bundled/golden-gate", "above": 0.4},
                        {"not": {"any": [{"feature": "bundled/7", "below": 2, "unit": "act"}]}},
                    ]
                },
                "then": [{"op": "ablate", "feature": "bundled/golden-gate"}],
                "tokens": "generated",
            },
            {"name": "end", "when": {"feature": "bundled/8", "above": 5, "unit": "act"}, "then": "abort"},
        ]
    },
    "readout": {"readout": {"features": ["bundled/golden-gate"], "top_k": 3}, "receipt": "tokens"},
}
"""One of each kind, of which hashes are recorded."""
PROMPT_LEN = 40
BLOCK = 16


def programs() -> Any:
    """Hash what steerings do: `spec` of receipts, `meaning` and text of variants, blocks of the prefix cache."""
    norms = SiteNorms(100.0, [1.0 + index / 4096 for index in range(ENTRY.summary.d_sae)])
    served = SteeringContext(served_saes((ENTRY, norms)))
    conversation = ChatSpans(PROMPT_LEN, (("system", 0, 10), ("user", 10, 30), ("assistant", 30, 38)))
    found = {}
    for name, value in STEERINGS.items():
        steering = Steering.model_validate(value)
        program = resolve(steering, served, conversation).program
        edited = BlockEdits(program, PROMPT_LEN, b"secret")
        found[name] = {
            "written": canonical_json(steering),
            "program": program.to_json(),
            "spec": program.spec,
            "meaning": resolved_fingerprint(program),
            "edits of blocks": [edited.within(start, start + BLOCK) for start in range(0, PROMPT_LEN, BLOCK)],
            "joined": [(edited.join(None, b"block", edits) or b"").hex() for edits in (None, "edits")],
        }
    return found


def runs() -> Any:
    """Record by what a folder of training and one of harvested vectors, and a calibration, are found to be the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = tiny_training.corpus(folder / "data")
        reader = tiny_training.reader(make("llama"))
        recipe = tiny_training.recipe(tokens=32 * 20)
        harvest = tiny_training.wanted(data).identity(reader)
        out = folder / "run"
        train(tiny_training.settings(out), recipe, tiny_training.wanted(data, 32 * 20), reader)
        files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        run = json.loads((out / "run.json").read_text())
        cfg = json.loads((out / "sae" / "cfg.json").read_text())
    for identity in (harvest, run):
        identity["data_sha256"] = sorted(map(len, identity["data_sha256"]))
    return {"harvest": harvest, "run": run, "files": files, "cfg": sorted(cfg), "calibration": _calibration()}


def _calibration() -> Any:
    prompts = Prompts(("Why?", "How so?"), "mine.txt")
    decodings = (GREEDY, sampling_decoding(2))
    settings = CalibrationSettings(ENTRY, {"name": "tiny"}, prompts, decodings, 48, False, STRENGTHS, Criteria())
    return {"asked": settings.asked, "identity": settings.identity}


def columns() -> Any:
    """List the columns of a file of labels."""
    return [[field.name, str(field.type), field.nullable] for field in SCHEMA]


KEPT: dict[str, Callable[[], Any]] = {"programs": programs, "runs": runs, "columns": columns}
