"""The benchmarks at a very small size: what they write has its keys, and numbers that can be."""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from envrl.experiments.config import RunConfig
from envrl.policy.model import LoraSettings, PolicySettings, load_policy

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STUDIES = ("quick.yaml", "webshop_quick.yaml")
SMALL = """name: small
extends: {study}
base:
  rollout.games: 2
  rollout.episodes_per_game: 2
  env.max_steps: 4
  batch.micro_batches: 2
"""
RATE = re.compile(r"_(tokens_per_s|ratio|ms_per_episode|mib|s)$")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch, own_places: None) -> Iterator[None]:
    """Scripts import each other by name; what they set for their process is put back."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    threads = torch.get_num_threads()
    names = importlib.import_module("iteration")._CHATTY
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    torch.set_num_threads(threads)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def small_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The studies that the benchmarks run, with few and short episodes."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in STUDIES:
        (folder / name).write_text(SMALL.format(study=BENCHMARKS.parent / "experiments" / name))
    for script in ("iteration", "long_run"):
        monkeypatch.setattr(importlib.import_module(script), "STUDIES", folder)
    return folder


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def written(path: Path) -> dict[str, float]:
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


def require_plausible(numbers: dict[str, float]) -> None:
    """Flat keys of plain words, each with a positive number, ratios named so."""
    assert numbers
    for key, value in numbers.items():
        assert re.fullmatch(r"\w+", key), key
        assert isinstance(value, (int, float)) and 0 < value < 1e9, (key, value)  # noqa: PT018


@pytest.mark.parametrize("without_gradients", [False, True])
@pytest.mark.parametrize(
    ("key_heads", "keys", "forward", "backward"),
    [
        # Two products of 2 rows · 4 heads · 8 · 8 · 16, two operations each: 32,768; causal, half of it.
        (4, 8, 16_384, 40_960),
        (2, 8, 16_384, 40_960),
        # With a mask all 8 · 10 pairs: 40,960. Backward has five products.
        (4, 10, 40_960, 102_400),
        (2, 10, 40_960, 102_400),
    ],
)
def test_operations_of_attention_are_counted(
    key_heads: int, keys: int, forward: int, backward: int, without_gradients: bool
) -> None:
    query = torch.randn(2, 4, 8, 16, requires_grad=True)
    key, value = (torch.randn(2, key_heads, keys, 16, requires_grad=True) for _ in range(2))
    mask = None if keys == 8 else torch.ones(2, 1, 8, 10, dtype=torch.bool)
    with script("flops").counter() as counted, torch.inference_mode(without_gradients):
        seen = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, enable_gqa=key_heads == 2
        )
        assert counted.get_total_flops() == forward
        if not without_gradients:
            seen.sum().backward()
            assert counted.get_total_flops() == forward + backward


def test_operations_of_a_linear_layer_are_counted() -> None:
    layer = torch.nn.Linear(5, 7)
    with script("flops").counter() as counted:
        scores = layer(torch.randn(3, 5))
        assert counted.get_total_flops() == 210  # 3 · 5 · 7 products, each with an addition
        scores.sum().backward()
    assert counted.get_total_flops() == 420  # the input needs no gradient


def test_operations_of_the_embedded_policy_by_hand_are_those_counted() -> None:
    flops, policy = script("flops"), load_policy(PolicySettings(lora=LoraSettings(enabled=False)))
    size = flops.ModelSize.of(policy)
    # Layers of 2 · 128 · 128 + 2 · 128 · 32 + 3 · 128 · 384 weights, four of them.
    assert size == flops.ModelSize(
        base=753_664, passed=753_664, trained=753_664, head=114_688, trained_head=114_688, pair=2_048
    )
    with flops.counter() as counted:
        policy.hidden_states(torch.ones(1, 10, dtype=torch.long))
    # 2 · 753,664 · 10 and half of 2,048 · 10 · 10.
    assert counted.get_total_flops() == size.forward([10], 0) == 15_175_680
    assert size.forward([10], 3) == 15_175_680 + 688_128
    assert size.update([10], 3) == 3 * size.forward([10], 3)


def test_weights_that_are_not_trained_need_no_gradients() -> None:
    size = script("flops").ModelSize(base=10, passed=12, trained=2, head=5, trained_head=0, pair=8)
    # 2 · (10 · 4 + 5 · 2) and half of 8 · (3 · 3 + 1 · 1).
    assert size.forward([3, 1], 2) == 140
    # Twice 2 · (12 · 4 + 5 · 2), 2 · 2 · 4, three times 40.
    assert size.update([3, 1], 2) == 368


def test_what_a_decoding_step_reads() -> None:
    policy = load_policy(PolicySettings(lora=LoraSettings(enabled=False)))
    session = script("iteration_spans").CachedSession(policy.causal, 3, policy.chat.end_id)
    session.append([[5] * 4, [6] * 7, [7] * 9])
    spans = script("iteration_spans").Spans()
    with torch.inference_mode():
        session._start()
    live = torch.tensor([True, False, True])
    # Matrices, biases of queries, keys and values, factors of norms; the last norm; the head.
    weights = 4 * (753_664 + 4 * 192 + 4 * 256 + 128 + 114_688)
    # A token has 32 keys and values in four layers.
    assert spans._bytes_of_step(session, torch.zeros(3), live) == weights + 4 * 2 * 32 * 4 * (4 + 9)


@pytest.mark.slow
def test_where_an_iteration_goes(
    small_studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "iteration.json"
    chosen = "alfworld transcript grpo"
    assert script("iteration").main(["--iterations", "1", "--cases", chosen, "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["roof_gflops"] > 0
    assert list(content["cases"]) == [chosen, f"{chosen}+sp+id"]
    for case in content["cases"].values():
        assert all(seconds >= 0 for seconds in case["seconds"].values())
        assert sum(case["seconds"].values()) + case["other_s"] == pytest.approx(case["total_s"])
        assert min(case["gflops"][part] for part in ("prefill", "decode", "forward", "backward")) > 0
        assert 0 < case["useful_tokens"] <= case["update_tokens"]
        assert case["action_tokens"] > 0
        used = sum(case["gflops"].values()) / case["total_s"] / content["roof_gflops"]
        assert 0 < used < 1
        assert case["utilisation"] == pytest.approx(used)
        # Shared beginnings and filler make up for each other here, at least roughly.
        assert 0.3 < case["model_flops_utilisation"] / used < 3
        assert case["decode_bandwidth_utilisation"] > 0
    shown = dict(re.findall(r"^\| (\*\*\w+\*\*|[\w: ,()]+) \| ([^|]+) \|", capsys.readouterr().out, re.M))
    whole = ("**rollout**", "**update**", "other (Lightning)")
    assert sum(float(shown[name].rstrip("% ")) for name in whole) == pytest.approx(100, abs=0.3)
    parts = [float(v.rstrip("% ")) for n, v in shown.items() if n.startswith(("rollout: ", "update: "))]
    assert len(parts) == 12
    assert sum(parts) + float(shown[whole[2]].rstrip("% ")) == pytest.approx(100, abs=1)


@pytest.mark.slow
def test_a_random_policy_takes_the_place_of_the_embedded_one(small_studies: Path, tmp_path: Path) -> None:
    out = tmp_path / "iteration.json"
    arguments = ["--iterations", "1", "--cases", "alfworld transcript grpo+sp+id", "--random", "small"]
    assert script("iteration").main([*arguments, "--out", str(out)]) == 0
    (case,) = json.loads(out.read_text())["cases"].values()
    # Four episodes of four steps, hardly an answer of which ends by chance.
    assert case["action_tokens"] > 4 * 4 * 20
    assert 0 < case["utilisation"] < 1


def test_a_random_policy_has_its_shape(tmp_path: Path) -> None:
    folder = script("random_policy").write_random("small", tmp_path / "policy", torch.float32)
    policy = load_policy(PolicySettings(model=str(folder), lora=LoraSettings(enabled=False)))
    size = script("flops").ModelSize.of(policy)
    # Two layers of 2 · 64 · 64 + 2 · 64 · 32 + 3 · 64 · 128 weights, a head of 64 · 4,096.
    assert (size.base, size.head) == (73_728, 262_144)
    assert size.pair == 512  # 4 · 4 heads · 16 · 2 layers
    assert policy.chat.end_id < policy.chat.tokenizer.vocab_size <= policy.vocabulary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ("sampler", ["sampler_tokens_per_s", "sampler_generate_tokens_per_s", "sampler_generate_ratio"]),
        (
            "update",
            [
                f"update_{name}_{what}"
                for name in ("transcript", "steps", "webshop")
                for what in ("tokens_per_s", "padded_tokens_per_s", "padded_ratio")
            ],
        ),
        ("evaluation", ["evaluation_s", "evaluation_greedy_s", "evaluation_tokens_per_s"]),
        (
            "scaling",
            [
                f"scaling_{sweep}_{value}_ms_per_episode"
                for sweep, values in {
                    "episodes": (2, 8, 32),
                    "games": (2, 8, 32),
                    "steps": (6, 12, 24, 48),
                    "history": (0, 2, 8),
                }.items()
                for value in values
            ],
        ),
        (
            "auxiliary",
            [
                f"auxiliary_{layout}{variant}_{what}_cost_ratio"
                for layout in ("transcript", "steps")
                for variant in ("", "_all", "_published")
                for what in ("update", "iteration")
            ],
        ),
        ("memory", ["memory_update_mib", "memory_update_padded_mib", "memory_update_padded_ratio"]),
    ],
)
def test_training_beside_others(
    part: str, keys: list[str], small_studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Opening a manager takes half a minute.
    monkeypatch.setattr(script("training"), "_continuous", lambda *_: {})
    out = tmp_path / "training.json"
    out.write_text(json.dumps({"iteration_s": 5.0}))
    assert script("training").main(["--only", part, "--repeats", "1", "--out", str(out)]) == 0
    numbers = written(out)
    assert numbers.pop("iteration_s") == 5.0, "another part's numbers are kept"
    assert list(numbers) == keys
    require_plausible(numbers)
    assert all(RATE.search(key) for key in numbers)
    for key in (key for key in keys if key.endswith("padded_ratio") and part == "update"):
        base = key.removesuffix("_padded_ratio")
        rates = numbers[f"{base}_tokens_per_s"], numbers[f"{base}_padded_tokens_per_s"]
        assert numbers[key] == pytest.approx(rates[0] / rates[1])


def test_what_several_sweeps_share_is_measured_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = script("scaling")
    measured: list[tuple[int, int, int]] = []

    def iteration(config: RunConfig, _: object) -> Callable[[], float]:
        cell = config.rollout.games, config.rollout.episodes_per_game, config.env.max_steps
        assert cell not in measured

        def run() -> float:
            measured.append(cell)
            # Seconds of an iteration: more in the first round.
            return 0.064 if measured.count(cell) > 1 else 0.64

        return run

    monkeypatch.setattr(scaling, "made", lambda case, **changes: (configured(case, changes), None))
    monkeypatch.setattr(scaling, "_iteration", iteration)
    monkeypatch.setattr(scaling, "SWEEPS", scaling.SWEEPS[:3])
    found = scaling.scaling(4)
    cells = [(8, 2, 12), (8, 8, 12), (8, 32, 12), (2, 8, 12), (32, 8, 12), (8, 8, 6), (8, 8, 24), (8, 8, 48)]
    assert measured == 2 * cells
    for name in ("episodes_8", "games_8", "steps_12"):
        assert found[f"scaling_{name}_ms_per_episode"] == pytest.approx(1.0)


def configured(case: Any, changes: Mapping[str, int]) -> RunConfig:
    config = script("iteration").configuration(replace(case, changes={**case.changes, **changes}))
    assert isinstance(config, RunConfig)
    return config


def test_an_iteration_of_the_scaling_is_the_same_one_each_time(small_studies: Path) -> None:
    measuring, scaling = script("measuring"), script("scaling")
    config, parts = measuring.made(measuring.TRANSCRIPT)
    played: list[tuple[int, ...]] = []
    collect = parts.source.collect

    def collected(iteration: int, version: int) -> Any:
        experience = collect(iteration, version)
        played.append(
            tuple(
                token
                for group in experience.groups
                for episode in group.trajectories
                for transition in episode.transitions
                for token in transition.generation.token_ids
            )
        )
        return experience

    parts.source.collect = collected
    run = scaling._iteration(config, parts)
    assert min(run(), run()) > 0
    assert played[0] == played[1]


def test_without_trl_the_iteration_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script("training").importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "training.json"
    assert script("training").main(["--only", "iteration", "--repeats", "1", "--out", str(out)]) == 0
    assert written(out) == {}
    assert "trl is not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_long_run_measures_its_slopes(small_studies: Path, tmp_path: Path) -> None:
    out = tmp_path / "long_run.json"
    assert script("long_run").main(["--iterations", "8", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    memory, seconds = content.pop("memory_mib"), content.pop("seconds")
    assert len(memory) == len(seconds) + 1 >= 8
    assert min(*memory, *seconds) > 0
    assert list(content) == [
        "long_run_iterations",
        "long_run_memory_mib",
        "long_run_memory_mib_per_100_iterations",
        "long_run_s_per_iteration",
        "long_run_slowdown_per_100_iterations",
    ]
    assert content["long_run_iterations"] == 8
    assert content["long_run_memory_mib"] == memory[-1]
    assert min(seconds) <= content["long_run_s_per_iteration"] <= max(seconds)


@pytest.mark.slow
def test_loading_a_shop_is_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "webshop_load.json"
    assert script("webshop_load").main(["--products", "60", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["products"] == 60
    assert min(content["file_mib"].values()) > 0
    found = content["measurements"]
    assert list(found) == ["read", "load", "goals"]
    assert found["read"]["count"] == 60
    assert 0 < found["load"]["count"] <= 60
    assert all(m["cpu_s"] > 0 and m["peak_mib"] > 0 for m in found.values())
    assert script("webshop_load").main(["--products", "0", "--out", str(out)]) == 1


def test_searches_in_few_and_many_documents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = script("webshop_search")
    monkeypatch.setattr(search, "_VOCABULARY", 500)
    monkeypatch.setattr(search, "SMALL", 200)
    assert search.main(["--documents", "1000", "--queries", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[:2] for line in lines[:2]] == [
        ["generated:", "documents=200"],
        ["generated:", "documents=1000"],
    ]
    rates = dict(pair.split("=") for pair in lines[-1].split())
    assert list(rates) == ["search_ms", "search_ms_1k"]
    assert all(float(rate) > 0 for rate in rates.values())
    assert search.main(["--queries", "0"]) == 1


def test_results_are_gathered_into_flat_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collect = script("collect")
    monkeypatch.setattr(collect, "HERE", tmp_path)
    assert collect.main() == 1
    assert "no results; run `make bench`" in capsys.readouterr().err
    results = tmp_path / "results"
    results.mkdir()
    for name, content in {
        "training": {"iteration_trl_ratio": 3.5, "iteration_tokens": 12},
        "iteration": {"cases": {"alfworld grpo+sp+id": {"seconds": {"prompts, tokenising": 0.5}}}},
        "long_run": {"long_run_memory_mib": 850.0, "seconds": [1.0, 2.0]},
        "webshop_env": {"search": {"small": {"source": "official", "search_ms": 0.08}}},
        "alfworld_engine": {"summary": {"step_ratio": 9.0}, "platform": {"python": "3", "quiet": True}},
    }.items():
        (results / f"{name}.json").write_text(json.dumps(content))
    assert collect.main() == 0
    found = written(tmp_path / "results.json")
    assert found == {
        "alfworld_engine_summary_step_ratio": 9.0,
        "profile_cases_alfworld_grpo_sp_id_seconds_prompts_tokenising": 0.5,
        "long_run_memory_mib": 850.0,
        "iteration_trl_ratio": 3.5,
        "iteration_tokens": 12.0,
        "webshop_env_search_small_search_ms": 0.08,
    }
    assert "collect: 6 numbers" in capsys.readouterr().out
    require_plausible(found)
