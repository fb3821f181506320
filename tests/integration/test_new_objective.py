"""The page on adding an objective: its file and its line, as a reader would copy them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from envrl.errors import ConfigFault
from envrl.experiments.config import config_from
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.tracking.metrics import check_name
from envrl.training.objectives.registry import objectives_of
from small_runs import RunPlan, fit, small_run, weights
from support import IdentityEnv, game, word_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning")

PAGE = (Path(__file__).parents[2] / "docs" / "new_objective.md").read_text(encoding="utf-8")
WORDS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "red", "green", "won", "no", ">", "change?")


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_page_works_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_objectives.py").write_text(block("python"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    loss = config_from(yaml.safe_load(block("yaml"))).loss
    policy = PolicySettings(model=str(word_checkpoint(WORDS)), lora=LoraSettings(enabled=False))
    plan = RunPlan(policy, (game("red"), game("green")), lambda: IdentityEnv(turns=2), measure=False)
    plan = replace(plan, rollout=replace(plan.rollout, games=2))
    run, bare = small_run(replace(plan, loss=loss)), small_run(plan)
    metrics = fit(run, 2)
    fit(bare, 2)
    for iteration, weight in enumerate((0.1, 0.05)):
        assert metrics[iteration]["train/lambda/change"] == pytest.approx(weight)
        assert metrics[iteration]["train/loss_change"] == metrics[iteration]["train/ce/change"] > 0
    # Ten words, two tokens of an answer: a random policy is near log(10) = 2.3 nats each.
    assert 1.0 < metrics[0]["train/ce/change"] < 4.0
    assert {"train/grad_norm/change", "train/grad_cosine/change"} <= metrics[0].keys()
    for name in metrics[0]:
        check_name(name)
    changed, plain = weights(run), weights(bare)
    assert any((changed[name] != plain[name]).any() for name in plain)


def test_named_terms_are_those_on_the_page() -> None:
    """What the page promises of the built-in names."""
    line = {"loss.objectives": [{"use": name} for name in ("paw", "echo")]}
    names = [w.objective.name for w in objectives_of(config_from(line).loss)]
    assert names == ["sp", "id", "paw", "echo"]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"use": "pow"}, r"names 'pow', which does not exist; use one of paw, echo"),
        ({"use": "sp"}, r"loss\.sp\.weight"),
        ({"use": "nowhere.at_all:Thing"}, r"can't be imported \(No module named 'nowhere'\)"),
        ({"use": "yaml:YAMLError"}, r"is no auxiliary objective; derive it from"),
        ({"use": "pathlib:Path"}, r"a module of Python's own; name one of yours"),
        ({"use": "echo", "options": {"share": 0.5}}, r"'echo' has no option 'share'; it knows none"),
        ({"use": "paw", "options": {"share": 0.0}}, r"paw\.share is 0\.0; use a share above 0"),
        ({"use": "paw", "options": {"margin": 1.0}}, r"paw\.margin is 1\.0"),
    ],
)
def test_objectives_that_do_not_exist_are_refused(objective: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigFault, match=message):
        objectives_of(config_from({"loss.objectives": [objective]}).loss)


def test_an_objective_used_twice_is_refused() -> None:
    twice = config_from({"loss.objectives": [{"use": "echo"}, {"use": "echo"}]}).loss
    with pytest.raises(ConfigFault, match="second term named 'echo'"):
        objectives_of(twice)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auxiliary.control": "drop_action", "auxiliary.shuffle_targets": True}, "choose one of them"),
        ({"auxiliary.data": "random"}, r"set auxiliary\.sp_rows=questions"),
        ({"auxiliary.control": "drop_action", "prompt.form": "reasoned"}, "out of the thoughts"),
        (
            {"auxiliary.shuffle_targets": True, "loss.objectives": [{"use": "paw"}]},
            "controls alter state prediction",
        ),
        ({"batch.alternate": 4}, "no auxiliary objective has a weight"),
        ({"batch.alternate": -1}, r"batch\.alternate is -1"),
        ({"batch.extra": "policy"}, r"set batch\.alternate=4"),
        ({"loss.balance.keep": 1.0}, r"loss\.balance\.keep is 1\.0"),
        ({"loss.balance.every": 0}, r"loss\.balance\.every is 0"),
        ({"loss.balance.rate": 0.0}, r"loss\.balance\.rate is 0\.0"),
        ({"loss.balance.most": -1.0}, r"loss\.balance\.most is -1\.0"),
        ({"loss.stop.window": -1}, r"loss\.stop\.window is -1"),
        ({"loss.stop.success_drop": 2.0}, r"loss\.stop\.success_drop is 2\.0"),
        (
            {"loss.objectives": [{"use": "echo", "schedule": {"length": 99}}]},
            r"loss\.objectives\[0\]\.schedule\.length is 99",
        ),
        ({"loss.objectives": [{"use": "echo", "wegth": 1}]}, "wegth"),
    ],
)
def test_impossible_combinations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigFault, match=message):
        config_from(changes)
