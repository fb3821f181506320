"""GRPO on the same games with TRL's trainer, as its users write it: what ``training.py`` compares with.

Needs the packages of ``python tools/install.py bench``. The environment loop is a ``rollout_func``: every
turn, the conversations are padded on the left and continued by ``transformers``' ``generate``. Prompts,
markup, parsing, environments, groups, adapters, token limits and the number of updates are those of the
compared run, and so are the tokens of a conversation.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from itertools import pairwise
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from transformers import logging as hf_logging

from envrl.experiments.config import RunConfig
from envrl.experiments.run import build
from envrl.policy.reading import read_tokenizer
from envrl.policy.sampler import SampledTokens
from envrl.policy.settings import model_source
from envrl.rollout.conversation import CollectorSettings, Conversation, read_answer
from envrl.seeding import derive_seed
from envrl.types import Finish, StopReason


class _Loop:
    """Plays a batch of games in lockstep."""

    def __init__(self, config: RunConfig) -> None:
        parts = build(config)
        self.games, self._pool, self._chat = parts.games.training, parts.pool, parts.policy.chat
        self._config = config
        self._settings = CollectorSettings(config.worded, config.sampling, config.rollout.layout)
        self.written = 0
        self._played = 0

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        count = len(prompts)
        self._played += 1
        talks, given, won = [], [], [0.0] * count
        for slot, prompt in enumerate(prompts):
            seed = derive_seed(0, "benchmark", self._played, slot)
            result = self._pool.reset(slot, self.games[int(prompt)], seed)
            assert result.observation is not None
            talk = Conversation(self._chat, self._settings, result.observation)
            talks.append(talk)
            given.append(len(talk.context.token_ids))
        masks: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        whole: list[tuple[int, ...]] = [t.context.token_ids for t in talks]
        live = list(range(count))
        while live:
            answers = self._write(trainer.model, [talks[i] for i in live])
            parsed = [read_answer(a, self._chat, self._settings.prompt) for a in answers]
            results = self._pool.step(live, [p.action or "" for p in parsed])
            left = []
            for i, answer, action, result in zip(live, answers, parsed, results, strict=True):
                assert result.step is not None
                self.written += len(answer.token_ids)
                before = len(talks[i].context.token_ids)
                talks[i].go_on(answer, action.action, result.step.observation)
                stop = result.step.stop
                won[i] = 10.0 * (stop is StopReason.WON)
                ids = talks[i].context.token_ids
                n = len(answer.token_ids)
                going = stop is None and talks[i].fits
                whole[i] = ids if going else ids[: before + n]
                added = len(whole[i]) - before
                masks[i] += [1] * n + [0] * (added - n)
                logprobs[i] += [*answer.logprobs, *[0.0] * (added - n)]
                if going:
                    left.append(i)
            live = left
        return {
            "prompt_ids": [list(ids[:n]) for ids, n in zip(whole, given, strict=True)],
            "completion_ids": [list(ids[n:]) for ids, n in zip(whole, given, strict=True)],
            "logprobs": logprobs,
            "env_mask": masks,
            "won": won,
        }

    @torch.no_grad()
    def _write(self, model: Any, talks: list[Conversation]) -> list[SampledTokens]:
        """One answer for each conversation, by ``generate``."""
        contexts = [t.context.token_ids for t in talks]
        width, pad, end = max(map(len, contexts)), self._chat.pad_id, self._chat.end_id
        ids = torch.tensor([[pad] * (width - len(c)) + list(c) for c in contexts])
        mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts])
        model.eval()
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self._config.sampling.max_new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=end,
            pad_token_id=pad,
            return_dict_in_generate=True,
            output_logits=True,
        )
        model.train()
        new = output.sequences[:, width:]
        scores = torch.stack(output.logits, 1).log_softmax(-1).gather(-1, new[..., None])[..., 0]
        answers = []
        for row, values in zip(new.tolist(), scores.tolist(), strict=True):
            n = row.index(end) + 1 if end in row else len(row)
            finish = Finish.END if end in row else Finish.LENGTH
            answers.append(SampledTokens(tuple(row[:n]), tuple(values[:n]), finish))
        return answers


class _Clock(TrainerCallback):
    """CPU seconds at the end of every iteration."""

    def __init__(self, updates: int) -> None:
        self.ends: list[float] = []
        self._updates = updates

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._updates == 0:
            self.ends.append(time.process_time())


def seconds_of_iterations(config: RunConfig, iterations: int) -> tuple[list[float], float]:
    """CPU seconds of each iteration after the first, and tokens written in an iteration."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    hf_logging.disable_progress_bar()
    source = model_source(config.embodied.model)
    rollout, batch, lora = config.rollout, config.batch, config.policy.lora
    episodes = rollout.games * rollout.episodes_per_game
    loop = _Loop(config)
    clock = _Clock(batch.updates)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = GRPOConfig(
            output_dir=scratch,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            max_steps=batch.updates * (iterations + 1),
            num_generations=rollout.episodes_per_game,
            per_device_train_batch_size=episodes // (batch.updates * batch.micro_batches),
            gradient_accumulation_steps=batch.micro_batches,
            steps_per_generation=batch.updates * batch.micro_batches,
            max_completion_length=config.sampling.max_context,
            learning_rate=config.optim.lr,
            lr_scheduler_type="constant",
            max_grad_norm=config.optim.gradient_clip or 1.0,
            temperature=1.0,
            beta=0.0,
            gradient_checkpointing=False,
            remove_unused_columns=False,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
            reward_funcs=lambda won, **_: list(won),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [str(n) for n in range(len(loop.games))]}),
            processing_class=read_tokenizer(source),
            callbacks=[clock],
            rollout_func=loop,
            peft_config=LoraConfig(
                r=lora.rank,
                lora_alpha=int(lora.alpha),
                lora_dropout=lora.dropout,
                target_modules="all-linear" if lora.targets == "all-linear" else lora.targets.split(","),
                task_type="CAUSAL_LM",
            ),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    ends = clock.ends
    return [b - a for a, b in pairwise(ends)], loop.written / (iterations + 1)
