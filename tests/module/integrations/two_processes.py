"""What each of two processes does: ``two_processes.py FOLDER``; jobs.json there lists trainings, done in a row."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.module.integrations.models import make, rows, trainer


def main() -> None:
    """Do them."""
    folder = Path(sys.argv[1])
    for job in json.loads((folder / "jobs.json").read_text()):
        model = make("BertForSequenceClassification", **job["model"])
        made = trainer(folder / job["name"], job["method"], model, job["settings"], data=rows(job["rows"]),
                       args={"ddp_backend": "gloo", **job["args"]}, eval_dataset=rows(8, seed=1))  # fmt: skip
        made.train(resume_from_checkpoint=job.get("resume"))
        found = {name: value.detach().clone() for name, value in model.state_dict().items()}
        lines = made.state.log_history
        found |= {key: torch.tensor([line[key] for line in lines if key in line]) for key in ("loss", "eval_loss")}
        save_file(found, folder / f"{job['name']}-{made.args.process_index}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
