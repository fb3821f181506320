"""The command that writes a page of episodes: from records alone, and with what the policy expects."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from envrl.analysis.episodes import FOLDER, Episode, episode_of, read_episodes, write_episodes
from envrl.analysis.predictions import answer_key
from envrl.envs.panels import Panel
from envrl.errors import DataFault
from envrl.experiments import episodes
from envrl.experiments.config import config_from
from envrl.experiments.evaluation import play_panel
from envrl.experiments.expectations import expectations
from envrl.experiments.games import evaluation_panel
from envrl.experiments.resume import CHECKPOINT, read_checkpoint
from envrl.experiments.run import build_collector, build_pool
from envrl.experiments.trained import trained_config, trained_policy
from envrl.policy.model import Policy, load_policy
from envrl.policy.sampler import evaluation_mode
from envrl.prompts.dynamics import inverse_dynamics_question, state_prediction_question
from envrl.prompts.render import without_banner
from envrl.types import Finish, Role, Trajectory
from studies import FinishedStudy

pytestmark = pytest.mark.usefixtures("own_places")


@pytest.fixture
def run(finished: FinishedStudy, tmp_path: Path) -> Path:
    """A copy of a finished run, to write in."""
    return Path(shutil.copytree(finished.folder / "runs" / "both" / "seed_0", tmp_path / "run"))


def change(run: Path, **keys: dict[str, Any]) -> None:
    """Changes settings in a run's configuration."""
    content = trained_config(run)
    for room, values in keys.items():
        content[room] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(content))


def page(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[dict[str, Any], str]:
    """Runs the command; the data of the page it wrote, and what it said."""
    assert episodes.main([*map(str, arguments)]) == 0
    said = capsys.readouterr()
    found = re.match(r"wrote (.*?): ", said.out)
    assert found is not None
    text = Path(found[1]).read_text(encoding="utf-8")
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert inside is not None
    return json.loads(inside[1]), said.out + said.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert episodes.main([*map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


def test_a_page_of_a_study_shows_all_its_runs(
    finished: FinishedStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "page.html"
    data, said = page(capsys, finished.folder, "--iteration", "all", "--out", out)
    assert [run["name"] for run in data["runs"]] == ["both/seed_0", "grpo/seed_0"]
    assert len(data["episodes"]) == 2 * 3 * 6
    assert {row[1] for row in data["episodes"]} == {0, 2, 3}
    assert ["loss.sp.weight", ["0.2", "0.0"]] in data["differences"]
    assert "36 episodes of 2 runs" in said
    assert all(run["asked"] is None for run in data["runs"])
    data, _ = page(capsys, finished.folder, "--out", out)
    assert {row[1] for row in data["episodes"]} == {3}
    data, said = page(capsys, finished.folder, "--out", out, "--limit", "5", "--iteration", "2")
    assert [row[0] for row in data["episodes"]] == [0, 0, 1, 1, 1]
    assert data["left_out"] == 7
    assert "7 left out by --limit 5" in said


def test_one_run_gets_its_page_beside_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, said = page(capsys, run, run)
    assert f"wrote {run / 'episodes.html'}: 6 episodes of 1 run, " in said
    assert len(data["runs"]) == 1


def test_runs_of_a_study_without_episodes_are_named(
    finished: FinishedStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Path(shutil.copytree(finished.folder, tmp_path / "study"))
    shutil.rmtree(study / "runs" / "grpo" / "seed_0" / FOLDER)
    data, said = page(capsys, study)
    assert [run["arm"] for run in data["runs"]] == ["both"]
    assert "left out: there are no episodes under" in said
    shutil.rmtree(study / "runs" / "both" / "seed_0" / FOLDER)
    assert "evaluation.episodes" in refused(capsys, study)


def test_bad_input_is_refused_with_the_remedy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'nowhere' is no folder; name that of a run" in refused(capsys, "nowhere")
    assert "there are those of 0, 2, 3" in refused(capsys, run, "--iteration", "1")
    assert "--iteration soon" in refused(capsys, run, "--iteration", "soon")
    assert "--limit is 0; use 1" in refused(capsys, run, "--limit", "0")
    assert "--predict is -1; use 0" in refused(capsys, run, "--predict", "-1")
    assert "--out" in refused(capsys, run, "--out", run)
    for path in run.glob("*.ckpt"):
        path.unlink()
    assert "leave out --predict" in refused(capsys, run, "--predict", "2")
    assert not (run / "episodes.html").exists()
    shutil.rmtree(run / FOLDER)
    assert "evaluation.episodes above 0" in refused(capsys, run)


def embedded(run: Path) -> None:
    """Puts the embedded policy in the place of a random one: what it writes depends on what it reads."""
    change(run, policy={"model": "tiny"})
    policy = load_policy(config_from(trained_config(run)).embodied)
    trained = {f"policy.{n}": p.detach() for n, p in policy.named_parameters() if p.requires_grad}
    torch.save(read_checkpoint(run / CHECKPOINT) | {"state_dict": trained}, run / CHECKPOINT)


def greedy(policy: Policy, ids: Sequence[int], limit: int) -> tuple[str, bool]:
    """One token after the other through the whole model, up to the end of the turn or other markup."""
    row, written = list(ids), []
    stops = {policy.chat.end_id, *policy.chat.tokenizer.all_special_ids}
    with torch.no_grad(), evaluation_mode(policy):
        for _ in range(limit):
            token = int(policy.logits(policy.hidden_states(torch.tensor([row]))[0, -1]).argmax())
            if token in stops:
                return policy.chat.decode(written), False
            row.append(token)
            written.append(token)
    return policy.chat.decode(written), True


def played(run: Path, policy: Policy) -> tuple[list[Trajectory], list[Episode]]:
    """Episodes with the tokens they were made of, and as a run keeps them."""
    config = config_from(trained_config(run))
    whole = evaluation_panel(config.env, config.evaluation)
    panel = Panel(whole.name, whole.games[:2])
    with build_pool(config, panel) as pool:
        collector = build_collector(config, policy, pool)
        found = play_panel(policy, collector, panel, temperature=1.0, iteration=3).trajectories
    return list(found), [
        episode_of(t, policy.chat.decode_all, arm="both", seed=0, iteration=3) for t in found
    ]


@pytest.mark.parametrize("form", ["conversation", "question"])
def test_the_policy_is_asked_in_the_tokens_it_is_trained_on(run: Path, form: str) -> None:
    if form == "question":
        change(run, auxiliary={"sp_rows": "questions"})
    embedded(run)
    config = config_from(trained_config(run))
    policy = trained_policy(config, read_checkpoint(run / CHECKPOINT))
    trajectories, made = played(run, policy)
    told: list[tuple[int, int]] = []
    found = expectations(run, made, lambda done, total: told.append((done, total)))
    assert (found.iteration, found.sp_form, found.trained) == (3, form, ("sp", "id"))
    assert told[0][0] == 0
    assert told[-1] == (len(found.answers), len(found.answers))
    chat, checked = policy.chat, 0
    assert {turn.finish for episode in made for turn in episode.turns} >= {Finish.END}
    for trajectory, episode in zip(trajectories, made, strict=True):
        for number, (transition, turn) in enumerate(zip(trajectory.transitions, episode.turns, strict=True)):
            g, turns = transition.generation, episode.turns[: number + 1]
            target = without_banner(turn.next_observation)
            size = len(chat.encode(target))
            if form == "conversation":
                ahead = chat.last_observation(target, answer_ended=g.finish is Finish.END)
                markup = ahead.token_ids[: ahead.roles.index(Role.OBSERVATION)]
                answer = greedy(policy, (*g.prompt_ids, *g.token_ids, *markup), size)
            elif turn.action is not None:
                asked = state_prediction_question(config.worded, turn.observation, turn.action, target)
                answer = greedy(policy, chat.opening(asked.message).token_ids, max(32, 2 * size))
            else:
                assert answer_key(turns, "sp") not in found.answers
                continue
            kept = found.answers[answer_key(turns, "sp")]
            assert (kept.text, kept.cut) == answer
            checked += 1
            if turn.action is not None:
                asked = inverse_dynamics_question(
                    config.worded, turn.observation, turn.action, turn.next_observation
                )
                limit = max(32, 2 * len(chat.encode(turn.action)))
                kept = found.answers[answer_key(turns, "id")]
                assert (kept.text, kept.cut) == greedy(policy, chat.opening(asked.message).token_ids, limit)
    assert checked >= 10
    assert len({answer.text for answer in found.answers.values()}) > 5, "answers depend on what is asked"


def test_answers_are_kept_for_the_checkpoint_and_form(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, said = page(capsys, run, "--predict", "1")
    asked = [n for n, row in enumerate(data["episodes"]) if any(turn[10] for turn in row[-1])]
    assert asked == [0]
    assert "asking the policy of both/seed_0" in said
    assert data["runs"][0]["asked"]["iteration"] == 3
    (kept,) = (run / FOLDER).glob("predictions_*.json.gz")
    with monkeypatch.context() as patch:
        patch.setattr("envrl.experiments.expectations.trained_policy", None)
        again, said = page(capsys, run, "--predict", "1")
    assert again == data
    assert "asking" not in said
    page(capsys, run, "--predict", "2")
    assert len(list((run / FOLDER).glob("predictions_*"))) == 1
    assert len(json.loads(gzip.decompress(kept.read_bytes()))["answers"]) > sum(
        len(turn[10]) > 0 for turn in data["episodes"][0][-1]
    )
    change(run, auxiliary={"sp_rows": "questions"})
    page(capsys, run, "--predict", "1")
    assert len(list((run / FOLDER).glob("predictions_*"))) == 2
    assert len(list(read_episodes(run, "all"))) == 18, "answers are not taken for episodes"


def test_an_episode_in_other_words_is_not_asked_about(run: Path) -> None:
    first = next(read_episodes(run))
    other = first.turns[0].model_copy(update={"prompt": "Once upon a time"})
    write_episodes(run, 9, [first.model_copy(update={"turns": (other, *first.turns[1:])})])
    with pytest.raises(DataFault, match=r"turn 1 of game .* in other words"):
        expectations(run, list(read_episodes(run)), lambda done, total: None)
