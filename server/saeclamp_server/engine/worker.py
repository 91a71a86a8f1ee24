"""What saeclamp adds to a vLLM worker: the SAEs' rows, hooks behind the layers they read, and reports on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saeclamp_saes import SAE, read_sae
from saeclamp_saes.clamping import FeatureRows
from saeclamp_saes.library import sha256_of
from saeclamp_server.engine.layers import hook_layers
from saeclamp_server.engine.ledger import Ledger
from saeclamp_server.engine.live import LiveRequests
from saeclamp_server.engine.mapping import Place
from saeclamp_server.engine.ops import SiteState, bind
from saeclamp_server.engine.runner import SteeredRunner
from saeclamp_server.engine.settings import CONFIG_KEY


class SteeringWorker:
    """Mixed into the platform's worker. vLLM reaches these methods by `collective_rpc`."""

    vllm_config: Any
    model_runner: Any
    use_v2_model_runner: bool
    device: torch.device

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then the SAEs, and hook their layers before anything is compiled."""
        if self.use_v2_model_runner:
            raise RuntimeError("saeclamp steers vLLM's V1 model runner: set VLLM_USE_V2_MODEL_RUNNER=0.")
        if self.vllm_config.model_config.dtype is torch.float16:
            # a large edit overflows, and its NaN reaches other requests through recycled cache blocks
            raise RuntimeError("float16 is too narrow for steering: use --dtype bfloat16 or float32.")
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        config = self.vllm_config.additional_config[CONFIG_KEY]
        saes = {sae["name"]: _read_checked(sae) for sae in config["saes"]}
        hashes = {sae["name"]: sae["sha256"] for sae in config["saes"]}
        ledger = Ledger(self.device)
        sites, places = _lay_out(saes, hashes, ledger, self.device)
        hook_layers(self.model_runner.get_model(), sites)
        for layer, state in sites.items():
            bind(layer, state)
        # tokenizers may know special tokens beyond the model's vocabulary
        is_special = torch.zeros(
            max([self.vllm_config.model_config.get_vocab_size(), *config["special_ids"]]) + 1, dtype=torch.bool
        )
        is_special[torch.tensor(config["special_ids"], dtype=torch.long)] = True
        self._live = LiveRequests(places, config["special_ids"], ledger)
        self._steered_runner = SteeredRunner(self.model_runner, sites, self._live, is_special.to(self.device))

    def steering_reports(self, key: str) -> list[dict[str, Any]]:
        """Report on the requests of one API call (see `live.Report`), and forget them."""
        return [vars(report) for report in self._live.collect(key)]


def _read_checked(sae: dict[str, Any]) -> SAE:
    loaded = read_sae(Path(sae["folder"]))
    if sha256_of(Path(sae["weights"])) != sae["sha256"]:
        raise RuntimeError(f"The weights of SAE {sae['name']!r} changed while the server was starting.")
    return loaded


def _lay_out(
    saes: dict[str, SAE], hashes: dict[str, str], ledger: Ledger, device: torch.device
) -> tuple[dict[int, SiteState], dict[str, Place]]:
    """Stack the SAEs of each layer. Returns the sites by layer, and each SAE's place."""
    by_layer: dict[int, list[str]] = {}
    for name, sae in saes.items():
        by_layer.setdefault(sae.site.layer, []).append(name)
    places = {}
    for layer, names in by_layer.items():
        first_row = 0
        for name in names:
            places[name] = Place(layer, first_row, saes[name].d_sae, hashes[name])
            first_row += saes[name].d_sae
    sites = {
        layer: SiteState(FeatureRows.of([saes[name] for name in names], device), ledger)
        for layer, names in by_layer.items()
    }
    return sites, places
