import dataclasses

from mt_dnn.config import RunConfig
from mt_dnn.other_names import OTHER_NAMES, meant

OURS = {field.name for field in dataclasses.fields(RunConfig)}


def test_every_name_stands_for_a_setting_and_is_none_itself():
    assert set(OTHER_NAMES.values()) <= OURS
    assert not OTHER_NAMES.keys() & OURS


def test_an_unknown_name_is_answered_with_ours_or_with_the_nearest():
    assert meant("lr_scheduler_type", OURS) == " (here it is schedule)"
    assert meant("epohcs", OURS) == " (did you mean epochs?)"
    assert meant("zzz", OURS) == ""
    assert meant("optim", ["betas"], "pats.") == "", "a method's settings have names of their own"
