"""Loading, adapters, merging, references, quantised bases and what is refused."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from envrl.errors import ConfigFault, PolicyFault
from envrl.policy.model import Policy, load_policy
from envrl.policy.reading import read_config
from envrl.policy.sampler import CachedSession
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.types import Message
from support import adapters, chatml_tokenizer, checkpoint, nudge, policy_of

IDS = torch.tensor([[2, 60, 61, 62, 3, 90, 91, 1], [2, 70, 71, 3, 95, 1, 0, 0]])


def scores(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.logits(policy.hidden_states(IDS))


def plain_scores(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_what_policies_are_loaded_with_says_nothing_at_its_start() -> None:
    # On some processors only bitsandbytes warns; on others this sees whether it would be heard.
    code = (
        "import envrl.policy.model, logging\n"
        "from bitsandbytes.backends.cpu import ops\n"
        "assert not ops.logger.isEnabledFor(logging.WARNING)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_fresh_adapters_change_nothing_and_trained_ones_do() -> None:
    policy = policy_of(checkpoint())
    base = AutoModelForCausalLM.from_pretrained(checkpoint(), dtype=torch.float32)
    assert torch.allclose(scores(policy), plain_scores(base), atol=1e-5)
    nudge(policy)
    assert float((scores(policy) - plain_scores(base)).abs().max()) > 0.1


def test_padding_on_the_right_is_never_seen() -> None:
    policy = policy_of(checkpoint())
    with torch.no_grad():
        short = policy.logits(policy.hidden_states(IDS[1:, :6]))
    assert torch.allclose(scores(policy)[1:, :6], short, atol=1e-5)


def test_only_adapters_are_trained_with_lora_and_everything_without() -> None:
    lora = [n for n, p in policy_of(checkpoint()).named_parameters() if p.requires_grad]
    # Seven linear layers in each of two decoder layers, two factors each.
    assert len(lora) == 28
    assert all("lora_" in name for name in lora)
    full = policy_of(checkpoint(), lora=LoraSettings(enabled=False))
    assert all(p.requires_grad for p in full.parameters())
    few = policy_of(checkpoint(), lora=adapters(targets="q_proj, v_proj"))
    assert sum(p.requires_grad for p in few.parameters()) == 8


def test_the_merged_copy_follows_the_adapters_through_updates() -> None:
    policy = policy_of(checkpoint(), lora=adapters())
    optimiser = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.05)
    before = plain_scores(policy.sampling_model())
    for _ in range(3):
        loss = policy.logits(policy.hidden_states(IDS)).log_softmax(-1)[..., 7].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        merged = plain_scores(policy.sampling_model())
        assert torch.allclose(merged, scores(policy), atol=1e-4)
        assert float((merged - before).abs().max()) > 1e-3
        before = merged
    assert not any(p.requires_grad for p in policy.sampling_model().parameters())


def test_copies_are_not_part_of_the_module() -> None:
    policy = policy_of(checkpoint())
    names = [n for n, _ in policy.named_modules()]
    assert not any("copy" in n for n in names)
    assert sum(k.endswith("embed_tokens.weight") for k in policy.state_dict()) == 1


def test_the_reference_is_the_policy_before_training() -> None:
    for lora in (adapters(), LoraSettings(enabled=False)):
        policy = policy_of(checkpoint(), lora=lora)
        before = scores(policy)
        policy.keep_reference()
        nudge(policy)
        after = scores(policy)
        with policy.reference() as reference:
            assert torch.allclose(scores(reference), before, atol=1e-5)
        assert torch.equal(scores(policy), after)
        assert float((after - before).abs().max()) > 0.1
        policy.keep_reference()
        with policy.reference() as reference:
            assert torch.allclose(scores(reference), before, atol=1e-5)


def test_full_training_without_a_kept_reference_is_a_fault() -> None:
    policy = policy_of(checkpoint(), lora=LoraSettings(enabled=False))
    with pytest.raises(PolicyFault, match="keep_reference"), policy.reference():
        pass


def test_saved_adapters_load_with_plain_peft(tmp_path: Path) -> None:
    policy = policy_of(checkpoint(), lora=adapters())
    nudge(policy)
    policy.save_adapter(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(checkpoint(), dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.allclose(plain_scores(loaded), scores(policy), atol=1e-5)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 200_000
    assert (tmp_path / "tokenizer.json").is_file()


@pytest.mark.parametrize("bits", [{}, {"load_in_4bit": True}], ids=["plain", "4bit"])
def test_a_merged_model_loads_without_peft_and_says_the_same(tmp_path: Path, bits: dict[str, bool]) -> None:
    try:
        policy = policy_of(checkpoint(), lora=adapters(), **bits)
    except PolicyFault as fault:
        pytest.skip(f"not supported here: {fault}")
    nudge(policy, size=0.05)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    policy.save_merged(tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    assert not (tmp_path / "adapter_model.safetensors").exists()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(checkpoint(), dtype=torch.float32)
    # Beside a quantised base, the adapters are worth the same and the base is what it was before.
    reference = policy_of(checkpoint(), lora=adapters())
    load = {n: p.detach() for n, p in policy.named_parameters() if p.requires_grad}
    reference.load_state_dict(load, strict=False)
    assert torch.allclose(plain_scores(merged), scores(reference), atol=1e-5)
    assert float((plain_scores(merged) - plain_scores(base)).abs().max()) > 0.01
    assert torch.equal(scores(policy_of(tmp_path, lora=adapters())), plain_scores(merged))


def test_a_fully_trained_model_is_saved_whole_and_loaded_by_the_same_code(tmp_path: Path) -> None:
    policy = policy_of(checkpoint(), lora=LoraSettings(enabled=False))
    nudge(policy)
    policy.save_adapter(tmp_path)
    again = policy_of(tmp_path, lora=LoraSettings(enabled=False))
    assert torch.equal(scores(again), scores(policy))


def gradients(policy: Policy) -> list[torch.Tensor]:
    policy.train()
    policy.zero_grad()
    policy.logits(policy.hidden_states(IDS)).log_softmax(-1)[..., 9].sum().backward()
    return [p.grad.clone() for p in policy.parameters() if p.grad is not None]


@pytest.mark.parametrize("lora", [adapters(), LoraSettings(enabled=False)], ids=["adapters", "full"])
def test_gradient_checkpointing_is_active_and_gives_the_same_gradients(lora: LoraSettings) -> None:
    plain = policy_of(checkpoint(), lora=lora)
    frugal = policy_of(checkpoint(), lora=lora, gradient_checkpointing=True)
    nudge(plain)
    nudge(frugal)
    passes = []
    layer = frugal.causal.get_decoder().layers[0].mlp.act_fn
    layer.register_forward_hook(lambda *_: passes.append(1))
    expected, found = gradients(plain), gradients(frugal)
    # Once forward, once again in the backward pass.
    assert len(passes) == 2
    assert len(expected) == len(found) > 10
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantised_bases_train_and_sample_or_say_why_not(bits: str) -> None:
    try:
        policy = policy_of(checkpoint(), lora=adapters(), **{bits: True})
    except PolicyFault as fault:
        assert f"policy.{bits}" in str(fault)  # noqa: PT017
        assert "set policy" in str(fault)  # noqa: PT017
        pytest.skip(f"not supported here: {fault}")
    kinds = {type(m).__name__ for m in policy.modules()}
    assert ({"Linear4bit", "Linear8bitLt"} & kinds) == {
        "Linear4bit" if bits == "load_in_4bit" else "Linear8bitLt"
    }
    nudge(policy, size=0.05)
    found = gradients(policy)
    assert len(found) == 28
    assert all(g.isfinite().all() for g in found)
    assert any(float(g.abs().max()) > 0 for g in found)
    session = CachedSession(policy.sampling_model(), 2, policy.chat.end_id)
    session.append([[2, 60, 61, 3], [2, 3]])
    answers = session.sample([np.random.default_rng(n) for n in range(2)], 1.0, 4)
    row = [2, 60, 61, 3, *answers[0].token_ids]
    with torch.no_grad():
        logprobs = policy.logits(policy.hidden_states(torch.tensor([row]))).float().log_softmax(-1)[0]
    expected = [float(logprobs[3 + n, t]) for n, t in enumerate(answers[0].token_ids)]
    # 8-bit quantises activations too, by the largest of a block, so a cached pass differs a little.
    assert answers[0].logprobs == pytest.approx(expected, abs=1e-3 if bits == "load_in_4bit" else 0.2)


def test_a_base_of_4_bits_learns_as_before_after_it_was_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a processor with AVX512-BF16, where bitsandbytes has another layout for evaluation.
    bits = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(bits, "has_avx512bf16", lambda: 1)
    try:
        policy = policy_of(checkpoint(), lora=adapters(), load_in_4bit=True)
    except PolicyFault as fault:
        pytest.skip(f"not supported here: {fault}")
    nudge(policy, size=0.05)
    before = gradients(policy)
    session = CachedSession(policy.sampling_model(), 1, policy.chat.end_id)
    session.append([[2, 60, 61, 3]])
    session.sample([np.random.default_rng(0)], 1.0, 4)
    after = gradients(policy)
    assert len(after) == len(before) == 28
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def save_chat_model(kind: type[PretrainedConfig], folder: Path, **changes: Any) -> None:
    """A small model of some family with random weights, and a chat tokenizer."""
    tokenizer = chatml_tokenizer()
    config = kind(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(LlamaConfig, {}), (Qwen3Config, {"head_dim": 16}), (Qwen2Config, {})],
    ids=["llama", "qwen3", "qwen2"],
)
def test_chat_models_of_other_families_are_sampled_and_trained_alike(
    kind: type[PretrainedConfig], changes: dict[str, int], tmp_path: Path
) -> None:
    save_chat_model(kind, tmp_path / "model", **changes)
    policy = policy_of(tmp_path / "model", lora=adapters())
    nudge(policy, size=0.05)
    assert all(g.isfinite().all() for g in gradients(policy))
    prompt = list(policy.chat.opening(Message("user", "open fridge 1")).token_ids)
    session = CachedSession(policy.sampling_model(), 2, policy.chat.end_id)
    session.append([prompt, prompt[3:]])
    answers = session.sample([np.random.default_rng(n) for n in range(2)], 1.0, 5)
    for given, answer in zip((prompt, prompt[3:]), answers, strict=True):
        with torch.no_grad():
            scores_of = policy.logits(policy.hidden_states(torch.tensor([[*given, *answer.token_ids]])))
        logprobs = scores_of[0].log_softmax(-1)
        expected = [float(logprobs[len(given) - 1 + n, t]) for n, t in enumerate(answer.token_ids)]
        assert answer.logprobs == pytest.approx(expected, abs=1e-4)
    policy.save_merged(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(plain_scores(merged), scores(policy), atol=1e-4)


@pytest.mark.parametrize("kind", [MixtralConfig, OlmoeConfig])
def test_adapters_of_experts_are_merged_into_the_copy_and_the_export(
    kind: type[PretrainedConfig], tmp_path: Path
) -> None:
    own = {"num_local_experts": 4, "sliding_window": None} if kind is MixtralConfig else {"num_experts": 4}
    save_chat_model(kind, tmp_path / "model", num_experts_per_tok=2, **own)
    policy = policy_of(tmp_path / "model", lora=adapters())
    fresh = scores(policy)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if weight.requires_grad and ".experts." in name:
                weight += 0.2
    assert float((scores(policy) - fresh).abs().max()) > 0.01
    assert policy.sampling_model() is not policy.causal
    assert torch.allclose(plain_scores(policy.sampling_model()), scores(policy), atol=1e-4)
    policy.save_merged(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(plain_scores(merged), scores(policy), atol=1e-4)


@pytest.mark.parametrize("lora", [adapters(), LoraSettings(enabled=False)], ids=["adapters", "all weights"])
def test_dropout_of_the_base_model_is_off_in_training_and_in_the_reference(
    lora: LoraSettings, tmp_path: Path
) -> None:
    tokenizer = chatml_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    assert (config.attn_pdrop, config.embd_pdrop, config.resid_pdrop) == (0.1, 0.1, 0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = policy_of(tmp_path, lora=lora)
    policy.keep_reference()
    policy.eval()
    sampled = scores(policy)
    policy.train()
    assert torch.equal(scores(policy), sampled)
    with policy.reference() as reference:
        assert torch.allclose(scores(reference), sampled, atol=1e-5)
    assert policy.model.training


def test_noise_of_configurations_within_a_configuration_is_off(tmp_path: Path) -> None:
    config = Gemma3Config(
        text_config={"num_hidden_layers": 1, "attention_dropout": 0.3},
        vision_config={"attention_dropout": 0.2},
    )
    config.save_pretrained(tmp_path)
    loaded = read_config(str(tmp_path))
    assert loaded.text_config.attention_dropout == 0
    assert loaded.vision_config.attention_dropout == 0
    assert loaded.text_config.rms_norm_eps == config.text_config.rms_norm_eps
    PhimoeConfig(router_jitter_noise=0.01).save_pretrained(tmp_path)
    assert read_config(str(tmp_path)).router_jitter_noise == 0


def test_adapters_keep_the_dropout_of_their_setting_and_the_reference_has_none() -> None:
    policy = policy_of(checkpoint(), lora=adapters(dropout=0.5))
    nudge(policy)
    policy.train()
    assert not torch.equal(scores(policy), scores(policy))
    with policy.reference() as reference:
        assert not reference.model.training
        assert torch.equal(scores(reference), scores(reference))
    assert policy.model.training


def test_bfloat16_is_kept() -> None:
    policy = policy_of(checkpoint(), dtype="bfloat16")
    assert next(policy.causal.parameters()).dtype == torch.bfloat16


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:5000])


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def broken(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        no_weights,
        cut_weights,
        no_tokenizer,
        broken("config.json", "{"),
        broken("config.json", '{"model_type": "unheard-of"}'),
        broken("config.json", '{"model_type": "clip"}'),
        broken("tokenizer.json", "{}"),
    ],
    ids=["no-weights", "cut-weights", "no-tokenizer", "no-json", "unknown", "not-causal", "tokenizer"],
)
def test_a_damaged_model_folder_is_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(), folder)
    damage(folder)
    with pytest.raises(PolicyFault, match="model"):
        load_policy(PolicySettings(model=str(folder)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/no/such/folder", "neither"),
        ("gpt", "neither"),
        (str(Path(__file__).parent), "config.json"),
    ],
)
def test_names_that_lead_nowhere(name: str, words: str) -> None:
    with pytest.raises(PolicyFault, match=words):
        load_policy(PolicySettings(model=name))


def test_adapters_on_layers_that_do_not_exist() -> None:
    with pytest.raises(PolicyFault, match=r"policy\.lora\.targets 'foo'"):
        policy_of(checkpoint(), lora=adapters(targets="foo"))


@pytest.mark.parametrize("targets", ["lm_head", "embed_tokens", "q_proj,lm_head"])
@pytest.mark.parametrize("merge", [True, False])
def test_adapters_on_a_weight_that_embedding_and_head_share(targets: str, merge: bool) -> None:
    layer = targets.removeprefix("q_proj,")
    with pytest.raises(PolicyFault, match=rf"policy\.lora\.targets '{targets}' puts an .* \S*{layer}, "):
        policy_of(checkpoint(), lora=adapters(targets=targets), merge_for_sampling=merge)


def test_adapters_on_a_head_of_its_own(tmp_path: Path) -> None:
    loaded = policy_of(checkpoint(), lora=LoraSettings(enabled=False))
    loaded.causal.config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(loaded.causal.config).save_pretrained(tmp_path)
    loaded.chat.tokenizer.save_pretrained(tmp_path)
    policy = policy_of(tmp_path, lora=adapters(targets="q_proj,lm_head"))
    nudge(policy)
    assert torch.allclose(plain_scores(policy.sampling_model()), scores(policy), atol=1e-4)


def test_impossible_settings() -> None:
    with pytest.raises(ConfigFault, match="choose one"):
        PolicySettings(load_in_4bit=True, load_in_8bit=True)
    with pytest.raises(ConfigFault, match=r"lora\.enabled=true"):
        PolicySettings(load_in_4bit=True, lora=LoraSettings(enabled=False))
    with pytest.raises(ConfigFault, match="rank is 0"):
        LoraSettings(rank=0)
    with pytest.raises(ConfigFault, match="dropout is 1"):
        LoraSettings(dropout=1.0)
