"""
Steering that was written for other projects, as ours, and lm-eval's CSV both ways.

    goodfire.py      variants and controllers of Goodfire's Ember
    steering_api.py  SteeringAPI's interventions
    neuronpedia.py   Neuronpedia's requests to steer
    lm_eval.py       the CSV of lm-eval's `steered` model
    fields.py        reading other projects' fields

Each function says in which unit it takes the other project's numbers. What has no equal here is refused with the field's
place and the reason, never approximated in silence: a projection that is set is not an activation that is set. Fields that
are not known are refused too, for they may steer.
"""

from __future__ import annotations

from saeclamp.importing.fields import ForeignSteeringError
from saeclamp.importing.goodfire import from_goodfire
from saeclamp.importing.lm_eval import LM_EVAL_COLUMNS, from_lm_eval, to_lm_eval
from saeclamp.importing.neuronpedia import from_neuronpedia
from saeclamp.importing.steering_api import from_steering_api

__all__ = [
    "ForeignSteeringError",
    "from_goodfire",
    "from_steering_api",
    "from_neuronpedia",
    "from_lm_eval",
    "to_lm_eval",
    "LM_EVAL_COLUMNS",
]
