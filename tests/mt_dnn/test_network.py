import pytest
import torch

from data_utils.errors import SettingError
from data_utils.task_def import load_task_defs
from mt_dnn.data import open_datasets
from mt_dnn.encoder.batch import pack, pad
from mt_dnn.encoder.model import load_encoder
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.network import Network


@pytest.fixture
def data(tiny_run):
    return open_datasets(tiny_run())


@pytest.fixture
def make(tiny_encoder, data):
    def network(seed=0, **changes):
        encoder = load_encoder(resolve_encoder(str(tiny_encoder)), hidden_dropout=0.1, attention_dropout=0.1)
        settings = {"head_dropout": [0.1], "pooler_activation": "tanh", **changes}
        return Network(encoder, [data.task_def], generator=torch.Generator().manual_seed(seed), **settings)

    return network


def test_logits_are_the_formula(make, data):
    network = make().eval()
    batch = pack(data.dev["toy_dev"], [3, 0, 7])
    hidden = network.encoder(batch)
    first = torch.stack([hidden[start] for start in batch.cu_seqlens[:-1]])  # (B, D)
    pooled = torch.tanh(first @ network.pooler.dense.weight.T + network.pooler.dense.bias)
    head = network.heads["toy"][1]
    torch.testing.assert_close(network(batch), pooled @ head.weight.T + head.bias)


def test_logits_equal_transformers_classifier_with_copied_weights(make, data, tiny_encoder):
    from transformers import BertForSequenceClassification

    network = make().eval()
    theirs = BertForSequenceClassification.from_pretrained(tiny_encoder, num_labels=2).eval()
    theirs.bert.pooler.dense.load_state_dict(network.pooler.dense.state_dict())
    theirs.classifier.load_state_dict(network.heads["toy"][1].state_dict())
    rows = [0, 5, 9, 2]
    padded = pad(data.dev["toy_dev"], rows, data.pad_id)
    expected = theirs(padded.input_ids, padded.attention_mask).logits
    got = network(pack(data.dev["toy_dev"], rows))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_head_is_its_own_stream(make):
    torch.manual_seed(1)
    one = make(seed=4)
    torch.manual_seed(2)
    two = make(seed=4)
    other = make(seed=5)
    assert torch.equal(one.pooler.dense.weight, two.pooler.dense.weight)
    assert torch.equal(one.heads["toy"][1].weight, two.heads["toy"][1].weight)
    assert not torch.equal(one.pooler.dense.weight, other.pooler.dense.weight)
    assert one.pooler.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert one.pooler.dense.bias.abs().sum() == 0


def test_a_linear_pooler_has_no_activation(make, data):
    batch = pack(data.dev["toy_dev"], [0])
    assert not torch.allclose(make().eval()(batch), make(pooler_activation="linear").eval()(batch), atol=1e-9)
    with pytest.raises(SettingError, match="pooler_actf: 'relu'"):
        make(pooler_activation="relu")


def test_regression_has_one_output(tiny_encoder, tiny_task, data):
    task = load_task_defs(tiny_task / "task_def.yml")["toyscore"]
    encoder = load_encoder(resolve_encoder(str(tiny_encoder)), hidden_dropout=0.0, attention_dropout=0.0)
    network = Network(encoder, [task], [0.0], "tanh", torch.Generator().manual_seed(0))
    assert network(pack(data.dev["toy_dev"], [0, 1])).shape == (2, 1)
