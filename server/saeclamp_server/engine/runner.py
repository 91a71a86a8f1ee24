"""
The adapter to vLLM's V1 model runner (`GPUModelRunner` and its CPU subclass).

After `_prepare_inputs` the batch order of the step is fixed and the token ids are on the device; that is where the step of
each SAE and site is filled. The other seam is `_sample`, where a request that could not be steered is made to stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saeclamp_saes.clamping import Edits
from saeclamp_server.engine.live import LiveRequests, Scheduled
from saeclamp_server.engine.mapping import SAEPairs, Span, pairs_by_sae
from saeclamp_server.engine.ops import LoadedSAE, SAEStep, SiteState
from saeclamp_server.program import EXTRA_ARGS_KEY


class SteeredRunner:
    """Fills the steps of SAEs and sites for one vLLM V1 runner, whose methods it wraps."""

    def __init__(
        self,
        runner: Any,
        saes: Sequence[LoadedSAE],
        sites: Sequence[SiteState],
        live: LiveRequests,
        is_special: Tensor,
    ) -> None:
        """
        sites: by number
        is_special: (vocab_size,) bool, on the runner's device
        """
        self._runner = runner
        self._saes = saes
        self._sites = sites
        self._live = live
        self._is_special = is_special
        self._prepare_inputs = runner._prepare_inputs
        self._sample = runner._sample
        self._dummy_run = runner._dummy_run
        runner._prepare_inputs = self._prepare_and_fill
        runner._sample = self._stop_failed_and_sample
        runner._dummy_run = self._clear_and_dummy_run

    def _prepare_and_fill(self, scheduler_output: Any, num_scheduled_tokens: NDArray[np.int32]) -> Any:
        prepared = self._prepare_inputs(scheduler_output, num_scheduled_tokens)
        self._fill(pairs_by_sae(self._spans(num_scheduled_tokens)))
        self._point_probes(num_scheduled_tokens)
        return prepared

    def _point_probes(self, num_scheduled_tokens: NDArray[np.int32]) -> None:
        """Let probes record prompt positions only: not padding, not what was generated."""
        if not any(state.probe.is_recording for state in self._sites):
            return
        batch, rows, first_row = self._runner.input_batch, [], 0
        for index, num_tokens in enumerate(num_scheduled_tokens.tolist()):
            left = int(batch.num_prompt_tokens[index]) - int(batch.num_computed_tokens_cpu[index])
            rows.append(np.arange(first_row, first_row + max(0, min(num_tokens, left))))
            first_row += num_tokens
        for state in self._sites:
            state.probe.rows = self._to_device(np.concatenate(rows))

    def _clear_and_dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        # a dummy batch must not run the steps of the last real one
        self._fill({})
        return self._dummy_run(*args, **kwargs)

    def _spans(self, num_scheduled_tokens: NDArray[np.int32]) -> Iterator[Span]:
        requests, batch = self._runner.requests, self._runner.input_batch
        self._live.forget_the_uncollected(requests.__contains__)
        first_row = 0
        for index, (request_id, num_tokens) in enumerate(
            zip(batch.req_ids, num_scheduled_tokens.tolist(), strict=True)
        ):
            request = requests[request_id]
            params = request.sampling_params
            if params is not None and params.extra_args and EXTRA_ARGS_KEY in params.extra_args:
                payload, prompt_ids = params.extra_args[EXTRA_ARGS_KEY], request.prompt_token_ids or []
                position = int(batch.num_computed_tokens_cpu[index])
                span = self._live.span(Scheduled(request_id, payload, prompt_ids, first_row, num_tokens, position))
                if span is not None:
                    yield span
            first_row += num_tokens

    def _fill(self, pairs: Mapping[str, SAEPairs]) -> None:
        edits: dict[str, dict[int, Edits]] = {name: {} for name in pairs}
        lives = {name: self._is_live(sae_pairs) for name, sae_pairs in pairs.items()}
        for number, state in enumerate(self._sites):
            here = [name for name in state.sae_names if name in pairs]
            state.tokens = None
            if not here:
                continue
            # one list of rows for all SAEs of the site, so that their changes are summed before the one rounding
            tokens, token = np.unique(np.concatenate([pairs[name].batch_row for name in here]), return_inverse=True)
            state.tokens = self._to_device(tokens)
            ends = np.cumsum([len(pairs[name].batch_row) for name in here])
            for name, part in zip(here, np.split(token, ends[:-1]), strict=True):
                edits[name][number] = self._edits(pairs[name], part, lives[name])
        for loaded in self._saes:
            loaded.before = None
            loaded.step = self._step(pairs[loaded.name], edits[loaded.name]) if loaded.name in pairs else None

    def _is_live(self, pairs: SAEPairs) -> Tensor:
        # from the ids on the device: under asynchronous scheduling the host does not know the last sampled ones yet
        ids = self._runner.input_ids.gpu[self._to_device(pairs.batch_row)]
        return (~self._is_special[ids] | self._to_device(pairs.special)).float()

    def _edits(self, pairs: SAEPairs, token: NDArray[np.int64], live: Tensor) -> Edits:
        return Edits(
            token=self._to_device(token),
            feature=self._to_device(pairs.feature),
            moves=self._to_device(pairs.moves),
            live=live,
        )

    def _step(self, pairs: SAEPairs, edits: Mapping[int, Edits]) -> SAEStep:
        return SAEStep(
            edits=edits,
            slot=self._to_device(pairs.slot),
            counts=self._to_device(np.stack((pairs.prompt, pairs.generated), axis=1)).float(),
        )

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._runner.device)

    def _stop_failed_and_sample(self, logits: Tensor | None, spec_decode_metadata: Any) -> Any:
        if logits is not None and self._live.failures:
            for index, request_id in enumerate(self._runner.input_batch.req_ids):
                if request_id in self._live.failures:
                    self._leave_only_a_stop(logits[index], request_id)
        return self._sample(logits, spec_decode_metadata)

    def _leave_only_a_stop(self, row: Tensor, request_id: str) -> None:
        params = self._runner.requests[request_id].sampling_params
        stops = sorted(params.all_stop_token_ids) or [0]
        row.fill_(float("-inf"))
        row[stops[0]] = 0.0
