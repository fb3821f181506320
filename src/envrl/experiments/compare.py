"""Compares two studies arm by arm: ``python -m envrl.experiments.compare --help``.

python -m envrl.experiments.compare mlruns/studies/quick mlruns/studies/quick_again
python -m envrl.experiments.compare quick quick --arms grpo+sp:grpo+sp+id
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from envrl.analysis.studies import Match
from envrl.errors import ConfigFault, DataFault
from envrl.experiments.console import DEFAULT_ROOT, guarded, say

_MOST_SETTINGS = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.experiments.compare",
        description="Compare two studies arm by arm: success with intervals, and the settings that differ. "
        "Games and seeds are paired where both studies have the same.",
    )
    parser.add_argument("first", help="folder of a study, or its name below ROOT/studies")
    parser.add_argument("second", help="the other one; the first is subtracted from it")
    parser.add_argument(
        "--arms",
        help="arms to compare, separated by commas; FIRST:SECOND where the names differ (default: all arms "
        "of the same name)",
    )
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="write comparison.html and comparison.json to this folder")
    return parser


def _command(options: argparse.Namespace) -> int:
    from envrl.analysis.records import load_records, write_text_atomic
    from envrl.analysis.studies import Side, compare_studies, matches_document
    from envrl.analysis.studies_page import comparison_page

    folders = [_folder(name, options.root) for name in (options.first, options.second)]
    labels = [folder.name for folder in folders]
    if labels[0] == labels[1]:
        # Runs of one study, or of studies with the same name below different roots.
        same = folders[0].resolve() == folders[1].resolve()
        labels = [f"{labels[0]} (1)", f"{labels[1]} (2)"] if same else [str(folder) for folder in folders]
    first, second = (
        Side(label, tuple(load_records(folder))) for label, folder in zip(labels, folders, strict=True)
    )
    matches = compare_studies(first, second, _pairs(options.arms))
    console = Console()
    _print(console, labels, matches)
    if options.out is not None:
        document = json.dumps(matches_document(first, second, matches), indent=1, ensure_ascii=False)
        write_text_atomic(options.out / "comparison.json", document + "\n")
        write_text_atomic(options.out / "comparison.html", comparison_page(first, second, matches))
        for name in ("comparison.html", "comparison.json"):
            say(console, f"  {options.out / name}")
    return 0


def _folder(name: str, root: Path) -> Path:
    for folder in (Path(name), root / "studies" / name):
        if (folder / "runs").is_dir():
            return folder
    known = sorted(path.parent.name for path in (root / "studies").glob("*/runs"))
    raise DataFault(
        f"'{name}' is no study: neither {name} nor {root / 'studies' / name} holds runs; "
        f"studies below {root}: {', '.join(known) or 'none'}"
    )


def _pairs(text: str | None) -> list[tuple[str, str]] | None:
    if text is None:
        return None
    pairs = []
    for part in text.split(","):
        first, colon, second = part.strip().partition(":")
        if not first or (colon and not second):
            raise ConfigFault(f"--arms {text}: give names separated by commas, or FIRST:SECOND")
        pairs.append((first, second or first))
    return pairs


def _print(console: Console, labels: Sequence[str], matches: Sequence[Match]) -> None:
    from envrl.analysis.format import p_value, percent, signed, signed_interval

    say(console, f"A: {labels[0]}")
    say(console, f"B: {labels[1]}")
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("arm", overflow="fold", min_width=8)
    for heading in (" seeds", " A, %", " B, %", " B − A", " 95 % interval", " p", " paired"):
        table.add_column(heading, justify="right", no_wrap=True)
    for match in matches:
        table.add_row(
            Text(_name(match)),
            f"{len(match.seeds[0])}, {len(match.seeds[1])}",
            percent(match.finals[0].value),
            percent(match.finals[1].value),
            signed(match.difference.value),
            signed_interval(match.difference),
            "–" if match.p_value is None else p_value(match.p_value),
            f"{len(match.paired)} seeds" if match.paired else "games" if match.same_games else "no",
        )
    console.print(table)
    if not all(match.same_games for match in matches):
        say(console, "The panels differ: a difference may be one of the games, and there is no p.")
    for match in matches:
        differs = [f"{key}: {a} | {b}" for key, (a, b) in match.settings.items()]
        shown = differs[:_MOST_SETTINGS]
        if hidden := len(differs) - len(shown):
            shown.append(f"and {hidden} more, see --out")
        say(console, f"{_name(match)} differs in {'; '.join(shown) if shown else 'no setting'}")


def _name(match: Match) -> str:
    return match.first if match.first == match.second else f"{match.first} : {match.second}"


if __name__ == "__main__":
    sys.exit(main())
