"""The look-up endpoints alone, of a server with one SAE."""

from __future__ import annotations

from types import SimpleNamespace

from fastapi import FastAPI
from tests.support.bundled import D_SAE, ENTRY

from saeclamp_saes import SAEEntry
from saeclamp_saes.labelling.label_file import LabelFile
from saeclamp_saes.labelling.table import labels_path
from saeclamp_server.api.error_handlers import refuse
from saeclamp_server.api.features import load_served_saes
from saeclamp_server.api.features import router as routes
from saeclamp_server.errors import RequestError
from saeclamp_server.site_norms import QuickCheckResult, SiteNorms
from saeclamp_server.steering import SteeringContext

LENGTHS = SiteNorms(250.0, [1.0] * D_SAE)


FIT = {"num_tokens": 900, "explained_variance": 0.8, "l0": 50.0, "problem": None}


def app(entry: SAEEntry = ENTRY, labelled: bool = True) -> FastAPI:
    """The endpoints alone, of a server with one SAE."""
    labels = {entry.name: LabelFile(labels_path(entry.path))} if labelled else {}
    served = FastAPI()
    served.include_router(routes.router)
    served.add_exception_handler(RequestError, refuse)
    saes = load_served_saes({entry.name: entry}, {entry.name: QuickCheckResult(LENGTHS, FIT)}, labels)
    served.state.saeclamp = SimpleNamespace(context=SteeringContext(saes))
    return served
