"""What a method's hooks may ask of a run."""

import pytest
import torch

from module.resolution import LostNoise
from tests.module.models import make_context, make_parameters


def test_noise_is_compared_with_a_tensor_at_the_first_call_alone():
    context, large, looks = make_context(make_parameters().items()), torch.full((3,), 1e3), []

    def sizes():
        looks.append(None)
        return [1.0, 0.0]

    for _ in range(3):
        context.check_noise("a", large, sizes)
    assert len(looks) == 1, "sizes wait for a device"
    for _ in range(2):  # a refusal is none that is forgotten
        with pytest.raises(LostNoise, match=r"b: noise of 1\.0e-09 is lost"):
            context.check_noise("b", large, lambda: [1.0, 1e-9])


def test_gradients_are_complete_in_one_process():
    assert make_context(make_parameters().items()).complete_gradients() is None
