"""Worker process: what runs the tables: `torch_executor` on CPUs, `triton_executor` on GPUs."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from saeclamp_server.engine.worker.site_vectors import SiteVectors
from saeclamp_server.engine.worker.step_tables import Batch


class Executor(Protocol):
    """Runs the tables of one worker, site by site."""

    def map_tokens(self, batch: Batch) -> None:
        """Begin a step: tell each token its program."""

    def clear(self) -> None:
        """Begin a step that reads and edits nothing."""

    def judge(self, site: int, vectors: SiteVectors) -> None:
        """Read the activations that are asked for at a site, and judge the rules whose last activation is among them."""

    def edit(self, site: int, vectors: SiteVectors) -> None:
        """
        Add all edits of a site, in place, and count them.

        A vector that would be longer than `MAX_NORM`, or not finite, becomes NaN, so that requests which share its keys and
        values are found lost too; they fail, and their blocks are wiped (see `report_builder`, `scheduler`).
        """

    def find_lost(self, last_hidden: Tensor) -> None:
        """
        Mark as lost the tokens of edited requests whose vectors became infinite behind their edits.

        Such a vector stays so: each layer adds to the residual stream, and attends to the token itself. So the last hidden
        state tells whether all keys and values of its token are finite. Of requests that are not edited nothing is asked;
        whatever their vectors are is the model's own.

        last_hidden: (num_tokens or more, width), the model's last hidden states
        """

    def settle(self, kept_to: Tensor) -> None:
        """
        Count what was done at tokens that stay, and take back what rules say of the others, which were rejected drafts.

        kept_to: (num_programs,) int64, position behind the last token that stays, by program
        """
