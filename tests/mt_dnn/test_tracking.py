"""TensorBoard events of a run that was killed and started again."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mt_dnn.results import RunDirectory
from mt_dnn.tracking import Tracker


@pytest.mark.parametrize("checkpoint", [0, 2], ids=["from the start", "from a checkpoint"])
def test_tensorboard_shows_every_step_once_after_a_kill(tmp_path, checkpoint):
    directory = RunDirectory(tmp_path)
    for first, last, loss in ((0, 4, 1.0), (checkpoint, 3, 2.0)):
        tracker = Tracker(directory, tensorboard=True)
        tracker.start(0, first)
        for step in range(first + 1, last + 1):
            tracker.log({"step": step, "epoch": 1, "loss": loss})
        tracker.close()
    events = EventAccumulator(str(directory.tensorboard)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [
        (step, 1.0 if step <= checkpoint else 2.0) for step in (1, 2, 3)
    ]
