"""A finished run as a folder of ``transformers``: see ``python -m mt_dnn.trained.export --help``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_utils.atomic import build_dir
from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError, in_one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mt_dnn.trained.load import FinishedRun, TrainedModel

_DESCRIPTION = """\
Write a trained model so that transformers loads it, with the logits that it has here:

  python -m mt_dnn.trained.export runs/cola/all-MiniLM-L6-v2/pats/<run id>/seed=1 exported/cola

  AutoModelForSequenceClassification.from_pretrained("exported/cola")
  pipeline("text-classification", model="exported/cola")

OUT holds configuration, weights, tokenizer, the task's definition, their checksums and a model card (README.md). It
appears whole or not at all. The written files are loaded and compared with the run's network before that. Families
whose classification head is not ours are refused: docs/predict.md. --push uploads OUT to the Hub, or to the server that
HF_ENDPOINT names, with the account of HF_TOKEN or of "hf auth login"; a repository that is missing is made there.
Exit status: 0 done, 2 a setting or file is wrong."""


_SAMPLE = ("It is a film.", "The plot, and the actors, are never quite good: was it 2019?", "", "good " * 40)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 for a wrong setting or file."""
    parser = CommandParser("python -m mt_dnn.trained.export", _DESCRIPTION)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder seed=<seed> of a finished run")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; it must be new or empty")
    parser.add_argument("--epoch", choices=("best", "last"), default="best", help="whose weights [%(default)s]")
    parser.add_argument("--task", help="whose head, of a run with several tasks")
    parser.add_argument("--task_def", type=Path, help="task definitions [the run's]")
    parser.add_argument("--push", metavar="REPO", help="upload OUT to this repository, such as me/cola-pats")
    parser.add_argument("--private", action="store_true", help="make the repository of --push a private one")
    chosen = parser.parse_args(arguments)

    def work() -> None:
        check_target(chosen.out)
        if chosen.push is not None:
            check_repository(chosen.push)
        elif chosen.private:
            raise SettingError("--private is given without --push; name the repository or leave --private out")
        from mt_dnn.trained.load import read_run

        export(read_run(chosen.run_dir, chosen.task_def, chosen.task), chosen.out, chosen.epoch)
        print(chosen.out)
        if chosen.push is not None:
            print(push(chosen.out, chosen.push, chosen.private))

    return status_of(work)


def check_target(out: Path) -> None:
    """Raise SettingError unless a folder is new or empty."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingError(f"{out} is there already; delete it or choose another folder")


def export(run: FinishedRun, out: Path, epoch: str = "best") -> None:
    """Write the folder.

    Args:
        run: from ``mt_dnn.trained.load.read_run``.
        out: new or empty; its parents are made.
        epoch: ``best`` or ``last``.

    Raises:
        SettingError: the run kept no such weights, its encoder's family cannot represent the head, or ``out`` is used.
        OSError: a file cannot be written.
    """
    import yaml
    from safetensors import SafetensorError

    from data_utils.task_def import to_settings
    from mt_dnn.encoder.files import quiet_transformers
    from mt_dnn.encoder.source import resolve_encoder
    from mt_dnn.trained.card import model_card
    from mt_dnn.trained.load import TASK_DEF, load_run, write_sums

    check_target(out)
    with quiet_transformers():
        model = load_run(run, epoch, device="cpu", precision="fp32")
        classifier = sequence_classifier(model, run.config.pooler_actf)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    encoder = resolve_encoder(run.pretrained).folder
    with build_dir(out.absolute()) as scratch:
        try:
            with quiet_transformers():
                write_parts(model, classifier, encoder, scratch)
        except SafetensorError as error:  # its text holds the system's reason, such as a full disk
            raise SettingError(f"cannot write {out}: {in_one_line(error)}") from None
        task = {model.task_def.name: to_settings(model.task_def)}
        (scratch / TASK_DEF).write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
        write_sums(scratch)
        (scratch / "README.md").write_text(model_card(run, model, epoch), encoding="utf-8")
        for file in scratch.iterdir():  # safetensors makes its file readable for its owner alone
            shutil.copymode(scratch / "README.md", file)


def check_repository(name: str) -> None:
    """Refuse a name that no repository of the Hub can have, before there is work to lose.

    Raises:
        SettingError: names the rule.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, and not re-exported

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SettingError(f"--push {name}: {in_one_line(error)}") from None


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload an exported folder in one commit.

    Args:
        folder: from :func:`export`; files of the repository that it has not stay there.
        repository: its name on the Hub, ``me/cola-pats``; one that is missing is made.
        private: whether to make it a private one; an existing one stays as it is.

    Returns:
        The address of the commit.

    Raises:
        SettingError: the server cannot be reached or refuses it; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repository, private=private or None, exist_ok=True)
        return str(api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Export").commit_url)
    except Exception as error:  # of the library and of two more under it, for no account, no network and a refusal
        raise SettingError(
            f"--push {repository}: {in_one_line(error)}; {folder} is whole: log in (hf auth login) or set HF_TOKEN, "
            f"and upload it with: hf upload {repository} {folder}"
        ) from error


def write_parts(model: TrainedModel, classifier: Any, encoder: Path, folder: Path) -> None:
    """Write a classifier and its tokenizer, which is in the folder of the pretrained ``encoder``, and check them.

    Raises:
        SettingError: the written model gives other logits than the network.
    """
    classifier.save_pretrained(folder, max_shard_size="1000GB")
    _write_tokenizer(model, encoder, folder)
    check_folder(model, folder)


def sequence_classifier(model: TrainedModel, pooler_actf: str) -> Any:
    """Build the transformers model for sequence classification with the weights and logits of a network.

    Raises:
        SettingError: the family's own head is another one.
    """
    import copy

    import torch
    from transformers import AutoModelForSequenceClassification

    from mt_dnn.trained.head_layout import find_layout

    task, encoder = model.task_def, model.network.encoder
    config: Any = copy.deepcopy(encoder.model.config)
    layout = find_layout(config.model_type, pooler_actf)
    if layout.activation is not None:
        setattr(config, layout.activation, pooler_actf)
    regression = task.n_class == 1
    config.problem_type = "regression" if regression else "single_label_classification"
    config.id2label = dict(enumerate(task.label_names))
    config.label2id = {name: i for i, name in enumerate(task.label_names)}
    config._attn_implementation = None  # packed attention is this project's
    with torch.random.fork_rng(devices=[]):
        classifier: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    weights = {f"{classifier.base_model_prefix}.{name}": tensor for name, tensor in merged(encoder.model).items()}
    for place, layer in layout.layers(model.network).items():
        weights |= {f"{place}.{name}": tensor for name, tensor in layer.state_dict().items()}
    classifier.load_state_dict(weights)
    return classifier.eval()


def merged(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a transformers model by their pretrained names, with LoRA's updates added."""
    weights: dict[str, Tensor] = dict(encoder.state_dict())
    if any(".lora_" in name for name in weights):
        from peft.tuners.lora import LoraLayer

        for module in encoder.modules():
            if isinstance(module, LoraLayer):
                module.merge()
        kept = {name: tensor for name, tensor in encoder.state_dict().items() if ".lora_" not in name}
        weights = {name.replace(".base_layer.", "."): tensor for name, tensor in kept.items()}
    return weights


def check_folder(model: TrainedModel, folder: Path) -> None:
    """Load a folder as its users will: texts must become the same tokens, and tokens the same logits.

    Raises:
        SettingError: the tokens differ, or the logits by more than rounding.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from data_utils.tokenizer import encode_batches
    from mt_dnn.encoder.batch import pad
    from mt_dnn.trained.prediction import logits_of, unlabelled

    pair = model.task_def.pair
    premise, hypothesis = list(_SAMPLE), list(reversed(_SAMPLE)) if pair else None
    (sample,) = encode_batches(model.tokenizer, [(premise, hypothesis)], pair=pair, max_seq_len=model.max_seq_len)
    batch = pad(unlabelled(sample), range(len(premise)), model.tokenizer.pad_id)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    inputs = tokenizer(premise, hypothesis, truncation=True, padding=True, return_tensors="pt")
    for name, tensor in inputs.items():
        if not torch.equal(tensor, getattr(batch, name)):
            raise SettingError(
                f"the exported tokenizer gives other {name} than the run's; score with predict.py and the run directory"
            )
    ours = logits_of(model, sample, batch_tokens=8192)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        theirs = classifier(**inputs).logits.numpy()
    worst = float(np.abs(ours - theirs).max())
    if not worst <= 1e-4 * max(1.0, float(np.abs(ours).max())):
        raise SettingError(
            f"the exported {classifier.config.model_type} gives other logits than the run (by {worst:.1e}): this "
            "version of transformers computes another head; score with predict.py and the run directory"
        )


def _write_tokenizer(model: TrainedModel, encoder: Path, folder: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from data_utils.tokenizer import wrap_tokenizer

    ours = model.tokenizer
    tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or wrap_tokenizer(backend, ours.name, tokenizer.pad_token).hash != ours.hash:
        # The family's class builds its own from the vocabulary; the one that was trained with is the file's.
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=ours.tokenizer, **tokenizer.special_tokens_map)
    positions = model.network.encoder.limits.max_tokens
    tokenizer.model_max_length = min(model.max_seq_len, positions or model.max_seq_len)
    # A tokenizer without a class of its family would leave out the types, or give some that the model does not know.
    types = ["token_type_ids"] if model.network.encoder.token_types > 1 else []
    tokenizer.model_input_names = ["input_ids", *types, "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
