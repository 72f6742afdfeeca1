"""A reader of train.py is at backward() after few frames in few files."""

import sys
from pathlib import Path

import torch

import train

ROOT = Path(__file__).resolve().parents[2]
OURS = ("train.py", "mt_dnn", "module", "data_utils")


def test_train_py_reaches_backward_in_five_frames_and_three_files(tiny_task, tiny_encoder, tmp_path, monkeypatch):
    backward, chains = torch.Tensor.backward, set()

    def watched(tensor, *arguments, **options):
        chain, frame = [], sys._getframe(1)
        while frame.f_code is not train.main.__code__:
            chain.append(frame)
            frame = frame.f_back
        found = [(Path(f.f_code.co_filename), f.f_code.co_qualname) for f in (frame, *reversed(chain))]
        ours = [(path.relative_to(ROOT), name) for path, name in found if path.is_relative_to(ROOT)]
        chains.add(tuple((path.as_posix(), name) for path, name in ours if path.parts[0] in OURS))
        return backward(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    arguments = [
        "--task_def", str(tiny_task / "task_def.yml"), "--data_dir", str(tiny_task), "--train_datasets", "toy",
        "--init_checkpoint", str(tiny_encoder), "--output_dir", str(tmp_path), "--epochs", "1", "--device", "cpu",
    ]  # fmt: skip
    assert train.main(arguments) == 0
    (frames,) = chains
    assert frames[0] == ("train.py", "main")
    assert len(frames) <= 5, frames
    assert len({file for file, _ in frames}) <= 3, frames
