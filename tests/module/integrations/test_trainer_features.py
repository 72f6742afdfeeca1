"""Trainer's own features under methods of each kind: on weights, passes, embeddings, optimizer, averages."""

import copy
import io
import json
from contextlib import redirect_stdout
from importlib.util import find_spec

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from tests.module.integrations.models import arguments, collate, make, rows, trainer

BERT = "BertForSequenceClassification"
PATS = {"pats.noise_scale": 0.1, "pats.threshold_mode": "none"}
# Name of a method and its settings; hook in question.
KINDS = [
    ("noisytune+pats", PATS),  # weights once, optimizer
    ("rdrop", {}),  # a second pass
    ("smart", {}),  # embeddings, a teacher
    ("sam", {"sam.rho": 0.1}),  # gradients at other weights
    ("freelb", {"freelb.ascent_steps": 2}),
    ("ema", {"ema.decay": 0.8}),
    ("child_tuning", {}),  # masks from a first pass
    ("recadam", {"recadam.gamma": 10.0, "recadam.t0": 3}),
    ("mixout", {}),
    ("lora", {}),
    ("pac_tuning", {"pac_tuning.k_levels": 2, "pac_tuning.k_models": 1}),
    ("r3f", {"r3f": {"spectral_norm": True}}),
    ("hype", {}),
    ("neftune", {}),
]
if find_spec("peft") is None:  # requirements-lora.txt
    KINDS = [kind for kind in KINDS if kind[0] != "lora"]
each = pytest.mark.parametrize(("method", "settings"), KINDS, ids=[name for name, _ in KINDS])
some = pytest.mark.parametrize(("method", "settings"), [KINDS[i] for i in (0, 1, 3, 4, 5)])


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def trained(folder, method, settings, *, resume=None, seed=0, **named):
    with redirect_stdout(io.StringIO()):
        made = trainer(folder, method, make(BERT, seed), settings, **named)
        made.train(resume_from_checkpoint=resume)
    return made


def assert_equal(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def test_vanilla_is_trainer_itself(tmp_path):
    """Without accumulation, where Trainer adds up the micro-batches' means; no dropout, whose stream is the run's."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    args = {"optim": "adamw_torch", "warmup_steps": 2, "max_grad_norm": 0.5, "gradient_accumulation_steps": 1}
    ours, theirs = make(BERT, **still), make(BERT, **still)
    with redirect_stdout(io.StringIO()):
        trainer(tmp_path, "vanilla", ours, args=args).train()
        Trainer(theirs, arguments(tmp_path, **args), train_dataset=rows(), data_collator=collate).train()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@each
def test_resumed_training_ends_as_the_uninterrupted_one_bit_for_bit(tmp_path, method, settings):
    args = {"max_steps": 7, "save_strategy": "steps", "save_steps": 2}  # three steps an epoch; in the middle of one
    whole = trained(tmp_path / "whole", method, settings, args=args)
    again = trained(tmp_path / "again", method, settings, args=args, resume=str(tmp_path / "whole" / "checkpoint-4"))
    assert_equal(weights(again.model), weights(whole.model))
    for one, other in zip(again.optimizer.state_dict()["state"].values(),
                          whole.optimizer.state_dict()["state"].values(), strict=True):  # fmt: skip
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in other)


@some
def test_accumulated_micro_batches_are_the_large_batch(tmp_path, method, settings):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    found = []
    for size, steps in ((8, 1), (4, 2)):
        model = make(BERT, **still)
        args = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        settings = {**settings, **({"freelb.init_magnitude": 0.0} if method == "freelb" else {})}
        with redirect_stdout(io.StringIO()):
            trainer(tmp_path, method, model, settings, args={**args, "optim": "adamw_torch", "adam_epsilon": 1e-3},
                    optimizer="adamw").train()  # fmt: skip
        found.append(weights(model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=2e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@some
def test_bf16_trains_float32_weights(tmp_path, method, settings):
    done = trained(tmp_path, method, settings, args={"bf16": True})
    plain = trained(tmp_path, method, settings)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in done.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(done.model.parameters(), plain.model.parameters(), strict=True))


@some
def test_clipping_and_schedules_reach_the_methods_step(tmp_path, method, settings):
    seen = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **_):
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            seen.append((float(torch.nn.utils.get_total_norm(gradients)), optimizer.param_groups[0]["lr"]))

    args = {"max_grad_norm": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4}
    trained(tmp_path, method, settings, args=args, callbacks=[Look()])
    assert [norm for norm, _ in seen] == pytest.approx([1e-3] * 6, rel=1e-2)
    assert [rate for _, rate in seen] == pytest.approx([0.0, 2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2])


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("method", ["ema", "swa", "ema+rdrop", "noisytune+pats+swa"])
def test_averages_are_what_is_evaluated_saved_and_left(tmp_path, method, best):
    settings = {"ema.decay": 0.5} if "ema" in method else {"swa.start_epoch": 0}
    args = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
        "load_best_model_at_end": best, "metric_for_best_model": "eval_loss",
    }  # fmt: skip
    done = trained(tmp_path, method, settings, args=args, eval_dataset=rows(seed=1))
    losses = {line["step"]: line["eval_loss"] for line in done.state.log_history if "eval_loss" in line}
    step = min(losses, key=losses.get) if best else max(losses)
    saved = type(done.model).from_pretrained(tmp_path / f"checkpoint-{step}")
    assert_equal(weights(done.model), weights(saved))
    with redirect_stdout(io.StringIO()):
        assert done.evaluate()["eval_loss"] == pytest.approx(losses[step], rel=1e-5)
    raw = torch.load(tmp_path / "checkpoint-6" / "method.pt", weights_only=True)["trained"]
    assert any(not torch.equal(value, done.model.state_dict()[name]) for name, value in raw.items())
    done.save_model(str(tmp_path / "saved"))
    assert_equal(weights(type(done.model).from_pretrained(tmp_path / "saved")), weights(saved))


@some
def test_the_best_checkpoint_is_what_is_left(tmp_path, method, settings):
    """A callback stops where the score has been worse; the averages of ema are above."""
    args = {
        "max_steps": 8, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "worse",
    }  # fmt: skip
    scores = iter([0.5, 0.75, 0.25, 0.25, 1.0])
    done = trained(
        tmp_path, method, settings, args=args, eval_dataset=rows(seed=1),
        compute_metrics=lambda _: {"worse": next(scores)}, callbacks=[EarlyStoppingCallback(2)],
    )  # fmt: skip
    assert done.state.global_step == 4
    assert_equal(weights(done.model), weights(type(done.model).from_pretrained(tmp_path / "checkpoint-2")))


@some
def test_logs_hold_the_methods_numbers_and_lengths_are_grouped(tmp_path, method, settings):
    args = {"logging_strategy": "steps", "logging_steps": 1, "train_sampling_strategy": "group_by_length"}
    done = trained(tmp_path, method, settings, args=args)
    lines = [line for line in done.state.log_history if "loss" in line]
    assert len(lines) == 6
    assert all(0.0 < line["loss"] < 5.0 for line in lines)
    assert all(("pats/noise_norm" in line) == ("pats" in method) for line in lines), json.dumps(lines)


@some
def test_an_adapted_model_of_peft_trains_its_adapters_alone(tmp_path, method, settings):
    peft = pytest.importorskip("peft")
    if method == "sam":
        settings = {"sam.rho": 0.01}
    model = peft.get_peft_model(
        make(BERT), peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    )
    before = weights(model)
    with redirect_stdout(io.StringIO()):
        trainer(tmp_path, method, model, settings).train()
    names = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("lora_B" in name for name in names)
    frozen = {name for name in names if "lora_" not in name and "classifier" not in name}
    assert not frozen or method.startswith("noisytune")  # which moves the weights before training


def test_the_first_authors_smart_trains_and_a_definitions_adv_loss_is_refused(tmp_path):
    authors = {"divergence": "NsSymKlCriterion", "noise_place": "embeddings", "teacher_dropout": True}
    made = trained(tmp_path, "smart", {"smart": authors}, args={"max_steps": 3})
    paper = trained(tmp_path, "smart", {}, args={"max_steps": 3})
    assert any(not torch.equal(value, weights(paper.model)[name]) for name, value in weights(made.model).items())
    assert not made.model.bert.encoder.layer[0]._forward_pre_hooks
    with pytest.raises(ValueError, match=r"smart\.divergence is task, but classification has no adv_loss"):
        trained(tmp_path, "smart", {"smart.divergence": "task"}, args={"max_steps": 1})


ONE_WIDTH, SEVERAL = (6, 7), (4, 10)  # for several, torch compiles several times: 5 to 20 s each
COMPILED = [(method, ONE_WIDTH) for method in ("sam", "neftune")] + [
    pytest.param(method, SEVERAL, marks=pytest.mark.slow) for method in ("sam", "neftune", "rdrop", "smart", "hype")
]


@pytest.mark.parametrize(("method", "lengths"), COMPILED)
def test_a_compiled_model_trains_as_the_plain_one(tmp_path, method, lengths):
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 3}
    one, other = (
        trained(tmp_path, method, {}, args=args, data=rows(lengths=lengths)) for args in (compiled, {"max_steps": 3})
    )
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(one.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "settings"), [*(KINDS[i] for i in (0, 1, 3, 4, 8)), ("hype+rdrop", {})])
def test_activations_computed_anew_change_no_bit(tmp_path, method, settings):
    """Dropout and Mixout draw within the layers, whose second pass must draw the same."""
    settings = {**settings, **({"hype.keep_dropout": True} if "hype" in method else {})}
    found = []
    for anew in (False, True):
        model, passes = make(BERT), []
        model.bert.encoder.layer[1].intermediate.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        with redirect_stdout(io.StringIO()):
            trainer(tmp_path, method, model, settings, args={"max_steps": 3, "activation_checkpointing": anew}).train()
        found.append((weights(model), len(passes) - 2))  # two compare the model's own loss
    assert_equal(found[1][0], found[0][0])
    assert found[1][1] == 2 * found[0][1] > 0


def test_a_model_that_computes_its_activations_anew_by_itself(tmp_path):
    plain, model = trained(tmp_path, "rdrop", {}, args={"max_steps": 3}), make(BERT)
    model.activation_checkpointing_enable({"use_reentrant": False})
    with redirect_stdout(io.StringIO()):
        trainer(tmp_path, "rdrop", model, args={"max_steps": 3}).train()
    assert_equal(weights(model), weights(plain.model))


MADE = [*KINDS[8:13], ("no_dropout", {}), ("bitfit", {}), ("smart", {})]


@pytest.mark.parametrize(("method", "settings"), MADE, ids=[name for name, _ in MADE])
def test_the_trained_model_is_a_plain_one_of_its_class(tmp_path, method, settings):
    """What methods build into a model while it trains, its class could not load."""
    batch, found = collate(rows(4)), []

    class Copy(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            found.append(copy.deepcopy(model).eval()(**batch).logits)

    done = trained(tmp_path, method, settings, args={"max_steps": 2}, callbacks=[Copy()])
    assert [type(module) for module in done.model.modules()] == [type(module) for module in make(BERT).modules()]
    assert [module.p for module in done.model.modules() if isinstance(module, torch.nn.Dropout)] == [0.1] * 8
    assert all(parameter.requires_grad for parameter in done.model.parameters())
    done.save_model(str(tmp_path / "saved"))
    loaded, info = type(done.model).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    own, from_file = (model.eval()(**batch).logits for model in (done.model, loaded))
    assert torch.equal(own, from_file)
    torch.testing.assert_close(own, found[-1], rtol=1e-5, atol=1e-6)
    torch.save(done.model, tmp_path / "whole")
    with redirect_stdout(io.StringIO()):
        trainer(tmp_path, "vanilla", done.model, args={"max_steps": 1}).train()
