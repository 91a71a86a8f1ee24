"""What the servers of a fleet serve in tests: a tiny model, and an SAE with a feature book."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support.checkpoints import make_model, make_sae

FLAGS = (
    *("--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8", "--served-model-name", "tiny"),
    # what a server has cached depends on what it was asked before, and the fewer tokens a receipt has readings of
    *("--no-enable-prefix-caching", "--kv-cache-memory-bytes", str(64 << 20)),
    *("--vector-site", "resid_post.2", "--max-vectors", "3", "--allow-unverified-sae"),
)
BOOK = """\
features:
- {index: 3, name: bridge, description: Bridges., max_act: 4.0, clamp: [0.5, 2.0], best: 1.0}
- {index: 17, name: food, description: Food and drink., max_act: 3.0}
"""


@dataclass(frozen=True)
class FleetFiles:
    """A tiny model, and an SAE with a book."""

    model: Path
    sae: Path

    @classmethod
    def made(cls, folder: Path, tokenizer: Path) -> FleetFiles:
        """Make them, at random but always the same."""
        sae = make_sae(folder / "low", layer=1, d_in=64, seed=1, threshold=0.5)
        (sae / "features.yaml").write_text(BOOK)
        return cls(make_model(folder / "model", tokenizer), sae)

    def copied(self, folder: Path) -> FleetFiles:
        """Copy them to where another machine would have them."""
        model, sae = (
            Path(shutil.copytree(path, folder / path.name, dirs_exist_ok=True)) for path in (self.model, self.sae)
        )
        return FleetFiles(model, sae)

    def argv(self, dtype: str = "float32") -> list[str]:
        """Arguments of `saeclamp serve`."""
        return [str(self.model), "--sae", f"low={self.sae}", "--dtype", dtype, *FLAGS]
