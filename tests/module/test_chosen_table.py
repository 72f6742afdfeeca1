"""The line and the table that say which tensors were chosen."""

import logging

import pytest
import torch
from torch import nn

from module import PATS, Adamax, PATSAdamax, SAGEAdamax
from tests.module.models import make_parameters, tiny_bert
from tests.module.test_families import FAMILIES


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("module.")]


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO)
    return lambda: lines(caplog)


def test_one_line_says_what_was_chosen(logged):
    model = tiny_bert(hidden_size=96, intermediate_size=256)
    optimizer = PATSAdamax(model, 1e-3)
    # Per layer: four matrices of 96 x 96 and two of 96 x 256, and their biases.
    entries = 2 * (4 * 96 * 97 + 256 * 97 + 96 * 257)
    assert logged() == [f"PATS perturbs 24 tensors ({entries / 1e6:.1f} M entries) in 2 layers under encoder.layer"]
    PATS(model).attach(Adamax(model, 1e-3))
    SAGEAdamax(model, 1e-3)
    assert logged()[1:] == [logged()[0], logged()[0].replace("PATS perturbs", "SAGE scales")]
    assert Adamax(model, 1e-3).summary().endswith("Adamax perturbs 0 tensors (0 entries)")
    assert len(logged()) == 3
    PATSAdamax(model, 1e-3, noise_scale=0.0)
    assert logged()[3] == logged()[0].replace("perturbs", "watches")
    assert optimizer.summary().splitlines()[-1] == logged()[0]


def test_second_stacks_frozen_layers_and_own_choices(logged):
    model = FAMILIES["t5"][0]()
    PATSAdamax(model, 1e-3)
    assert logged()[-1].endswith("in 4 layers under encoder.block and decoder.block")
    model = tiny_bert()
    model.encoder.layer[0].requires_grad_(False)
    PATSAdamax(model, 1e-3)
    assert " 12 tensors " in logged()[-1]
    assert logged()[-1].endswith("in 1 layer under encoder.layer")
    PATS(model, perturb=["pooler.*", "*.query.weight"], noise_scale=0.0).attach(Adamax(model, 1e-3))
    assert logged()[-1] == (
        "PATS watches 3 tensors (2080 entries) in 1 layer under encoder.layer, 2 of them outside of layers"
    )
    PATSAdamax(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), 1e-3, perturb="*")
    assert logged()[-1] == "PATS perturbs 4 tensors (17 entries) outside of layers"
    PATSAdamax(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2), 1e-3)
    assert logged()[-1] == "PATS perturbs 16 tensors (864 entries) in 2 layers under layers"


def test_the_table_has_a_row_per_name_and_counts_everything():
    parameters = make_parameters()
    parameters["classifier.bias"].requires_grad_(False)
    optimizer = PATSAdamax(parameters.items(), 1e-3, perturb=["*.query.*"])
    pats = PATS(parameters.items(), perturb=["*.query.*"]).attach(torch.optim.SGD(parameters.values(), 1e-3))
    head, *rows, line = optimizer.summary().splitlines()
    assert pats.summary() == optimizer.summary()
    assert head.split() == ["perturbs", "tensors", "entries", "role", "kind", "name"]
    assert line == "PATS perturbs 2 tensors (1056 entries) in 1 layer under bert.encoder.layer"
    found = [row.split() for row in rows]
    assert ["yes", "1", "1023", "encoder", "weight", "bert.encoder.layer.*.attention.self.query.weight"] in found
    assert ["no", "1", "640", "embeddings", "weight", "bert.embeddings.word_embeddings.weight"] in found
    assert ["frozen", "1", "1", "head", "bias", "classifier.bias"] in found
    assert sum(int(row[1]) for row in found) == len(parameters)
    assert sum(int(row[2]) for row in found) == sum(p.numel() for p in parameters.values())


def test_layers_are_counted_in_one_row_and_a_flag_changes_it():
    model = tiny_bert()
    optimizer = PATSAdamax(model, 1e-3)
    row = ["yes", "2", "2048", "encoder", "weight", "encoder.layer.*.attention.self.query.weight"]
    assert row in [line.split() for line in optimizer.summary().splitlines()]
    optimizer.param_groups[0]["perturb"] = False
    assert ["no", *row[1:]] in [line.split() for line in optimizer.summary().splitlines()]
