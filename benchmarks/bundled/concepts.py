"""
Which features of an SAE read the subjects of the feature book?

For each subject, features are ranked by their mean activation in texts of its sources, less three times that in all others.
The best ones are printed as arguments of `saeclamp calibrate`, which tells whether they steer.

    python benchmarks/bundled/concepts.py runs/final/sae --data runs/chats.jsonl CORPUS/corpus-00.jsonl.gz
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from reading import encoded, open_reader, ranked, records, vectors

from saeclamp_saes import read_sae
from saeclamp_saes.cli.log_handler import set_up_log
from saeclamp_saes.library.resolve import find_sae, open_entry
from saeclamp_saes.lm.documents import Document

DOCUMENTS_OF_A_SOURCE = 15


class Subject(NamedTuple):
    """What a feature may be about."""

    name: str
    sources: tuple[str, ...]
    """Of the texts that are about it"""
    words: str
    """Of which an answer about it holds one, as `saeclamp calibrate --concept` takes them"""


SUBJECTS = (
    Subject("french", ("sampled/french", "wikipedia_vital_fr"), "les;est;une;dans;vous;je;avec;c'est;nous;qui"),
    Subject("spanish", ("sampled/spanish", "wikipedia_vital_es"), "los;las;una;por;con;para;del;como;ser;y;es"),
    Subject("german", ("rustbook_de",), "der;und;das;ist;ein;eine;nicht;mit;sie;ich;von"),
    Subject(
        "code", ("sampled/code", "cpython_stdlib", "thealgorithms_python"), "def;import;print;function*;return;python"
    ),
    Subject("numbers", ("sampled/numbers", "gsm8k"), "equation*;multipl*;divid*;equals;sum;percent*;calculat*;total"),
    Subject("sea", ("sampled/sea",), "sea;seas;ocean*;ship*;sail*;wave*;boat*;fish*;coast*;shore*;water*"),
    Subject(
        "food",
        ("sampled/food", "based_cooking"),
        "food*;dish*;recipe*;cook*;meal*;ingredient*;flavor*;cuisine*;delicious",
    ),
    Subject("law", ("sampled/law",), "law;laws;legal*;court*;judge*;rights;contract*;attorney*;lawyer*;justice"),
    Subject("religion", ("sampled/religion", "bible_kjv"), "god*;lord;faith*;pray*;jesus;christ*;church*;holy;spirit*"),
    Subject("poetry", ("sampled/poetry",), "heart*;moon*;whisper*;dream*;gentle;dance*;sky;stars;soul*;silence"),
    Subject("fear", ("sampled/fear",), "fear*;dark*;scream*;terr*;shadow*;horror*;afraid;ghost*;blood*;haunt*;creep*"),
    Subject("joy", ("sampled/joy",), "joy*;happ*;delight*;laugh*;smil*;cheer*;celebrat*;wonderful"),
    Subject("sadness", ("sampled/sadness",), "sad*;tears;grief*;lonel*;sorrow*;cry*;mourn*;lost;loss"),
    Subject("pirate", ("sampled/pirate",), "arrr;ahoy;matey*;pirate*;treasure*;crew*;ship*;ye;captain*;seas"),
    Subject("shakespeare", ("sampled/shakespeare",), "thou;thy;thee;doth;hath;'tis;tis;hast;art;shalt"),
    Subject("space", ("sampled/space",), "space*;star;stars;planet*;galax*;universe;astronaut*;moon;mars;cosm*;orbit*"),
    Subject("music", ("sampled/music",), "music*;song*;melod*;piano*;guitar*;band;concert*;sound*;instrument*"),
    Subject("war", ("sampled/war",), "war;wars;soldier*;battle*;enem*;army;military;fight*;troops;weapon*"),
    Subject("medicine", ("sampled/medicine",), "doctor*;medic*;patient*;disease*;treatment*;health*;symptom*;blood*"),
    Subject(
        "politics",
        ("us_presidential_speeches",),
        "nation*;government*;people;citizen*;congress;states;america*;country",
    ),
    Subject("money", ("openstax_ccby",), "econom*;market*;money;tax*;financ*;invest*;price*;bank*;income"),
)


def chosen_documents(data: Sequence[Path]) -> dict[str, list[Document]]:
    """Take the first texts of each source."""
    chosen: dict[str, list[Document]] = {}
    for record in records(data):
        some = chosen.setdefault(record["source"], [])
        if len(some) < DOCUMENTS_OF_A_SOURCE:
            some.append(Document(record.get("text"), record.get("messages")))
    return chosen


def main() -> None:
    """Rank, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--most", type=int, default=3, help="features of each subject")
    args = parser.parse_args()
    set_up_log()
    entry = open_entry(find_sae(args.sae))
    sae, reader = read_sae(entry.path, entry.options), open_reader(entry.summary.reads[:1])
    means = {
        source: encoded(sae, vectors(reader, some)[:, 0]).mean(dim=0)
        for source, some in chosen_documents(args.data).items()
    }
    for subject in SUBJECTS:
        inside = torch.stack([mean for source, mean in means.items() if source in subject.sources]).mean(dim=0)
        others = torch.stack([mean for source, mean in means.items() if source not in subject.sources]).mean(dim=0)
        best = ranked(inside, others)[: args.most]
        shown = " ".join(f"{index} ({inside[index]:.1f}, else {others[index]:.1f})" for index in best)
        print(f"{subject.name:12} {shown}")
        for index in best:
            print(f"  --features {index} --concept {shlex.quote(f'{index}={subject.words}')}")


if __name__ == "__main__":
    main()
