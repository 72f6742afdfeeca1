"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) through the library peft: low-rank updates beside frozen layers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

from ..checks import CheckedSettings, NonNegative, at_least
from ..context import MethodContext
from ..lazy import torch
from ..method import FineTuningMethod, OptimizerSettings, Resource

_ADAPTER = "default"
# Names of the layers that make queries and values: BERT and its kin, DeBERTa-v2, DistilBERT; Llama, Qwen, BART; MPNet,
# T5; ModernBERT and GPT-2, where one layer makes the keys too.
_QUERY_VALUE = [
    "query", "value", "query_proj", "value_proj", "q_lin", "v_lin", "q_proj", "v_proj", "q", "v", "Wqkv", "c_attn",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoRASettings(CheckedSettings):
    """Settings of LoRA."""

    r: Annotated[int, at_least(1, "a whole number")] = 8
    """Rank of the update B A, at least 1. The authors' scripts for RoBERTa-large: 8."""
    alpha: NonNegative = 16.0
    """The update is multiplied by alpha / r; at least 0. The authors' scripts for RoBERTa-large: 16."""
    layers: Literal["query_value", "all"] = "query_value"
    """Which linear layers get an update: those of queries and values, as in the paper, or every one of the encoder."""


class LoRA(FineTuningMethod[LoRASettings]):
    """``W x + (alpha / r) B A x`` with W frozen; A is drawn from a stream of the method's own, B starts at 0.

    Trained are A, B, head, and a pooler of our own. Nothing else is: the encoder starts as it was loaded.
    """

    name = "lora"
    title = "LoRA"
    plain_pass = True
    exclusive = frozenset({Resource.LINEAR_LAYERS})
    rank = -50  # after noise on the pretrained weights, before methods that look for trained parameters

    def check_run(self, settings: OptimizerSettings) -> None:
        """Look for peft.

        Raises:
            ValueError: If it is missing.
        """
        if find_spec("peft") is None:
            raise ValueError(
                "Method lora needs the package peft, which is not installed: pip install -r requirements-lora.txt"
            )

    def setup(self, context: MethodContext) -> None:
        """Insert the adapters and freeze the pretrained weights.

        Raises:
            ValueError: If peft finds no such layers, or has adapted the model already.
        """
        from peft import LoraConfig, inject_adapter_in_model

        settings = self.settings
        model = _transformers_model(context.network)
        config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            target_modules="all-linear" if settings.layers == "all" else _QUERY_VALUE,
            lora_dropout=0.0,
        )
        with torch.random.fork_rng(devices=[]):  # peft's draws are replaced below
            try:
                inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
            except ValueError as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"Method lora: {reason} (--lora.layers all takes every linear layer)") from None
        _draw(context, model)

    def hand_over(self, context: MethodContext) -> None:
        """Add the updates to the weights and take the adapters out."""
        from peft.tuners.lora import LoraLayer

        for module in list(context.network.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, LoraLayer) and _ADAPTER in child.lora_A:
                    child.merge(adapter_names=[_ADAPTER])
                    setattr(module, name, child.get_base_layer())


def _transformers_model(network: torch.nn.Module) -> torch.nn.Module:
    """Find the pretrained model inside a network: the outermost module with a configuration, without its task head."""
    found = next((module for module in network.modules() if hasattr(module, "config")), None)
    if found is None:
        raise ValueError("Method lora needs a model of transformers inside the network, and finds none")
    if hasattr(found, "peft_config"):
        raise ValueError("Method lora makes adapters of its own, and the model has some of peft already: give it plain")
    base: torch.nn.Module = getattr(found, "base_model", found)
    return base


def _draw(context: MethodContext, model: torch.nn.Module) -> None:
    """Draw each A from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as the authors' code, from a stream of its own."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            weights = module.lora_A[_ADAPTER].weight.detach()  # (r, fan_in)
            bound = weights.shape[1] ** -0.5
            drawn = torch.empty(weights.shape, dtype=torch.float32, device="cpu")
            weights.copy_(drawn.uniform_(-bound, bound, generator=context.rng(f"lora/{name}")))
