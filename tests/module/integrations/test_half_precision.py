"""fp16: the loss is scaled, the methods' steps are not; accelerate leaves fp16 out on a CPU, it is switched on here."""

import io
from contextlib import redirect_stdout

import pytest
import torch

from module.integrations.transformers import MethodTrainer
from tests.module.integrations.models import arguments, collate, make, rows
from tests.module.integrations.test_trainer_features import BERT, KINDS, weights

CAPPED = {"pats.max_ratio": 10.0}  # the ratio of a sensitivity near 0 is rounding


def trained(folder, method, settings, scale):
    class Half(MethodTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.accelerator.native_amp = True
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    settings = {**settings, **(CAPPED if "pats" in method else {})}
    args = arguments(folder, fp16=True, max_steps=3, adam_epsilon=1e-3)
    made = Half(method, settings, model=make(BERT), args=args, train_dataset=rows(), data_collator=collate)
    with redirect_stdout(io.StringIO()):
        made.train()
    return made


@pytest.mark.parametrize(("method", "settings"), [KINDS[i] for i in (0, 1, 3, 4, 10)])
def test_the_scale_of_the_loss_is_not_the_methods(tmp_path, method, settings):
    one, other = (weights(trained(tmp_path, method, settings, scale).model) for scale in (256.0, 4096.0))
    start = weights(make(BERT))
    for name, value in one.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(other[name], value, rtol=0.0, atol=2e-3)  # the steps are of 1e-2
    assert any(float((value - start[name]).abs().max()) > 1e-2 for name, value in one.items())


@pytest.mark.parametrize(("method", "settings"), [KINDS[i] for i in (0, 1, 3, 4)])
def test_steps_that_overflow_are_left_out(tmp_path, method, settings):
    done = trained(tmp_path, method, settings, 2.0**40)
    assert done.accelerator.scaler.get_scale() == 2.0**37
    if "pats" in method:  # whose NoisyTune was before
        return
    before, after = weights(make(BERT)), weights(done.model)
    assert all(torch.equal(after[name], value) for name, value in before.items())
