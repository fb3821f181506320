"""Sampling on a server with vLLM's documented interface: what is drawn, from what, and what is refused."""

import math
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envrl.envs.pool import EnvPool
from envrl.errors import ConfigFault, PolicyFault
from envrl.policy.model import Policy
from envrl.policy.sampler import CachedSession
from envrl.policy.served import ServedSampler, logprob_gap, weights_digest
from envrl.policy.server import Draw, InferenceServer, connect
from envrl.policy.settings import SamplingSettings, ServerSettings
from envrl.policy.transport import Transport
from envrl.prompts.settings import PromptSettings
from envrl.rollout.collector import Collector, CollectorSettings, EpisodePlan
from envrl.types import Finish, Game
from fake_server import FakeServer, serving
from support import IdentityEnv, checkpoint, nudge, policy_of

PROMPTS = [[2, 40, 41, 42, 5, 3], [2, 50, 8, 3], [2, 60, 61, 62, 63, 64, 65, 11, 3]]
KEY = "a-key-nobody-may-read"


def generators(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(s) for s in seeds]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    for name in ("ENVRL_SERVER_API_KEY", "VLLM_API_KEY", "ENVRL_SERVER_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    with serving(FakeServer(checkpoint())) as running:
        yield running


@pytest.fixture
def policy() -> Policy:
    loaded = policy_of(checkpoint(), merge_for_sampling=False)
    nudge(loaded)
    return loaded


def settings(server: FakeServer, folder: Path, **changes: Any) -> ServerSettings:
    return ServerSettings(**{"url": server.url, "adapters": str(folder), "timeout_s": 30.0} | changes)


def client(server: FakeServer, folder: Path, **changes: Any) -> InferenceServer:
    return InferenceServer(settings(server, folder, **changes), str(checkpoint()), backoff_s=0.01)


def sampler(server: FakeServer, folder: Path, **changes: Any) -> ServedSampler:
    return ServedSampler(client(server, folder, **changes), settings(server, folder, **changes))


def whole_pass(policy: Policy, row: list[int]) -> torch.Tensor:
    """Log-probability of each token but the first, from one forward pass of the trained model."""
    with torch.no_grad():
        scores = policy.logits(policy.hidden_states(torch.tensor([row])))[0]
    return torch.log_softmax(scores, -1)[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]


def test_answers_are_what_the_server_wrote_with_the_trained_models_logprobs(
    server: FakeServer, policy: Policy, tmp_path: Path
) -> None:
    session = sampler(server, tmp_path)(policy)(3)
    rows: list[list[int]] = [[], [], []]
    rngs = generators(0, 1, 2)
    for blocks in (PROMPTS, [[70, 5, 3], [8, 3], [9, 3]]):
        session.append(blocks)
        answers = session.sample(rngs, 1.0, 6)
        sent = {tuple(prompt): (ids, logprobs) for prompt, ids, logprobs in server.written[-3:]}
        for row, block, answer in zip(rows, blocks, answers, strict=True):
            row.extend(block)
            ids, logprobs = sent[tuple(row)]
            assert list(answer.token_ids) == ids
            assert list(answer.logprobs) == logprobs
            row.extend(ids)
            true = whole_pass(policy, row)[-len(ids) :]
            assert answer.logprobs == pytest.approx(true.tolist(), abs=1e-4)


def test_kept_rows_stay_themselves(server: FakeServer, policy: Policy, tmp_path: Path) -> None:
    session = sampler(server, tmp_path)(policy)(3)
    session.append(PROMPTS)
    first = session.sample(generators(0, 1, 2), 1.0, 3)
    session.keep([2, 0])
    session.append([[70, 3], [71, 3]])
    session.sample(generators(3, 4), 1.0, 3)
    sent = sorted(prompt for prompt, _, _ in server.written[3:])
    assert sent == sorted(
        [[*PROMPTS[2], *first[2].token_ids, 70, 3], [*PROMPTS[0], *first[0].token_ids, 71, 3]]
    )


def test_each_row_has_a_seed_of_its_own_generator(server: FakeServer, policy: Policy, tmp_path: Path) -> None:
    session = sampler(server, tmp_path)(policy)(2)
    session.append([PROMPTS[0], PROMPTS[0]])
    session.sample(generators(5, 6), 1.0, 4)
    seeds = sorted(body["seed"] for path, body, _ in server.asked if path == "/v1/completions")
    assert seeds == sorted(int(g.integers(2**31)) for g in generators(5, 6))


def test_greedy_answers_are_those_of_the_built_in_sampler(
    server: FakeServer, policy: Policy, tmp_path: Path
) -> None:
    ours = CachedSession(policy.sampling_model(), 3, policy.chat.end_id)
    theirs = sampler(server, tmp_path)(policy)(3)
    for session in (ours, theirs):
        session.append(PROMPTS)
    found = [s.sample(generators(0, 0, 0), 0.0, 8) for s in (ours, theirs)]
    assert [a.token_ids for a in found[0]] == [a.token_ids for a in found[1]]
    assert [a.finish for a in found[0]] == [a.finish for a in found[1]]


def test_an_answer_ends_with_the_end_of_turn_token(
    server: FakeServer, policy: Policy, tmp_path: Path
) -> None:
    # 131 is frequent enough in what the random model writes to end some rows early.
    policy.chat.end_id = 131
    session = sampler(server, tmp_path)(policy)(30)
    session.append([[2, 60 + n, 3] for n in range(30)])
    answers = session.sample(generators(*range(30)), 1.0, 20)
    ended = [a for a in answers if a.finish is Finish.END]
    assert 0 < len(ended) < 30
    assert all(a.token_ids[-1] == 131 and 131 not in a.token_ids[:-1] for a in ended)
    assert all(len(a.token_ids) == 20 for a in answers if a.finish is Finish.LENGTH)


def test_the_end_as_the_last_possible_token_is_an_end(
    server: FakeServer, policy: Policy, tmp_path: Path
) -> None:
    # Some versions look at the length first and say that the answer was cut off.
    def cut(choice: dict[str, Any]) -> None:
        choice["token_ids"][-1], choice["finish_reason"] = 1, "length"

    server.spoil = cut
    session = sampler(server, tmp_path, max_gap=100.0)(policy)(1)
    session.append(PROMPTS[:1])
    assert session.sample(generators(0), 1.0, 4)[0].finish is Finish.END


def play(policy: Policy, sampled: ServedSampler, layout: str) -> list[Any]:
    words = ("look", "go", "take")
    games = [Game(f"id-{w}", "fake", "train", "fake", w, 4) for w in words]
    with EnvPool(lambda: IdentityEnv(turns=3), 6) as pool:
        chosen = SamplingSettings(max_new_tokens=5, max_context=300)
        collector = Collector(pool, policy.chat, CollectorSettings(PromptSettings(), chosen, layout))
        plans = [EpisodePlan(g, seed) for g in games for seed in (0, 1)]
        return collector.collect(plans, sampled(policy), temperature=1.0, policy_version=0)


@pytest.mark.parametrize("layout", ["transcript", "steps"])
def test_episodes_hold_exactly_what_was_sent_and_written(
    layout: str, server: FakeServer, policy: Policy, tmp_path: Path
) -> None:
    episodes = play(policy, sampler(server, tmp_path), layout)
    sent = {(tuple(p), tuple(ids), tuple(logprobs)) for p, ids, logprobs in server.written}
    said = [t.generation for e in episodes for t in e.transitions]
    assert len(said) == len(server.written) > 6
    assert {(g.prompt_ids, g.token_ids, g.logprobs) for g in said} == sent
    assert play(policy, sampler(server, tmp_path), layout) == episodes


def test_adapters_are_exchanged_when_the_weights_change_and_only_then(
    server: FakeServer, policy: Policy, tmp_path: Path
) -> None:
    def answers() -> list[Any]:
        session = served(policy)(3)
        session.append(PROMPTS)
        return session.sample(generators(0, 1, 2), 1.0, 8)

    served = sampler(server, tmp_path)
    before = answers()
    (first,) = server.loaded[1:]
    assert answers() == before
    assert server.paths("lora") == ["/v1/load_lora_adapter"]
    nudge(policy, seed=1)
    assert answers() != before
    assert server.paths("lora") == [
        "/v1/load_lora_adapter",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    ]
    (second,) = server.loaded[1:]
    assert second != first
    assert [f.name for f in tmp_path.iterdir()] == [second]
    served.close()
    assert server.loaded == [str(checkpoint())]
    assert list(tmp_path.iterdir()) == []


def test_two_runs_with_the_same_weights_do_not_share_adapters(
    server: FakeServer, policy: Policy, tmp_path: Path
) -> None:
    one, other = sampler(server, tmp_path), sampler(server, tmp_path)
    one(policy)
    session = other(policy)(1)
    one.close()
    session.append(PROMPTS[:1])
    assert session.sample(generators(0), 1.0, 2)


def test_the_digest_tells_weights_apart() -> None:
    policy, same = policy_of(checkpoint()), policy_of(checkpoint())
    assert weights_digest(policy) == weights_digest(same)
    with torch.no_grad():
        next(p for p in policy.parameters() if p.requires_grad)[0, 0] += 1e-6
    assert weights_digest(policy) != weights_digest(same)


def test_the_gap_is_a_mean_over_tokens(policy: Policy) -> None:
    session = CachedSession(policy.sampling_model(), 2, policy.chat.end_id)
    session.append(PROMPTS[:2])
    answers = session.sample(generators(0, 1), 1.0, 4)
    assert logprob_gap(policy, PROMPTS[:2], answers) == pytest.approx(0.0, abs=1e-5)
    # One of eight tokens is off by 0.8 nats.
    lower = (answers[0].logprobs[0] - 0.8, *answers[0].logprobs[1:])
    shifted = [type(answers[0])(answers[0].token_ids, lower, answers[0].finish), answers[1]]
    assert sum(len(a.token_ids) for a in answers) == 8
    assert logprob_gap(policy, PROMPTS[:2], shifted) == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize("fault", ["stale", "other base", "processed"])
def test_a_server_on_other_weights_is_found_out(
    fault: str, server: FakeServer, policy: Policy, tmp_path: Path
) -> None:
    if fault == "stale":
        server.ignores_adapters = True
    if fault == "other base":
        with torch.no_grad():
            policy.causal.get_input_embeddings().weight.mul_(8.0)
    server.processed_logprobs = fault == "processed"
    session = sampler(server, tmp_path)(policy)(3)
    session.append(PROMPTS)
    with pytest.raises(PolicyFault, match=r"by \d.* nats a token, more than sampling\.server\.max_gap=0\.05"):
        session.sample(generators(0, 1, 2), 0.4, 8)


def test_an_update_the_server_ignores_is_found_out(
    server: FakeServer, policy: Policy, tmp_path: Path
) -> None:
    served = sampler(server, tmp_path)
    session = served(policy)(2)
    session.append(PROMPTS[:2])
    session.sample(generators(0, 1), 1.0, 8)
    server.ignores_adapters = True
    nudge(policy, seed=1)
    session = served(policy)(2)
    session.append(PROMPTS[:2])
    with pytest.raises(PolicyFault, match="max_gap"):
        session.sample(generators(0, 1), 1.0, 8)


def shorter(choice: dict[str, Any]) -> None:
    choice["logprobs"]["token_logprobs"].pop()


def without_end(choice: dict[str, Any]) -> None:
    choice["token_ids"].pop()
    shorter(choice)


@pytest.mark.fault(
    "a sampling server answers NaN, None or anything else that was not asked for",
    "the answer is refused with one sentence before it becomes part of an episode",
)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("token_ids"), r"without token ids.*0\.10\.2"),
        (lambda c: c.update(token_ids=None), "without token ids"),
        (lambda c: c.update(token_ids=[]), "without token ids"),
        (lambda c: c.update(token_ids=["7"]), "without token ids"),
        (lambda c: c.update(logprobs=None), "does not answer with one choice"),
        (shorter, "3 log-probabilities for 4 tokens"),
        (without_end, r"after 3 of 4 tokens without the end-of-turn token 1 .*--generation-config"),
        (lambda c: c["logprobs"]["token_logprobs"].__setitem__(1, None), "gives None as a log-probability"),
        (lambda c: c["logprobs"]["token_logprobs"].__setitem__(1, math.nan), "gives nan as"),
        (lambda c: c["logprobs"]["token_logprobs"].__setitem__(1, -9999.0), r"gives -9999\.0 as"),
        (lambda c: c["logprobs"]["token_logprobs"].__setitem__(1, 3.0), "--logprobs-mode raw_logprobs"),
        (lambda c: c["token_ids"].__setitem__(0, 1), "went on behind the end-of-turn token 1"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for(
    spoil: Callable[[dict[str, Any]], Any],
    message: str,
    server: FakeServer,
    policy: Policy,
    tmp_path: Path,
) -> None:
    server.spoil = spoil
    session = sampler(server, tmp_path, max_gap=100.0)(policy)(1)
    session.append(PROMPTS[:1])
    with pytest.raises(PolicyFault, match=message):
        session.sample(generators(0), 1.0, 4)


def test_failures_are_tried_again(server: FakeServer, policy: Policy, tmp_path: Path) -> None:
    session = sampler(server, tmp_path)(policy)(1)
    session.append(PROMPTS[:1])
    server.failures = 3
    assert len(session.sample(generators(0), 1.0, 4)) == 1
    assert len(server.paths("completions")) == 4


def test_failures_without_end_are_a_fault(server: FakeServer, policy: Policy, tmp_path: Path) -> None:
    session = sampler(server, tmp_path, retries=1)(policy)(2)
    session.append(PROMPTS[:2])
    server.failures = 100
    with pytest.raises(PolicyFault, match=r"no answer after 2 attempts .*HTTP 500 the engine had a hiccup"):
        session.sample(generators(0, 1), 1.0, 4)


def test_a_slow_server_is_a_fault(server: FakeServer, tmp_path: Path) -> None:
    server.delay_s = 1.0
    impatient = client(server, tmp_path, retries=0, timeout_s=0.2)
    with pytest.raises(PolicyFault, match=r"attempts of 0\.2 s \(/v1/completions: timed out\)"):
        impatient.draw(str(checkpoint()), Draw(PROMPTS[0], 1.0, 4, end_id=1, seed=0))


def test_a_lost_answer_to_loading_is_no_fault(server: FakeServer, policy: Policy, tmp_path: Path) -> None:
    """The repetition is refused, because the first request had done its work."""
    load = server._load_adapter

    def load_and_fail(name: str, folder: str) -> str:
        if name in server.loaded:
            return load(name, folder)
        load(name, folder)
        raise ConnectionAbortedError

    server._load_adapter = load_and_fail  # type: ignore[method-assign]
    session = sampler(server, tmp_path)(policy)(1)
    session.append(PROMPTS[:1])
    assert session.sample(generators(0), 1.0, 2)
    assert server.paths("load_lora") == ["/v1/load_lora_adapter"] * 2


def test_a_server_without_runtime_updates_is_a_fault(
    server: FakeServer, policy: Policy, tmp_path: Path
) -> None:
    server.loads_adapters = False
    with pytest.raises(PolicyFault, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        sampler(server, tmp_path)(policy)


def test_a_folder_that_cant_be_written_is_a_fault(server: FakeServer, policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PolicyFault, match=r"sampling\.server\.adapters=.*file"):
        sampler(server, tmp_path / "file")(policy)


def test_nothing_is_sampled_from_an_empty_row(server: FakeServer, policy: Policy, tmp_path: Path) -> None:
    session = sampler(server, tmp_path)(policy)(2)
    session.append([[2, 3], []])
    with pytest.raises(ValueError, match="at least one token"):
        session.sample(generators(0, 0), 1.0, 3)


def sampling(server: FakeServer, **changes: Any) -> SamplingSettings:
    return SamplingSettings(
        max_new_tokens=6, max_context=400, server=ServerSettings(**{"url": server.url} | changes)
    )


def test_a_server_that_fits_is_connected(server: FakeServer) -> None:
    assert connect(sampling(server), str(checkpoint())).model == str(checkpoint())
    assert connect(sampling(server, url=f"{server.url}/v1/"), str(checkpoint())).url == server.url


def test_a_server_that_does_not_fit_is_refused(server: FakeServer) -> None:
    with pytest.raises(PolicyFault, match=r"does not serve 'other' but .*sampling\.server\.model"):
        connect(sampling(server, model="other"), str(checkpoint()))
    server.max_model_len = 399
    with pytest.raises(PolicyFault, match=r"399 tokens, fewer than sampling\.max_context=400"):
        connect(sampling(server), str(checkpoint()))


def test_a_dead_server_is_refused() -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(PolicyFault, match=rf"{url} gives no answer after 1 attempts .*refused"):
        connect(SamplingSettings(server=ServerSettings(url=url, retries=0)), "model")


@pytest.mark.parametrize("variable", ["ENVRL_SERVER_API_KEY", "VLLM_API_KEY"])
def test_the_key_is_sent_and_never_shown(
    variable: str,
    server: FakeServer,
    policy: Policy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server.api_key = KEY
    with pytest.raises(PolicyFault, match=r"HTTP 401 Unauthorized.*ENVRL_SERVER_API_KEY"):
        connect(sampling(server), str(checkpoint()))
    monkeypatch.setenv(variable, KEY)
    connected = connect(sampling(server), str(checkpoint()))
    session = sampler(server, tmp_path)(policy)(1)
    session.append(PROMPTS[:1])
    session.sample(generators(0), 1.0, 2)
    assert {header for _, _, header in server.asked[1:]} == {f"Bearer {KEY}"}
    server.api_key = "another"
    with pytest.raises(PolicyFault) as refused:
        connected.models()
    shown = [str(refused.value), repr(connected), repr(sampling(server)), *capfd.readouterr()]
    assert not any(KEY in text for text in shown)


@pytest.mark.parametrize(
    "url", ["http://collector.example:8000", "http://10.0.0.7/v1", "http://localhost.example"]
)
def test_the_key_goes_to_no_machine_that_only_the_configuration_names(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServerSettings(url=url, retries=0, timeout_s=0.01)
    host = url.split("/")[2].split(":")[0]
    Transport(settings, 0.0)  # nothing is asked yet, and there is no key
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with pytest.raises(PolicyFault, match=f"ENVRL_SERVER_HOSTS={host}$") as refused:
        Transport(settings, 0.0)
    assert KEY not in str(refused.value)
    monkeypatch.setenv("ENVRL_SERVER_HOSTS", f"other.example, {host.upper()}")
    assert Transport(settings, 0.0).url == url.removesuffix("/v1")


@pytest.mark.parametrize("url", ["http://localhost:8000", "http://127.0.0.1:1", "http://[::1]:8000"])
def test_servers_of_this_machine_get_the_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVRL_SERVER_API_KEY", KEY)
    assert Transport(ServerSettings(url=url), 0.0).url == url


def test_a_key_that_cant_be_sent_is_not_shown(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVRL_SERVER_API_KEY", f"{KEY}\nX: y")
    with pytest.raises(PolicyFault, match="ENVRL_SERVER_API_KEY holds characters") as refused:
        connect(sampling(server), str(checkpoint()))
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "localhost:8000"}, "url is 'localhost:8000'"),
        ({"url": "ftp://host"}, "url is 'ftp://host'"),
        ({"timeout_s": 0.0}, "timeout_s is 0"),
        ({"max_gap": math.inf}, "max_gap is inf"),
        ({"retries": -1}, "retries is -1"),
        ({"adapters": ""}, "adapters is empty"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigFault, match=message):
        ServerSettings(**change)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigFault, match="ENVRL_SERVER_API_KEY") as refused:
        ServerSettings(url=f"http://me:{KEY}@host:8000")
    assert KEY not in str(refused.value)
