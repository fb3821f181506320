"""The list of metrics: complete, documented, and a check that refuses what isn't on it."""

from pathlib import Path

import pytest

from envrl.errors import ConfigFault
from envrl.tracking.metrics import METRICS, check_name
from envrl.tracking.metrics_page import main, metrics_document

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"

LOGGED = [
    "eval/success_rate", "eval/success_rate/pick_and_place_simple", "eval/episode_length",
    "eval/task_score", "eval/seconds", "rollout/success_rate", "rollout/episode_length",
    "rollout/return", "rollout/format_invalid_rate", "rollout/inadmissible_rate",
    "rollout/zero_variance_share", "rollout/fault_rate", "rollout/tokens_per_second", "rollout/seconds",
    "train/loss", "train/loss_policy", "train/loss_sp", "train/dual_clip_share", "train/approx_kl",
    "eval/fault_rate", "eval/inadmissible_rate", "rollout/action_tokens", "train/entropy", "train/kl",
    "train/clip_share", "train/ratio_mean", "train/logprob_gap", "train/sp_ce",
    "train/sp_token_accuracy", "train/id_ce", "train/id_token_accuracy", "train/id_exact_match",
    "train/lambda_sp", "train/lambda_id", "train/grad_norm", "train/grad_norm/sp",
    "train/grad_cosine/id", "train/learning_rate", "update/tokens_per_second", "update/seconds",
    "iteration",
]  # fmt: skip


@pytest.mark.parametrize("name", LOGGED)
def test_every_logged_metric_is_listed_with_unit_and_formula(name: str) -> None:
    spec = check_name(name)
    assert spec.unit
    assert spec.formula
    assert name.startswith(spec.name.split("<")[0])
    assert name.count("/") == spec.name.count("/")


@pytest.mark.parametrize(
    "name",
    [
        "eval/success", "success_rate", "train/", "", "eval/success_rate/", "eval/success_rate/a/b",
        "train/grad_cosine", "train/grad_norm/sp/x", "epoch",
    ],
)  # fmt: skip
def test_unlisted_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigFault, match=r"is not listed.*Add it to METRICS"):
        check_name(name)


def test_no_name_is_listed_twice() -> None:
    names = [spec.name for spec in METRICS]
    assert len(names) == len(set(names))


def test_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == metrics_document(), (
        "run python -m envrl.tracking.metrics_page"
    )


def test_the_command_writes_the_document_where_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--out", "pages/metrics.md"]) == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.relative_to(tmp_path).as_posix() for path in written] == ["pages/metrics.md"]
    assert written[0].read_text(encoding="utf-8") == metrics_document()
    assert capsys.readouterr().out == "wrote pages/metrics.md\n"
    with pytest.raises(SystemExit) as asked:
        main(["--help"])
    assert asked.value.code == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == written


def test_document_shows_unit_formula_and_direction() -> None:
    rows = [line for line in metrics_document().splitlines() if line.startswith("| `")]
    assert len(rows) == len(METRICS)
    assert "| `eval/success_rate` | share | episodes won / episodes | higher |" in rows
    assert all(row.count("|") == 5 for row in rows), "a formula breaks its table cell"
