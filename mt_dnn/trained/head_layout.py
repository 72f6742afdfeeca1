"""Names of our pooler and head in the families' models for sequence classification.

Ours is dropout -> Linear(D, D) -> activation -> dropout -> Linear(D, K) on the first token. A family stands here if its
own head computes the same; a test each.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from data_utils.errors import SettingError
from mt_dnn.encoder.families import is_decoder
from mt_dnn.network import Network


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Names inside one family's model for sequence classification."""

    pooler: str
    """The Linear(D, D)."""
    head: str
    """The Linear(D, K)."""
    activation: str | None = None
    """Entry of the configuration that names the activation between them; None: it is tanh."""

    def pooler_activation(self, config: Any) -> str:
        """Return the activation between the two, by our name (``pooler_actf``), from a configuration."""
        return "tanh" if self.activation is None else str(getattr(config, self.activation))

    def layers(self, network: Network) -> dict[str, nn.Linear]:
        """Name in the family's model -> layer of a network of ours.

        Raises:
            SettingError: its head is a SAN.
        """
        head = network.head()
        if network.pooler is None or not isinstance(head, nn.Sequential):
            raise SettingError(
                "enable_san: no classification head of transformers is a SAN, so this model cannot be exported; "
                "predict.py scores with the run directory"
            )
        return {self.pooler: network.pooler.dense, self.head: head[-1]}  # type: ignore[dict-item]


_ROBERTA = HeadLayout("classifier.dense", "classifier.out_proj")
LAYOUTS = {
    "bert": HeadLayout("bert.pooler.dense", "classifier"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": _ROBERTA,
    "albert": HeadLayout("albert.pooler", "classifier"),
    "nomic_bert": HeadLayout("nomic_bert.pooler.dense", "classifier"),
    "deberta-v2": HeadLayout("pooler.dense", "classifier", activation="pooler_hidden_act"),
}
_OTHERS = {
    "distilbert": "has ReLU where ours has tanh",
    "electra": "has GELU where ours has tanh",
    "eurobert": "has GELU where ours has tanh",
    "roformer": "has GELU where ours has tanh",
    "modernbert": "has GELU and a norm where ours has tanh",
}
"""The difference of known families from ours."""


def find_layout(model_type: str, pooler_actf: str) -> HeadLayout:
    """Return the names of a family's pooler and head.

    Args:
        model_type: the family, as its configuration says.
        pooler_actf: activation of the pooler, ``tanh`` or ``linear``.

    Raises:
        SettingError: the family's head computes something else.
    """
    layout = LAYOUTS.get(model_type)
    if layout is None:
        unknown = "is one layer without a pooler" if is_decoder(model_type) else "is not known to be as ours"
        has = _OTHERS.get(model_type, unknown)
        raise SettingError(
            f"encoder: the classification head of {model_type} in transformers {has}, so this model cannot be exported "
            f"exactly; families that can: {', '.join(LAYOUTS)}; predict.py scores with the run directory"
        )
    if pooler_actf != "tanh" and layout.activation is None:
        raise SettingError(
            f"pooler_actf: {pooler_actf} cannot be exported, {model_type} in transformers has tanh after the pooler; "
            "predict.py scores with the run directory"
        )
    return layout
