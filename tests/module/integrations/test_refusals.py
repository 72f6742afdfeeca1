"""What MethodTrainer refuses, in one line and before a step."""

import pytest
import torch
from transformers import TrainingArguments

from module.integrations.method_settings import method_settings
from module.integrations.transformers import MethodTrainer
from module.pats_rule import PATSRule
from tests.module.integrations.models import arguments, collate, make, rows, trainer

BERT = "BertForSequenceClassification"


def refused(text, call):
    with pytest.raises(ValueError, match=text) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant=False, the default, is needed"),
        ({"activation_checkpointing_kwargs": {"context_fn": print}}, "a context_fn of yours.* leave it out"),
        ({"activation_checkpointing": True, "torch_compile": True}, "torch_compile and activation checkpointing"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"neftune_noise_alpha": 5.0}, "use the method neftune"),
        ({"optim": "adafactor"}, "optim is .*the method builds the optimizer"),
    ],
)
def test_arguments_under_which_no_method_is_right(tmp_path, args, text):
    refused(text, lambda: trainer(tmp_path, "vanilla", make(BERT), args=args))


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"optimizers": (torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), None)}, "optimizers is given"),
        ({"compute_loss_func": lambda *_: 0}, "compute_loss_func is given"),
        ({"task": "translation"}, "'translation' is not a valid Task"),
    ],
)
def test_what_trainer_takes_and_a_method_cannot(tmp_path, named, text):
    refused(text, lambda: trainer(tmp_path, "vanilla", make(BERT), **named))


def test_draws_that_a_model_cannot_repeat(tmp_path):
    model = make(BERT)
    model.activation_checkpointing_enable({"use_reentrant": True})
    refused("use_reentrant=False, the default, is needed", trainer(tmp_path, "rdrop", model).train)


@pytest.mark.parametrize("asked", [True, False])
def test_a_pass_at_weights_that_are_gone(tmp_path, asked):
    model = make(BERT)
    if not asked:
        model.activation_checkpointing_enable()
    made = {"args": {"activation_checkpointing": asked}, "smart": {"weight_step": 0.01}}
    refused(r"activation checkpointing is on, .*smart\.weight_step", lambda: trainer(tmp_path, "smart", model, **made))


def test_a_loss_of_ones_own(tmp_path):
    class Own(MethodTrainer):
        def compute_loss(self, *arguments, **named):
            raise AssertionError

    refused("compute_loss", lambda: Own("sam", model=make(BERT), args=arguments(tmp_path), train_dataset=rows()))

    class Optimizing(MethodTrainer):
        def create_optimizer(self, model=None):
            raise AssertionError

    refused("create_optimizer", lambda: Optimizing("sam", model=make(BERT), args=arguments(tmp_path)))

    class Focal(type(make(BERT))):
        def forward(self, input_ids, attention_mask=None, labels=None):
            outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            if labels is not None:
                outputs["loss"] = outputs["logits"].square().sum()
            return outputs

    made = trainer(tmp_path, "sam", Focal(make(BERT).config), task="classification")
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    refused("the model's own loss of the first batch is", made.train)
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


def test_tasks_and_models(tmp_path):
    refused(
        "whose task is unknown: give task='classification'", lambda: trainer(tmp_path, "vanilla", make("BertModel"))
    )
    several = make(BERT, problem_type="multi_label_classification", num_labels=3)
    refused("multi_label_classification with 3 labels", lambda: trainer(tmp_path, "vanilla", several))
    vision = make("ViTForImageClassification", image_size=8, patch_size=4)
    refused("has no word embeddings", lambda: trainer(tmp_path, "smart", vision))
    refused("has no word embeddings", trainer(tmp_path, "neftune", vision).train)
    spans = make("BertForQuestionAnswering")
    refused("whose task is unknown: .* methods know no other", lambda: trainer(tmp_path, "vanilla", spans))
    refused(
        "labels of BertForQuestionAnswering are start_positions, end_positions",
        lambda: trainer(tmp_path, "vanilla", spans, task="classification"),
    )
    smoothed = {"label_smoothing_factor": 0.1}
    refused("label_smoothing_factor is for classes", lambda: trainer(tmp_path, "sam", make(BERT, num_labels=1),
                                                                    args=smoothed))  # fmt: skip
    gpt = make("GPT2LMHeadModel")
    refused("mixout finds no nn.Linear", trainer(tmp_path, "mixout", gpt, data=rows(per_token=True)).train)


def test_one_training_each(tmp_path):
    made = trainer(tmp_path, "noisytune", make(BERT), args={"save_strategy": "steps", "save_steps": 3})
    made.train()
    refused("train\\(\\) was called before", made.train)
    again = trainer(tmp_path, "sam", make(BERT))
    refused("is of the method noisytune", lambda: again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3")))
    (tmp_path / "checkpoint-3" / "method.pt").unlink()
    again = trainer(tmp_path, "noisytune", make(BERT))
    refused(
        "no checkpoint of MethodTrainer", lambda: again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    )


def test_a_checkpoint_of_other_settings(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, "ema+pats", make(BERT), args=saving).train()
    folder = str(tmp_path / "checkpoint-3")
    for settings, named, text in (
        ({"ema.decay": 0.5}, {}, "is of ema.decay=0.995, this run of 0.5: use the same, or start anew"),
        ({"pats.noise_scale": 0.5}, {}, "is of pats.noise_scale=0.005, this run of 0.5"),
        ({}, {"optimizer": "adamax"}, "is of the optimizer adamw, this run of adamax mtdnn"),
    ):
        made = trainer(tmp_path, "ema+pats", make(BERT), settings, **named)
        before = {name: value.clone() for name, value in made.model.state_dict().items()}
        refused(text, lambda made=made: made.train(resume_from_checkpoint=folder))
        assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    state = torch.load(tmp_path / "checkpoint-3" / "method.pt", weights_only=True)  # as earlier versions wrote it
    state |= {"name": state.pop("choice")["method"], "random": state["random"][0]}
    torch.save(state, tmp_path / "checkpoint-3" / "method.pt")
    trainer(tmp_path, "ema+pats", make(BERT)).train(resume_from_checkpoint=folder)
    file = tmp_path / "checkpoint-3" / "method.pt"
    for content in (b"", file.read_bytes()[:300]):
        file.write_bytes(content)
        refused(
            "method.pt is damaged: resume from an earlier",
            lambda: trainer(tmp_path, "ema+pats", make(BERT)).train(resume_from_checkpoint=folder),
        )


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (0.5, "labels have the type torch.float32: classification with num_labels=2 needs whole numbers from 0 to 1"),
        (2, "labels hold 2: classification with num_labels=2 needs whole numbers"),
        (-100, "labels hold -100: classification"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, labels, text):
    refused(text, trainer(tmp_path, "rdrop", make(BERT), data=[{**row, "labels": labels} for row in rows()]).train)
    if labels == 2:  # in a later batch, and at a labelled token
        late = [*rows(16), *({**row, "labels": labels} for row in rows(4))]
        refused(text, trainer(tmp_path, "rdrop", make(BERT), data=late).train)
        tokens = [{**row, "labels": [-100, *row["labels"][1:]]} for row in rows(per_token=True)]
        trainer(tmp_path, "rdrop", make("BertForTokenClassification"), data=tokens).train()
        tokens[3]["labels"][1] = labels
        refused(
            "labels hold 2: token", trainer(tmp_path, "rdrop", make("BertForTokenClassification"), data=tokens).train
        )


@pytest.mark.parametrize("method", [None, ["noisytune", "pats"]])
def test_a_method_that_is_no_name(tmp_path, method):
    refused("method is .*names joined with \\+ are needed", lambda: trainer(tmp_path, method, make(BERT)))


def test_arguments_of_nobody(tmp_path):
    refused("noise_scale is no argument of Trainer", lambda: trainer(tmp_path, "pats", make(BERT), noise_scale=1.0))
    refused("sam is no argument of Trainer", lambda: trainer(tmp_path, "pats", make(BERT), sam={"rho": 0.1}))
    refused("settings is 0.5: a mapping is needed", lambda: trainer(tmp_path, "pats", make(BERT), 0.5))


def test_settings():
    assert method_settings(["pats"], {"pats.noise_scale": 0.1}) == {"pats": PATSRule(noise_scale=0.1)}
    assert method_settings(["pats"], {"pats": {"noise_scale": 0.1}}) == {"pats": PATSRule(noise_scale=0.1)}
    assert method_settings(["pats", "sam"], {"pats": PATSRule(noise_scale=0.1)}) == {"pats": PATSRule(noise_scale=0.1)}
    for given, text in (
        ({1: 0.1}, "1 is no setting of this method"),
        ({"noise_scale": 0.1}, "noise_scale is no setting of this method .did you mean pats.noise_scale"),
        ({"pats.noise": 0.1}, "pats.noise is no setting of this method"),
        ({"sam.rho": 0.1}, "sam.rho is no setting of this method"),
        ({"pats": 5}, "pats is 5: a mapping of its settings, or PATSRule"),
        ({"pats.noise_scale": -1.0}, "Invalid noise_scale: -1.0"),
        ({"pats.noise_scale": "much"}, "Invalid noise_scale: 'much'"),
        ({"pats.perturb_biases": "no"}, "pats.perturb_biases is 'no': True or False is needed"),
        ({"pats": {"noise_scale": 0.1}, "pats.noise_scale": 0.1}, "pats.noise_scale is given twice"),
    ):
        refused(text, lambda given=given: method_settings(["pats"], given))


def test_keywords_are_settings_too(tmp_path):
    made = trainer(tmp_path, "pats", make(BERT), pats={"noise_scale": 0.25})
    assert made.method.methods[0].settings.noise_scale == 0.25
    refused("given twice", lambda: trainer(tmp_path, "pats", make(BERT), {"pats": {}}, pats={"noise_scale": 0.25}))
    refused("no form on 'adamw'", lambda: trainer(tmp_path, "sage", make(BERT)))
    assert isinstance(made.args, TrainingArguments)
    assert made.data_collator is collate
