"""L2-SP (Li et al., ICML 2018, arXiv 1802.01483): weight decay towards the pretrained weights instead of zero."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..checks import CheckedSettings, NonNegative
from ..context import Accumulate, MethodContext
from ..lazy import torch
from ..method import AnyMethod, FineTuningMethod
from ..param_index import ParamInfo, split_groups


@dataclass(frozen=True, slots=True)
class L2SPSettings(CheckedSettings):
    """Settings of L2-SP."""

    alpha: NonNegative = 0.01
    """Strength of the penalty alpha / 2 ||theta - theta0||^2 on what is pretrained, at least 0; 0: the usual weight
    decay stays."""
    beta: NonNegative = 0.01
    """Strength of the penalty beta / 2 ||theta||^2 on what is not (pooler and head), at least 0; 0: the usual weight
    decay stays."""
    anchor: Literal["pretrained", "init"] = "pretrained"
    """theta0: the weights as loaded, or with the noise that NoisyTune adds before training."""


class L2SP(FineTuningMethod[L2SPSettings]):
    """The mean loss plus ``alpha / 2 ||theta - theta0||^2 + beta / 2 ||head||^2``; its gradient is added as it stands.

    Of several tasks each example penalises the head of its own.

    The penalty belongs to the loss: clipping, the optimizer's moments and methods that take gradients at other weights
    (they are around this one) see it. Penalised parameters have no weight decay.
    """

    name = "l2sp"
    title = "L2-SP"
    rank = 1000  # next to the plain pass, inside all others
    divisible = True  # each process adds the pull's share of its examples

    def __init__(self, settings: L2SPSettings | None = None) -> None:
        super().__init__(settings)
        pulls = self.settings.alpha > 0.0
        self.anchors = frozenset({self.settings.anchor} if pulls else ())
        self.needs_dense_gradients = pulls  # for the pull on the word embeddings
        self._anchor: dict[torch.Tensor, torch.Tensor] = {}

    def check_beside(self, others: Sequence[AnyMethod]) -> None:
        """Refuse LoRA.

        Raises:
            ValueError: If the pretrained weights would be frozen.
        """
        names = {other.name for other in others}
        if self.settings.alpha > 0.0 and "lora" in names and "bitfit" not in names:  # which leaves the biases
            raise ValueError(
                f"Methods {self.name!r} and 'lora' do not stand together: the one acts on the pretrained weights, "
                "which the other freezes: use them in separate runs"
            )

    def setup(self, context: MethodContext) -> None:
        """Keep the anchor."""
        if self.settings.alpha > 0.0:
            anchor = context.anchor(self.settings.anchor)
            self._anchor = {info.parameter: anchor[info.name] for info in context.params if info.pretrained}

    def param_groups(self, context: MethodContext, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Switch weight decay off for penalised parameters.

        Raises:
            ValueError: If alpha is above 0 and nothing pretrained is trained.
        """
        if self.settings.alpha > 0.0 and not any(p.requires_grad for p in self._anchor):
            raise ValueError("Method l2sp penalises pretrained weights, but all of them are frozen: use l2sp.alpha 0")
        divided = split_groups(groups, context.params, self._strength)
        return [group if strength == 0.0 else {**group, "weight_decay": 0.0} for strength, group in divided]

    def _strength(self, info: ParamInfo) -> float:
        return self.settings.alpha if info.pretrained else self.settings.beta

    def gradients(self, context: MethodContext, batches: Sequence[Any], inner: Accumulate) -> torch.Tensor:
        """Add this pass's share of the penalty's gradient to the loss's gradient."""
        # Methods around this one may go through the step's batches one by one, or several times with weights.
        examples = Counter[str]()
        for batch in batches:
            examples[context.model.task_kind(batch).head] += batch.size
        heads = [kind.head for kind in context.model.task_kinds]
        loss = inner(batches)
        with torch.no_grad():
            for info in context.params:
                theta, strength = info.parameter, self._strength(info)
                if strength == 0.0 or not theta.requires_grad:
                    continue
                head = next((head for head in heads if info.name.startswith(head)), "")
                counted = examples[head] if head else examples.total()
                if head and not counted:
                    continue
                share = context.pass_weight * counted / context.examples
                pull = theta - self._anchor[theta] if info.pretrained else theta.clone()
                pull *= strength * share
                if context.gradient_scale is not None:
                    pull *= context.gradient_scale
                theta.grad = pull if theta.grad is None else theta.grad.add_(pull)
        return loss

    def metrics(self, context: MethodContext) -> dict[str, float]:
        """Return the distance ||theta - theta0||."""
        moved = [theta.detach() - theta0 for theta, theta0 in self._anchor.items()]
        return {"distance": float(torch.nn.utils.get_total_norm(moved))} if moved else {}
