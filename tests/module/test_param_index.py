"""Roles of the parameters of real module trees, in whatever they are wrapped."""

from collections import Counter

import pytest
import torch
import transformers
from torch import nn

from module.param_index import Kind, ParamIndex, Role, are_one_place, encoder_path, strip_wrappers, weight_decay_groups

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20, "type_vocab_size": 2,
}  # fmt: skip
DISTIL = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 20}
DEBERTA = {
    **SMALL, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"],
    "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3, "conv_act": "gelu", "share_att_key": False,
}  # fmt: skip
CONFIGS = {
    "bert": transformers.BertConfig(**SMALL),
    "roberta": transformers.RobertaConfig(**SMALL),
    "xlm-roberta": transformers.XLMRobertaConfig(**SMALL),
    "electra": transformers.ElectraConfig(**SMALL, embedding_size=8),
    "deberta-v2": transformers.DebertaV2Config(**DEBERTA),
    "distilbert": transformers.DistilBertConfig(**DISTIL),
}
# Per encoder layer: weights, biases, parameters of layer norms.
PER_LAYER = {"deberta-v2": (8, 8, 4)}  # and its own projections of the relative positions
families = pytest.mark.parametrize("family", CONFIGS)


class OwnNetwork(nn.Module):
    """Named as in mt_dnn: the encoder under encoder.model, a pooler and heads of our own."""

    def __init__(self, model):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.model = model
        self.pooler = nn.Linear(16, 16)
        self.heads = nn.ModuleDict({"cola": nn.Linear(16, 2)})


def bare(family):
    return transformers.AutoModel.from_config(CONFIGS[family])


@families
def test_roles_inside_the_own_network(family):
    index = ParamIndex(OwnNetwork(bare(family)).named_parameters())
    weights, biases, norms = PER_LAYER.get(family, (6, 6, 4))
    for layer in (0, 1):
        kinds = Counter(info.kind for info in index if info.layer == layer)
        assert kinds == {Kind.WEIGHT: weights, Kind.BIAS: biases, Kind.LAYER_NORM: norms}
    assert index.num_layers == 2
    outside = {info.name: info for info in index if not info.pretrained}
    assert {name: info.role for name, info in outside.items()} == {
        "pooler.weight": Role.POOLER,
        "pooler.bias": Role.POOLER,
        "heads.cola.weight": Role.HEAD,
        "heads.cola.bias": Role.HEAD,
    }
    embeddings = [info for info in index.select(Role.EMBEDDINGS) if "embeddings" in info.name.lower()]
    assert "word_embeddings.weight" in embeddings[0].name
    assert all(info.layer is None for info in index.select(Role.EMBEDDINGS))


@families
def test_every_norm_module_is_found_as_one(family):
    model = OwnNetwork(bare(family))
    norms = {
        f"{name}.{p}" for name, m in model.named_modules() if isinstance(m, nn.LayerNorm) for p in ("weight", "bias")
    }
    index = ParamIndex(model.named_parameters())
    assert {info.name for info in index.select(kind=Kind.LAYER_NORM)} == norms
    assert {info.name for info in index.select(kind=Kind.BIAS)} == {
        name for name, _ in model.named_parameters() if name.endswith("bias") and name not in norms
    }


@families
@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod.", "module._orig_mod.", "net.encoder.module."])
def test_paths_do_not_depend_on_what_the_encoder_stands_in(family, wrap):
    plain = {info.path for info in ParamIndex(bare(family).named_parameters()) if info.in_layer}
    network = OwnNetwork(bare(family))
    wrapped = ParamIndex((wrap + name, p) for name, p in network.named_parameters())
    assert {info.path for info in wrapped if info.in_layer} == plain
    assert {encoder_path(wrap + name) for name, _ in network.named_parameters()} >= plain
    assert all(path.startswith(("layer.0.", "layer.1.")) for path in plain)


@families
@pytest.mark.parametrize("auto", [transformers.AutoModelForSequenceClassification, transformers.AutoModelForMaskedLM])
def test_heads_of_transformers_are_heads(family, auto):
    model = auto.from_config(CONFIGS[family])
    index = ParamIndex(model.named_parameters())
    prefix = model.base_model_prefix + "."
    for info in index:
        assert info.pretrained == info.name.startswith(prefix), info.name
        assert (info.role == Role.HEAD) == (not info.pretrained and "pooler" not in info.name), info.name


def test_adapters_are_new_and_what_they_stand_beside_is_not():
    layer = "bert.encoder.layer.0.attention.self.query"
    names = [f"{layer}.{rest}" for rest in ("base_layer.weight", "base_layer.bias", "lora_A.default.weight")]
    names.append("bert.embeddings.word_embeddings.lora_embedding_A.default")
    index = ParamIndex((name, nn.Parameter(torch.zeros(1))) for name in names)
    assert [info.pretrained for info in index] == [True, True, False, False]
    assert [info.path for info in index][:2] == [f"layer.0.attention.self.query.{kind}" for kind in ("weight", "bias")]
    assert [info.kind for info in index][:3] == [Kind.WEIGHT, Kind.BIAS, Kind.WEIGHT]


@families
def test_biases_are_those_of_layers_and_of_norms(family):
    index = ParamIndex(bare(family).named_parameters())
    assert {info.name for info in index if info.is_bias} == {info.name for info in index if info.name.endswith("bias")}
    assert any(info.is_bias and info.kind == Kind.LAYER_NORM for info in index)


def test_extras_of_deberta():
    index = ParamIndex(bare("deberta-v2").named_parameters())
    assert index["encoder.rel_embeddings.weight"].role == Role.EMBEDDINGS
    assert index["encoder.LayerNorm.weight"].role == Role.EMBEDDINGS
    convolution = index["encoder.conv.conv.weight"]
    assert (convolution.role, convolution.layer, convolution.in_layer) == (Role.ENCODER, None, False)


def test_extras_of_electra_and_bert():
    assert ParamIndex(bare("electra").named_parameters())["embeddings_project.weight"].role == Role.EMBEDDINGS
    pooler = ParamIndex(bare("bert").named_parameters())["pooler.dense.weight"]
    assert (pooler.role, pooler.pretrained) == (Role.POOLER, True)


def test_compiled_and_data_parallel_names_are_read():
    compiled = torch.compile(bare("bert"), backend="eager")
    assert any(name.startswith("_orig_mod.") for name, _ in compiled.named_parameters())
    assert ParamIndex(compiled.named_parameters()).num_layers == 2
    assert strip_wrappers("module._orig_mod.a.module.b") == "a.b"


def parameter(*shape):
    return nn.Parameter(torch.zeros(shape or (2, 2)))


def test_new_neighbours_two_encoders_twins_and_nothing():
    layer = ("bert.encoder.layer.0.output.dense.weight", parameter())
    beside = ParamIndex([layer, ("bert.adapter.w", parameter())])["bert.adapter.w"]
    assert (beside.role, beside.pretrained) == (Role.HEAD, False)
    both = ParamIndex([layer, ("other.encoder.layer.0.output.dense.weight", parameter())])
    assert [info.path for info in both] == ["bert.layer.0.output.dense.weight", "other.layer.0.output.dense.weight"]
    assert [info.layer for info in both] == [0, 1]
    with pytest.raises(ValueError, match="the same name once wrappers are stripped"):
        ParamIndex([layer, ("module." + layer[0], parameter())])
    with pytest.raises(ValueError, match="none"):
        ParamIndex([])


def test_index_is_a_collection():
    network = OwnNetwork(bare("bert"))
    index = ParamIndex(network.named_parameters())
    assert len(index) == len(list(network.parameters()))
    assert "pooler.weight" in index
    assert "pooler" not in index
    assert index["heads.cola.bias"].parameter is network.heads["cola"].bias
    assert [info.name for info in index] == [name for name, _ in network.named_parameters()]


def test_weight_decay_spares_biases_and_norms():
    network = OwnNetwork(bare("bert"))
    network.encoder.model.embeddings.word_embeddings.weight.requires_grad_(False)
    decayed, plain = weight_decay_groups(ParamIndex(network.named_parameters()), 0.02)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.02, 0.0)
    assert all(name.endswith("bias") or "LayerNorm" in name for name, _ in plain["params"])
    assert not any(name.endswith("bias") or "LayerNorm" in name for name, _ in decayed["params"])
    names = {name for name, _ in decayed["params"] + plain["params"]}
    assert names == {name for name, p in network.named_parameters() if p.requires_grad}


def test_an_empty_group_is_left_out():
    index = ParamIndex([("encoder.layer.0.output.dense.bias", parameter())])
    assert [group["weight_decay"] for group in weight_decay_groups(index, 0.1)] == [0.0]


def test_biases_that_are_bare_parameters_are_biases():
    index = ParamIndex([("encoder.layer.0.attention.self.q_bias", parameter())])  # as in DeBERTa's first version
    assert index["encoder.layer.0.attention.self.q_bias"].kind == Kind.BIAS


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [
        ("bert.encoder.layer.1.output.dense.bias", "module.encoder.layer.1.output.dense.bias", True),
        ("bert.encoder.layer.1.output.dense.bias", "bert.encoder.layer.0.output.dense.bias", False),
        ("bert.encoder.layer.1.output.dense.bias", "bert.pooler.dense.bias", False),
        ("model.layers.3.mlp.up_proj.weight", "net.0.model.layers.3.mlp.up_proj.weight", True),
        ("model.layers.3.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight", False),
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.gate_proj.weight", False),
        ("model.layers.1.mlp.up_proj.weight", "model.layers.11.mlp.up_proj.weight", False),
        ("classifier.0.weight", "classifier.weight", True),
    ],
)
def test_places_are_compared_without_wrappers(name, other, same):
    assert are_one_place(name, other) is same
    assert are_one_place(other, name) is same
