"""Roles of the tensors of many families, against tables written by hand, and PATS on each of them.

A line of a table has a code, a prefix and names. Codes: E embeddings, L layer, D layer of the second stack, R the rest
of the encoder, P pretrained pooler, p new pooler, H head. In prefixes N stands for a layer's number. Names: ``a`` is
``a.weight``, ``a+`` its bias too, ``a~`` a norm's weight, ``a~+`` its bias too; ``=a`` the parameter itself (``=a~`` if
it scales); ``@1`` in layer 1 alone.
"""

import re
from itertools import pairwise

import pytest
import torch
import transformers as T
from torch import nn

from module.bert_optim import Adamax, PATSAdamax
from module.noise import tensor_id
from module.param_index import Kind, ParamIndex, Role

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "max_position_embeddings": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
IMAGES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
          "patch_size": 4}  # fmt: skip
BOTH = {"vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}  # fmt: skip
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
WHISPER = {**BOTH, "max_source_positions": 20, "max_target_positions": 20, "num_mel_bins": 8, **IDS}
CLASSIFIER, LM = T.AutoModelForSequenceClassification, T.AutoModelForCausalLM


class Timm(nn.Module):
    """Names as in timm's vision transformers."""

    def __init__(self):
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.zeros(1, 5, 16))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 16, 4)})
        self.blocks = nn.ModuleList()
        for _ in range(2):
            attention = nn.ModuleDict({"qkv": nn.Linear(16, 48), "proj": nn.Linear(16, 16)})
            scale, mlp = nn.Module(), nn.ModuleDict({"fc1": nn.Linear(16, 24), "fc2": nn.Linear(24, 16)})
            scale.gamma = nn.Parameter(torch.ones(16))
            norms = {"norm1": nn.LayerNorm(16), "norm2": nn.LayerNorm(16)}
            self.blocks.append(nn.ModuleDict({**norms, "attn": attention, "ls1": scale, "mlp": mlp}))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 2)


class Own(nn.Module):
    """A network of somebody's own around torch's encoder."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2)
        self.fc = nn.Linear(16, 2)


def auto(cls, kind, sizes, **more):
    return lambda: cls.from_config(T.AutoConfig.for_model(kind, **sizes, **more))


BERT = """
E {0}.embeddings. {{word,position,token_type}}_embeddings LayerNorm~+
L {0}.encoder.layer.N. attention.self.{{query,key,value}}+ {{attention.output,intermediate,output}}.dense+
L {0}.encoder.layer.N. {{attention.output,output}}.LayerNorm~+
"""
HEAD = "H classifier. {dense,out_proj}+\n"
LLAMA = """
E model. embed_tokens
L model.layers.N. self_attn.{{q,k,v}}_proj{0} self_attn.o_proj mlp.{{gate,up,down}}_proj
L model.layers.N. {{input,post_attention}}_layernorm~
R model. norm~
"""
TORCH = "layers.N. =self_attn.in_proj_{weight,bias} self_attn.out_proj+ linear{1,2}+ norm{1,2}~+\n"
WHISPER_ENCODER = """
E {0} conv{{1,2}}+ embed_positions
L {0}layers.N. self_attn.{{v,q,out}}_proj+ self_attn.k_proj fc{{1,2}}+ {{self_attn,final}}_layer_norm~+
R {0} layer_norm~+
"""
T5_ENCODER = """
E shared
L encoder.block.N.layer. 0.SelfAttention.{q,k,v,o} 0.SelfAttention.relative_attention_bias@0 {0,1}.layer_norm~
L encoder.block.N.layer. 1.DenseReluDense.{wi,wo}
R encoder.final_layer_norm~
"""
BART_LAYER = "{self_attn.{k,v,q,out}_proj,fc1,fc2}+ {self_attn,final}_layer_norm~+"
TOWER = "encoder.layers.N. self_attn.{k,v,q,out}_proj+ mlp.fc{1,2}+ layer_norm{1,2}~+"
FAMILIES = {
    "bert": (auto(CLASSIFIER, "bert", SIZES), BERT.format("bert") + "P bert. pooler.dense+\nH classifier+"),
    "roberta": (auto(CLASSIFIER, "roberta", SIZES), BERT.format("roberta") + HEAD),
    "xlm-roberta": (auto(CLASSIFIER, "xlm-roberta", SIZES), BERT.format("roberta") + HEAD),
    "electra": (
        auto(CLASSIFIER, "electra", SIZES, embedding_size=8),
        BERT.format("electra") + "E electra. embeddings_project+\n" + HEAD,
    ),
    "deberta-v2": (
        auto(CLASSIFIER, "deberta-v2", SIZES, relative_attention=True, position_buckets=4, norm_rel_ebd="layer_norm",
             pos_att_type=["c2p", "p2c"], conv_kernel_size=3, position_biased_input=False, type_vocab_size=0),
        """
        E deberta.embeddings. word_embeddings LayerNorm~+
        L deberta.encoder.layer.N. attention.self.{query,key,value,pos_key,pos_query}_proj+
        L deberta.encoder.layer.N. {attention.output,intermediate,output}.dense+ {attention.output,output}.LayerNorm~+
        E deberta.encoder. rel_embeddings LayerNorm~+
        R deberta.encoder.conv. conv+ LayerNorm~+
        p pooler.dense+
        H classifier+""",
    ),
    "distilbert": (
        auto(CLASSIFIER, "distilbert", {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}),
        """
        E distilbert.embeddings. {word,position}_embeddings LayerNorm~+
        L distilbert.transformer.layer.N. attention.{q,k,v,out}_lin+ ffn.lin{1,2}+ {sa,output}_layer_norm~+
        H {pre_classifier,classifier}+""",
    ),
    "albert": (
        auto(CLASSIFIER, "albert", SIZES, embedding_size=8),
        """
        E albert.embeddings. {word,position,token_type}_embeddings LayerNorm~+
        E albert.encoder. embedding_hidden_mapping_in+
        L albert.encoder.albert_layer_groups.0.albert_layers.N. attention.{query,key,value,dense}+ {ffn,ffn_output}+
        L albert.encoder.albert_layer_groups.0.albert_layers.N. {full_layer_layer_norm,attention.LayerNorm}~+
        P albert. pooler+
        H classifier+""",
    ),
    "mpnet": (
        auto(CLASSIFIER, "mpnet", SIZES),
        """
        E mpnet.embeddings. {word,position}_embeddings LayerNorm~+
        L mpnet.encoder.layer.N. attention.attn.{q,k,v,o}+ {intermediate,output}.dense+ {attention,output}.LayerNorm~+
        E mpnet.encoder. relative_attention_bias
        """ + HEAD,
    ),
    "modernbert": (
        auto(CLASSIFIER, "modernbert", SIZES, cls_token_id=1, sep_token_id=2),
        """
        E model.embeddings. tok_embeddings norm~
        L model.layers.N. attn.{Wqkv,Wo} mlp.{Wi,Wo} mlp_norm~ attn_norm~@1
        R model. final_norm~
        H head.dense head.norm~ classifier+""",
    ),
    "nomic_bert": (
        auto(CLASSIFIER, "nomic_bert", SIZES),
        """
        E nomic_bert.embeddings. {word,token_type}_embeddings LayerNorm~+
        L nomic_bert.layers.N. self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj post_{attention,mlp}_layernorm~+
        P nomic_bert. pooler.dense+
        H classifier+""",
    ),
    "eurobert": (
        auto(CLASSIFIER, "eurobert", SIZES, mask_token_id=3),
        LLAMA.format("") + "H {dense,classifier}+",
    ),
    "roformer": (
        auto(CLASSIFIER, "roformer", SIZES),
        BERT.format("roformer").replace("word,position", "word") + "E roformer.encoder. embed_positions\n" + HEAD,
    ),
    "gpt2": (
        auto(CLASSIFIER, "gpt2", {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0,
                                  "bos_token_id": 1, "eos_token_id": 2}),
        """
        E transformer. wte wpe
        L transformer.h.N. attn.{c_attn,c_proj}+ mlp.{c_fc,c_proj}+ ln_{1,2}~+
        R transformer. ln_f~+
        H score""",
    ),
    "llama": (auto(CLASSIFIER, "llama", GROUPED), LLAMA.format("") + "H score"),
    "qwen2": (auto(CLASSIFIER, "qwen2", GROUPED), LLAMA.format("+") + "H score"),
    "qwen3": (
        auto(LM, "qwen3", GROUPED, tie_word_embeddings=False),
        LLAMA.format("") + "L model.layers.N.self_attn. {q,k}_norm~\nH lm_head",
    ),
    "gemma": (auto(CLASSIFIER, "gemma", GROUPED), LLAMA.format("") + "H score"),
    "t5": (
        lambda: T.T5ForConditionalGeneration(T.T5Config(**T5)),
        T5_ENCODER + """
        D decoder.block.N.layer. {0.SelfAttention,1.EncDecAttention}.{q,k,v,o} {0,1,2}.layer_norm~
        D decoder.block.N.layer. 0.SelfAttention.relative_attention_bias@0 2.DenseReluDense.{wi,wo}
        R decoder.final_layer_norm~""",
    ),
    "t5 encoder": (lambda: T.T5EncoderModel(T.T5Config(**T5)), T5_ENCODER),
    "bart": (
        auto(CLASSIFIER, "bart", BOTH, max_position_embeddings=20),
        f"""
        E model. shared {{encoder,decoder}}.embed_positions {{encoder,decoder}}.layernorm_embedding~+
        L model.encoder.layers.N. {BART_LAYER}
        D model.decoder.layers.N. {BART_LAYER} encoder_attn.{{k,v,q,out}}_proj+ encoder_attn_layer_norm~+
        H classification_head. {{dense,out_proj}}+""",
    ),
    "vit": (
        lambda: T.ViTForImageClassification(T.ViTConfig(**IMAGES)),
        """
        E vit.embeddings. ={cls_token,position_embeddings} patch_embeddings.projection+
        L vit.layers.N. attention.{q,k,v,o}_proj+ mlp.fc{1,2}+ layernorm_{before,after}~+
        R vit. layernorm~+
        H classifier+""",
    ),
    "data2vec vision": (
        lambda: T.Data2VecVisionForImageClassification(T.Data2VecVisionConfig(**IMAGES)),
        """
        E data2vec_vision.embeddings. =cls_token patch_embeddings.projection+
        L data2vec_vision.encoder.layer.N. attention.attention.{query,value}+ attention.attention.key =lambda_{1,2}~
        L data2vec_vision.encoder.layer.N. {attention.output,intermediate,output}.dense+ layernorm_{before,after}~+
        P data2vec_vision.pooler. layernorm~+
        H classifier+""",
    ),
    "clip": (
        lambda: T.CLIPModel(T.CLIPConfig(text_config=SIZES, vision_config=IMAGES)),
        f"""
        E text_model.embeddings. {{token,position}}_embedding
        L text_model.{TOWER}
        R text_model. final_layer_norm~+
        E vision_model. =embeddings.class_embedding embeddings.{{patch,position}}_embedding pre_layrnorm~+
        D vision_model.{TOWER}
        R vision_model. post_layernorm~+
        H =logit_scale {{visual,text}}_projection""",
    ),
    "whisper": (
        lambda: T.WhisperForAudioClassification(T.WhisperConfig(**WHISPER)),
        WHISPER_ENCODER.format("encoder.") + "H {projector,classifier}+",
    ),
    "whisper encoder": (lambda: T.WhisperModel(T.WhisperConfig(**WHISPER)).encoder, WHISPER_ENCODER.format("")),
    "torch": (lambda: Own().encoder, "L " + TORCH),
    "own": (Own, "E words\nL encoder." + TORCH + "H fc+"),
    "timm": (
        Timm,
        """
        E ={cls_token,pos_embed} patch_embed.proj+
        L blocks.N. attn.{qkv,proj}+ mlp.fc{1,2}+ norm{1,2}~+ =ls1.gamma~
        R norm~+
        H head+""",
    ),
}  # fmt: skip
ROLES = {"E": Role.EMBEDDINGS, "L": Role.ENCODER, "D": Role.ENCODER, "R": Role.ENCODER, "P": Role.POOLER,
         "p": Role.POOLER, "H": Role.HEAD}  # fmt: skip
families = pytest.mark.parametrize("family", FAMILIES)


def alternatives(text):
    """Texts that braces stand for, the innermost first."""
    inner = re.search(r"\{([^{}]*)\}", text)
    if inner is None:
        return [text]
    return [t for one in inner[1].split(",") for t in alternatives(text[: inner.start()] + one + text[inner.end() :])]


def items(line):
    """Name with N, kind and layer (None: all) of each tensor of a line."""
    prefix, *names = line if len(line) > 1 and line[0].endswith(".") else ("", *line)
    for text in names:
        text, _, only = text.partition("@")
        marks = text.lstrip("=").rstrip("~+").join(["=" * text.startswith("="), text[len(text.rstrip("~+")) :]])
        for name in alternatives(text.strip("=~+")):
            norm = "~" in marks
            if "=" in marks:
                kind = Kind.BIAS if name.endswith("_bias") else Kind.WEIGHT
                yield prefix + name, Kind.LAYER_NORM if norm else kind, only
                continue
            yield f"{prefix}{name}.weight", Kind.LAYER_NORM if norm else Kind.WEIGHT, only
            if "+" in marks:
                yield f"{prefix}{name}.bias", Kind.LAYER_NORM if norm else Kind.BIAS, only


def table(text, layers=2):
    """Role, layer, kind and whether it is pretrained, of each tensor."""
    expected = {}
    for line in filter(str.strip, text.splitlines()):
        code, *rest = line.split()
        for name, kind, only in items(rest):
            for i in range(layers) if code in "LD" else (None,):
                if not only or i == int(only):
                    layer = i if code != "D" else i + layers
                    short = re.sub(r"\bN\b", str(i), name)
                    expected[short] = (ROLES[code], layer, kind, code not in "pH")
    return expected


def expected_of(family):
    return table(FAMILIES[family][1], layers=1 if family == "albert" else 2)


@families
def test_roles_are_those_of_the_table(family):
    found = {
        i.name: (i.role, i.layer, i.kind, i.pretrained) for i in ParamIndex(FAMILIES[family][0]().named_parameters())
    }
    expected = expected_of(family)
    assert found.keys() == expected.keys()
    assert {name: (found[name], expected[name]) for name in found if found[name] != expected[name]} == {}


@families
def test_pats_perturbs_the_weights_and_biases_of_the_layers(family):
    model, plain = FAMILIES[family][0](), FAMILIES[family][0]()
    generator = torch.Generator().manual_seed(0)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        one.data.copy_(other.data.normal_(generator=generator))  # biases begin as zeros, which have no sensitivity
        one.grad = torch.randn(one.shape, generator=generator)
        other.grad = one.grad.clone()
    settings = {"noise_scale": 0.5, "threshold_mode": "none", "noise_probability": 1.0, "perturb_biases": True}
    PATSAdamax(model.named_parameters(), 0.1, **settings).step()
    Adamax(plain.named_parameters(), 0.1).step()
    there = dict(plain.named_parameters())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, there[name])}
    assert moved == {
        name
        for name, (_, layer, kind, _) in expected_of(family).items()
        if layer is not None and kind != Kind.LAYER_NORM
    }
    assert all(p.isfinite().all() for p in model.parameters())


@families
@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.", "net.encoder.module.", "0.auto_model."])
def test_paths_do_not_depend_on_what_the_network_stands_in(family, wrap):
    named = list(FAMILIES[family][0]().named_parameters())
    alone = {info.path for info in ParamIndex(named) if info.in_layer}
    head = ("1.linear.weight", nn.Parameter(torch.zeros(2, 16)))
    wrapped = ParamIndex([*((wrap + name, parameter) for name, parameter in named), head])
    assert {info.path for info in wrapped if info.in_layer} == alone
    assert wrapped["1.linear.weight"].role == Role.HEAD


# The noise of the trees that were known first: what a checkpoint of then goes on with.
STREAMS = {
    ("bert.encoder.layer.0.attention.self.query.weight", "layer.0.attention.self.query.weight"): 0xA148E9932BAFC073,
    ("net.module.transformer.layer.1.output.dense.bias", "layer.1.output.dense.bias"): 0xFBB47336FF4DDA2D,
}


def test_streams_of_the_first_trees_are_what_they_were():
    for (name, path), identity in STREAMS.items():
        info = ParamIndex([(name, nn.Parameter(torch.zeros(2, 2)))])[name]
        assert (info.path, info.stream, tensor_id(info.stream)) == (path, path, identity)
    for family in ("bert", "roberta", "xlm-roberta", "electra", "deberta-v2", "distilbert"):
        for info in ParamIndex(FAMILIES[family][0]().named_parameters()):
            known = re.sub(r"^.*(?:encoder|transformer)\.(?=layer\.\d)", "", info.name)
            assert info.stream == known, family


def test_second_stacks_have_streams_of_their_own():
    t5, alone = (ParamIndex(FAMILIES[name][0]().named_parameters()) for name in ("t5", "t5 encoder"))
    streams = [info.stream for info in t5]
    assert len(streams) == len({*streams})
    assert "decoder.layer.1.layer.1.EncDecAttention.q.weight" in streams
    assert {info.stream for info in alone if info.in_layer} < {*streams}
    assert t5.num_layers == 4


def test_two_encoders_are_both_found():
    small = {**SIZES, "type_vocab_size": 2}
    config = T.EncoderDecoderConfig.from_encoder_decoder_configs(
        T.BertConfig(**small), T.BertConfig(**small, is_decoder=True, add_cross_attention=True)
    )
    index = ParamIndex(T.EncoderDecoderModel(config).named_parameters())
    assert [stack.prefix for stack in index.stacks] == ["encoder.encoder.layer", "decoder.bert.encoder.layer"]
    assert index["decoder.bert.encoder.layer.1.output.dense.bias"].path == "decoder.layer.1.output.dense.bias"
    assert index["decoder.cls.predictions.transform.dense.weight"].role == Role.HEAD
    assert index["encoder.pooler.dense.weight"].role == Role.POOLER


def named(*names):
    """Square matrices, but vectors where a name ends in bias or norm.weight."""
    return [
        (n, nn.Parameter(torch.zeros(3) if re.search(r"bias$|norm\.weight$", n) else torch.zeros(3, 3))) for n in names
    ]


def test_the_stack_with_the_most_entries_counts_and_not_every_list_is_one():
    tower = [f"tower.blocks.{i}.mlp.weight" for i in range(5)]
    experts = [f"experts.{i}.{j}.weight" for i in range(2) for j in ("up", "down")]
    assert [s.prefix for s in ParamIndex(named(*tower, *experts)).stacks] == ["tower.blocks"]
    sequence = ["0.words.weight", "1.mlp.weight", "1.norm.weight", "2.mlp.weight", "2.norm.weight", "3.out.weight"]
    index = ParamIndex(named(*sequence))
    assert {i.name: i.layer for i in index} == dict(zip(sequence, [None, 1, 1, 2, 2, None], strict=True))
    mixture = [f"model.layers.{i}.experts.{j}.up.weight" for i in range(2) for j in range(4)]
    assert [s.prefix for s in ParamIndex(named("model.embed.weight", *mixture)).stacks] == ["model.layers"]


def test_a_list_of_networks_is_no_stack_but_layers_may_have_tables_of_their_own():
    networks = [f"models.{i}.{n}" for i in range(2) for n in ("embed.weight", "h.0.mlp.weight", "h.1.mlp.weight")]
    index = ParamIndex(named(*networks))
    assert [stack.prefix for stack in index.stacks] == ["models.0.h", "models.1.h"]
    assert {i.role for i in index if "embed" in i.name} == {Role.EMBEDDINGS}
    tables = [f"layers.{i}.{n}.weight" for i in range(2) for n in ("rel_attn_embed", "mlp")]
    assert [i.layer for i in ParamIndex(named("embed.weight", *tables))] == [None, 0, 0, 1, 1]


def test_norms_are_found_by_their_shape_and_by_name_where_a_bias_is_alone():
    index = ParamIndex(
        named("h.0.a.q.weight", "h.0.a.q.bias", "h.0.bn.norm.weight", "h.0.bn.norm.bias", "h.0.ln_2.bias")
    )
    assert [info.kind for info in index] == [Kind.WEIGHT, Kind.BIAS, *[Kind.LAYER_NORM] * 3]


@pytest.mark.parametrize("layers", [(8, 8, 2), (8, 8, 8, 2)])
def test_where_nothing_repeats_the_fix_is_named(layers):
    mlp = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(layers)))
    with pytest.raises(ValueError, match=r"No layers among the parameters: prefixes found: .*perturb= of PATS"):
        ParamIndex(mlp.named_parameters())
    index = ParamIndex(mlp.named_parameters(), needs_layers=False)
    assert (index.num_layers, index.stacks) == (0, [])
    assert {info.role for info in index} == {Role.ENCODER}
