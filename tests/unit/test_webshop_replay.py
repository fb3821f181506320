"""Recorded episodes are replayed without a difference, and differences are found."""

import copy
import json
from pathlib import Path

import pytest

from envrl.envs.webshop.replay import ShopPaths, build_session, main
from unit.webshop_data import ATTRIBUTES, DATA, HUMAN, ITEMS, recorded

FILES = ["--items", str(ITEMS), "--attributes", str(ATTRIBUTES), "--human", str(HUMAN)]


def run(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(path), *FILES])
    output = capsys.readouterr()
    return code, output.out, output.err


def changed(tmp_path: Path, change) -> Path:
    """The first recorded episode with one thing changed."""
    episode = copy.deepcopy(recorded()["episodes"][0])
    change(episode)
    path = tmp_path / "traces.json"
    path.write_text(json.dumps({"episodes": [episode]}), encoding="utf-8")
    return path


def test_all_recorded_episodes_are_the_same(capsys):
    code, out, _ = run(DATA / "derived_traces.json", capsys)
    lines = out.splitlines()
    assert lines[-1] == "episodes=8 steps=65 differences=0"
    assert code == 0
    assert len(lines) == 2  # the search for an attribute, which the original can't do, is named
    assert "search[<a> soft]" in lines[0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("obs", lambda e: e["steps"][1].update(obs="x")),
        ("rich", lambda e: e["steps"][3].update(rich=e["steps"][2]["rich"])),
        ("url", lambda e: e["steps"][0].update(url="x")),
        ("available", lambda e: e["steps"][2]["available"]["clickables"].pop()),
        ("reward", lambda e: e["steps"][11].update(reward=0.5)),
        ("done", lambda e: e["steps"][11].update(done=False)),
        ("final_session", lambda e: e["final_session"]["actions"].update(search=1)),
        ("final_session", lambda e: e["final_session"]["verbose_info"].update(w_att=0.5)),
        ("goal", lambda e: e["goal"].update(price_upper=50.0)),
        ("instruction_text", lambda e: e.update(instruction_text="x")),
    ],
)
def test_every_recorded_value_is_compared(tmp_path, capsys, name, change):
    code, out, _ = run(changed(tmp_path, change), capsys)
    assert code == 1
    assert out.splitlines()[-1] == "episodes=1 steps=14 differences=1"
    assert f", {name}:" in out


def test_another_action_makes_all_later_steps_differ(tmp_path, capsys):
    code, out, _ = run(changed(tmp_path, lambda e: e["steps"][2].update(action="click[b0shoe0002]")), capsys)
    assert code == 1
    assert int(out.rsplit("=", 1)[1]) > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't read"),
        ("[]", "no list 'episodes'"),
        ('{"episodes": []}', "no list 'episodes'"),
        ('{"episodes": [3]}', "episode 0 (from 0) lacks human_goals"),
        ('{"episodes": [{"human_goals": 1, "seed": 1, "session": 1, "steps": []}]}', "lacks kwargs"),
        (
            '{"episodes": [{"human_goals": 1, "seed": 1, "session": 1, "steps": [], "kwargs": {"hue": 1}}]}',
            "unknown setting 'hue'",
        ),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, capsys, content, message):
    path = tmp_path / "traces.json"
    path.write_text(content, encoding="utf-8")
    code, out, err = run(path, capsys)
    assert (code, out) == (1, "")
    assert message in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(seed=[1]), "'seed' holds [1], not a whole number"),
        (lambda e: e.update(session={}), "'session' holds {}, not a number, a name or null"),
        (lambda e: e.update(kwargs=None), "'kwargs' holds None, not an object"),
        (lambda e: e.update(kwargs={"num_prev_obs": "2"}), "setting 'num_prev_obs' holds '2'"),
        (lambda e: e.update(kwargs={"limit_goals": None}), "setting 'limit_goals' holds None"),
        (lambda e: e.update(steps=3), "'steps' holds 3, not a list of objects"),
        (lambda e: e.update(steps=[{}, 2]), "not a list of objects"),
        (lambda e: e["steps"][1].pop("action"), "step 1 (from 0) has no text 'action'"),
        (lambda e: e["steps"][2].update(action=5), "step 2 (from 0) has no text 'action'"),
    ],
)
def test_an_episode_that_cannot_be_played_is_refused(tmp_path, capsys, change, message):
    code, out, err = run(changed(tmp_path, change), capsys)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "traces.json: episode 0 (from 0): " in err
    assert message in err
    assert err.endswith("record it again\n")


def test_settings_that_ask_for_nothing_special_are_played(tmp_path, capsys):
    path = changed(tmp_path, lambda e: e.update(kwargs={"num_products": None, "limit_goals": -1}))
    assert run(path, capsys)[0] == 0


def test_missing_files_are_named(tmp_path, capsys):
    assert main([str(DATA / "derived_traces.json"), *FILES[:4], "--human", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
    code, _, err = run(tmp_path / "traces.json", capsys)
    assert code == 1
    assert "traces.json" in err


@pytest.mark.parametrize("human", [0, 1])
@pytest.mark.parametrize("seed", [0, 42, 233])
def test_the_first_customer_is_the_one_the_original_drew(human, seed):
    expected = recorded()["goals"][f"original human={human} prior_seed={seed} shuffle=233"]
    episode = {"human_goals": bool(human), "seed": seed, "kwargs": {}}
    state = build_session(ShopPaths(ITEMS, ATTRIBUTES, HUMAN), episode).session_state
    assert state.session_id == expected["first_random_session"]
    assert state.goal.instruction_text == expected["first_goal"]


def test_html_is_played_but_not_compared(tmp_path, capsys):
    code, out, _ = run(changed(tmp_path, lambda e: e.update(kwargs={"observation_mode": "html"})), capsys)
    assert (code, out) == (0, "episodes=1 steps=14 differences=0\n")
