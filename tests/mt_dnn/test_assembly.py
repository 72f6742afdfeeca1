"""What a run is put together from: which gradients are row-sparse, where dropout draws."""

import pytest
import torch
from safetensors.torch import load_file

from data_utils.task_def import load_task_defs
from module.method import FineTuningMethod
from module.methods import METHODS
from module.row_sparse import RowSparseEmbedding
from mt_dnn.assembly import assemble
from mt_dnn.encoder.model import Encoder
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.precision import resolve_precision
from mt_dnn.run import run
from mt_dnn.run_id import run_dir

CPU = torch.device("cpu")


def build(config):
    task_def = load_task_defs(config.task_def)[config.task]
    return assemble(
        config, [task_def], resolve_encoder(config.init_checkpoint), CPU, resolve_precision("fp32", CPU), total_steps=10
    )


class Looking(FineTuningMethod):
    name = "looking"

    def after_backward(self, context):
        assert all(p.grad.layout == torch.strided for p in context.network.parameters())


@pytest.mark.parametrize(
    ("changes", "sparse"),
    [
        ({"method": "vanilla"}, True),
        ({"method": "pats"}, True),
        ({"method": "noisytune+sage"}, True),
        ({"method": "freelb"}, True),
        ({"method": "smart"}, True),
        ({"method": "sam"}, True),
        ({"method": "pgd"}, True),
        ({"method": "mixout"}, True),
        ({"method": "pac_tuning"}, False),
        ({"method": "vanilla", "optimizer": "adamw"}, False),
        ({"method": "looking"}, False),
        ({"method": "looking+pats"}, False),
    ],
)
def test_word_embeddings_are_row_sparse_where_everything_can_take_it(tiny_run, monkeypatch, changes, sparse):
    monkeypatch.setitem(METHODS._classes, "looking", Looking)
    parts = build(tiny_run(**changes))
    embeddings = parts.network.encoder.model.get_input_embeddings()
    assert isinstance(embeddings, RowSparseEmbedding) == sparse
    trained = any(p is embeddings.weight for g in parts.optimizer.param_groups for p in g["params"])
    assert trained == embeddings.weight.requires_grad == (changes["method"] != "pac_tuning")


@pytest.mark.parametrize("method", ["vanilla", "sage", "pats", "smart", "freelb", "rdrop", "r3f", "sam", "pgd"])
@pytest.mark.parametrize("grad_accumulation_step", [1, 3])
def test_row_sparse_runs_equal_dense_ones(tiny_run, tmp_path, monkeypatch, method, grad_accumulation_step):
    def weights(name):
        config = tiny_run(
            method=method,
            epochs=2,
            batch_size=8,
            grad_accumulation_step=grad_accumulation_step,
            save="last",
            output_dir=tmp_path / name,
        )
        run(config)
        return load_file(run_dir(config) / "checkpoints" / "last" / "model.safetensors")

    sparse = weights("sparse")
    monkeypatch.setattr(Encoder, "use_row_sparse_gradients", lambda self: None)
    dense = weights("dense")
    for name, expected in dense.items():
        # The norm that clipping divides by is summed in another order.
        torch.testing.assert_close(sparse[name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_dropout_draws_from_its_stream_alone(tiny_run):
    parts = build(tiny_run(bert_dropout_p=0.1))
    before = torch.get_rng_state()
    from mt_dnn.data import open_datasets

    data = open_datasets(tiny_run())
    batch = parts.network.encoder.batch(data.train, torch.arange(8).numpy(), CPU)
    parts.network.train()
    first = parts.network(batch)
    assert parts.streams.dropout.position > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(parts.network(batch), first)
    parts.streams.dropout.position = 0
    assert torch.equal(parts.network(batch), first)


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one(tiny_run, tmp_path, monkeypatch):
    """Traced, but not translated: the translation's own rounding differs, and takes a minute."""

    def weights(name, **changes):
        config = tiny_run(epochs=2, save="last", output_dir=tmp_path / name, **changes)
        assert run(config).error is None
        return load_file(run_dir(config) / "checkpoints" / "last" / "model.safetensors")

    plain = weights("plain")
    compiled, compile_ = [], torch.compile

    def traced(*arguments, **options):
        compiled.append(options)
        return compile_(*arguments, **options, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    same = weights("compiled", compile=True)
    assert compiled == [{"dynamic": True}]
    assert same.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(same[name], plain[name], rtol=1e-5, atol=1e-7)
