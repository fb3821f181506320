"""Loads the policy: a causal language model, its tokenizer and its LoRA adapters.

The embedded checkpoint, a hub model such as ``Qwen/Qwen2.5-1.5B-Instruct`` and a local folder go
through exactly the same code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from envrl.errors import PolicyFault
from envrl.policy.attention import PACKED, attends_to_all
from envrl.policy.batch import RowBatch
from envrl.policy.chat import ChatMarkup
from envrl.policy.copies import frozen_copy, merge_into, moved, refuse_shared
from envrl.policy.packing import pack
from envrl.policy.reading import (
    UNTRUSTED,
    first_line,
    keep_layout,
    load_dtype,
    lora_config,
    quantisation,
    quiet,
    read_config,
    read_tokenizer,
    reading,
    require_bitsandbytes,
)
from envrl.policy.sampler import evaluation_mode
from envrl.policy.settings import TINY_CHECKPOINT, LoraSettings, PolicySettings, model_source
from envrl.policy.states import RowStates

if TYPE_CHECKING:
    from envrl.policy.pieces import Pieces

__all__ = [
    "TINY_CHECKPOINT",
    "LoraSettings",
    "Policy",
    "PolicySettings",
    "check_policy",
    "load_policy",
]


class Policy(nn.Module):
    """A causal language model with optional adapters, its markup, and the view it is sampled from.

    Attributes:
        model: The trained model: a ``PeftModel`` with adapters, else the bare causal model.
        chat: Markup and tokenizer.
        settings: What it was loaded from.
        packs: What rows of an update begin with alike is computed once.
        pieces: What its layers are cut into pieces by (:meth:`divide`); None while they are whole.

    Raises:
        PolicyFault: Adapters are asked for on a weight that two layers share.
    """

    def __init__(
        self, base: PreTrainedModel, chat: ChatMarkup, settings: PolicySettings, *, to_divide: bool = False
    ) -> None:
        super().__init__()
        self.chat = chat
        self.settings = settings
        self.pieces: Pieces | None = None
        # The copies are kept out of the module tree: they are neither trained nor checkpointed.
        self._sampling_copy: list[PreTrainedModel] = []
        self._reference_copy: list[PreTrainedModel] = []
        if settings.lora.enabled:
            if settings.merge_for_sampling and not settings.quantised and not to_divide:
                self._sampling_copy = [frozen_copy(base)]
            self.model: nn.Module = get_peft_model(base, lora_config(settings.lora))
            refuse_shared(base, settings)
        else:
            self.model = base
        self.packs = settings.packed and attends_to_all(base)
        if self.packs:
            for model in (base, *self._sampling_copy):
                model.set_attn_implementation(PACKED)
        if settings.gradient_checkpointing:
            self.causal.gradient_checkpointing_enable({"use_reentrant": False})
            self.causal.enable_input_require_grads()

    @property
    def causal(self) -> PreTrainedModel:
        """The causal language model the adapters are injected into."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return cast(PreTrainedModel, model)

    def hidden_states(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states ``[batch seq hidden]`` of rows padded on the right.

        No attention mask is needed: under causal attention, filler on the right is never seen.
        """
        output = self.causal.get_decoder()(input_ids=token_ids, use_cache=False)
        return cast(torch.Tensor, output.last_hidden_state)

    def states(self, rows: RowBatch) -> RowStates:
        """Last hidden states of an update's rows.

        With ``policy.packed`` no filler is computed, and what rows begin with alike only once; the states
        are those of :meth:`hidden_states` up to rounding.

        Raises:
            PolicyFault: The model does not hand the layout of packed rows on to its attention.
        """
        if not self.packs or not bool((rows.lengths > 0).any()):
            return RowStates.of(self.hidden_states(rows.token_ids))
        packed = pack(rows.token_ids, rows.lengths, self._worth_sharing)
        output = self.causal.get_decoder()(
            input_ids=packed.token_ids,
            position_ids=packed.positions,
            # Four-dimensional masks are handed on as they are, so transformers makes none of its own.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.token_ids.device),
            use_cache=False,
            packed=packed,
        )
        if packed.layers == 0:
            raise PolicyFault(
                f"the layers of policy.model '{self.settings.model}' can't attend to packed rows; set "
                "policy.packed=false"
            )
        return RowStates(output.last_hidden_state[0], packed.places)

    def _worth_sharing(self, shared: int, length: int) -> bool:
        """Whether ``shared`` tokens fewer make up for attention that computes what the mask then hides."""
        if self.settings.lora.enabled and self.settings.lora.dropout > 0 and self.training:
            return False
        hidden = length * (length / 2 - shared)
        return shared * self._token_cost > hidden

    @cached_property
    def _token_cost(self) -> float:
        """Cost of a token in a layer's matrices, as a number of pairs of tokens in its attention.

        A pair costs two products of ``hidden_size`` numbers, at about a quarter of the speed of matrices.
        """
        config = self.causal.config.get_text_config()
        decoder = self.causal.get_decoder()
        weights = float(sum(p.numel() for name, p in decoder.named_parameters() if "embed" not in name))
        return weights / int(config.num_hidden_layers) / (2 * int(config.hidden_size) * 4)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores over the vocabulary for hidden states of any leading shape."""
        head = self.causal.get_output_embeddings()
        return cast(torch.Tensor, head(hidden))

    @property
    def vocabulary(self) -> int:
        """Scores of one hidden state."""
        return int(self.causal.config.get_text_config().vocab_size)

    @contextmanager
    def reference(self) -> Iterator[Policy]:
        """The policy as it was before training (adapters off), in evaluation mode and without gradients.

        Raises:
            PolicyFault: All parameters are trained and no copy was kept (see :meth:`keep_reference`).
        """
        with torch.no_grad():
            if isinstance(self.model, PeftModel):
                with evaluation_mode(self.model), self.model.disable_adapter():
                    yield self
                return
            if not self._reference_copy:
                raise PolicyFault("no reference policy was kept; call keep_reference() before training")
            trained, self.model = self.model, moved(self._reference_copy[0], self.model)
            try:
                yield self
            finally:
                self.model = trained

    def keep_reference(self) -> None:
        """Keeps a frozen copy for the KL term when all parameters are trained (adapters need none)."""
        if not isinstance(self.model, PeftModel) and not self._reference_copy:
            self._reference_copy = [frozen_copy(self.causal)]

    def divide(self, device: torch.device) -> None:
        """Cuts the layers, those of a kept reference too, into pieces on the processes of the run.

        All processes call it, after the weights are loaded. From then on a process plays inside
        :meth:`whole`, and all make the same passes in updates.

        Raises:
            PolicyFault: The model does not say what its layers are.
        """
        # Torch's distributed modules take more than a second to import.
        from envrl.policy.pieces import Pieces

        self.to(device)
        self.pieces = Pieces(self.causal, self._reference_copy, device)

    def whole(self) -> AbstractContextManager[None]:
        """While a process computes on its own: layers in pieces are put together for as long."""
        return nullcontext() if self.pieces is None else self.pieces.whole()

    def sampling_model(self) -> PreTrainedModel:
        """The model to sample from, with the adapters' current weights in it."""
        if self.pieces is not None and self.settings.merge_for_sampling:
            self.pieces.merge()
        if not self._sampling_copy:
            return self.causal
        copied = moved(self._sampling_copy[0], self.model)
        merge_into(copied, self.causal)
        return copied

    def save_adapter(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Writes adapters in peft format (or the whole model where there are none), with tokenizer.

        Args:
            folder: Where to.
            weights: Trained weights by their names in ``model``, in place of those that it holds.
        """
        if weights is None and self.pieces is not None:
            # Asked for its own, a model in pieces would give up layers that are whole.
            weights = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        with quiet():
            chosen = {} if weights is None else {"state_dict": dict(weights)}
            self.model.save_pretrained(folder, **chosen)  # type: ignore[operator]
        self.chat.tokenizer.save_pretrained(folder)

    def save_merged(self, folder: Path) -> None:
        """Writes one model with the adapters in its weights, in Hugging Face format, with tokenizer.

        Adapters of a quantised base are merged into the base as it was before, in ``policy.dtype``: that is
        the model they were trained beside up to the error of quantisation.
        """
        if not isinstance(self.model, PeftModel):
            self.save_adapter(folder)
            return
        with reading(self.settings), tempfile.TemporaryDirectory() as scratch:
            self.model.save_pretrained(scratch)
            base = AutoModelForCausalLM.from_pretrained(
                model_source(self.settings.model), dtype=load_dtype(self.settings), **UNTRUSTED
            )
            merged = PeftModel.from_pretrained(base, scratch).merge_and_unload()
        with quiet():
            merged.save_pretrained(folder)
        self.chat.tokenizer.save_pretrained(folder)


def check_policy(settings: PolicySettings) -> None:
    """Finds out, without loading weights, that :func:`load_policy` can't succeed.

    Raises:
        PolicyFault: The model can't be found or read, or the hardware can't do what was asked.
    """
    source = model_source(settings.model)
    if settings.quantised:
        require_bitsandbytes(settings)
    with reading(settings):
        read_tokenizer(source)
        read_config(source)


def load_policy(settings: PolicySettings, *, to_divide: bool = False) -> Policy:
    """Loads model, tokenizer and adapters.

    Dropout that the model's own configuration asks for is off (GPT-2: 0.1), in training too: sampler, trainer
    and reference have to be one policy. That of the adapters is the setting ``policy.lora.dropout``.

    Args:
        settings: What to load.
        to_divide: It is going to be cut into pieces (:meth:`Policy.divide`), so there is no copy to sample
            from: adapters are merged where the layers stand.

    Raises:
        PolicyFault: The model can't be found or read, the hardware can't do what was asked, or adapters don't
            fit the model.
    """
    source = model_source(settings.model)
    if settings.quantised:
        require_bitsandbytes(settings)
    with reading(settings):
        tokenizer = read_tokenizer(source)
        base = AutoModelForCausalLM.from_pretrained(
            source,
            config=read_config(source),
            dtype=load_dtype(settings),
            quantization_config=quantisation(settings),
            # The sampler passes a boolean mask, which eager attention would add to the scores.
            attn_implementation="sdpa",
            **UNTRUSTED,
        )
        if settings.load_in_4bit:
            keep_layout(base)
    chat = ChatMarkup(tokenizer)
    try:
        with quiet():
            return Policy(base, chat, settings, to_divide=to_divide)
    except ValueError as error:
        raise PolicyFault(
            f"policy.lora.targets '{settings.lora.targets}' does not fit the model '{settings.model}' "
            f"({first_line(error)}); use all-linear or names of its linear layers, e.g. q_proj,v_proj"
        ) from error
