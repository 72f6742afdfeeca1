"""The pages for users of other programs name flags that exist, there and here, and leave none out."""

import dataclasses
import re
from pathlib import Path

import pytest

from mt_dnn.config_parser import build_parser
from tests.child import call

DOCS = Path(__file__).resolve().parents[1] / "docs"
# The flags of run_glue.py itself; the others are TrainingArguments', and 4.x had four more.
RUN_GLUE = """
task_name dataset_name dataset_config_name max_seq_length overwrite_cache pad_to_max_length max_train_samples
max_eval_samples max_predict_samples train_file validation_file test_file model_name_or_path config_name tokenizer_name
cache_dir use_fast_tokenizer model_revision token trust_remote_code ignore_mismatched_sizes
"""
OLDER = {"overwrite_output_dir", "warmup_ratio", "group_by_length", "local_rank"}
# Of train.py and prepro_std.py, master, v0.2 and SAGE.
MT_DNN = """
data_dir task_def train_datasets test_datasets init_checkpoint log_file tensorboard tensorboard_logdir glue_format_on
mkd_opt do_padding tokenizer dataloader_num_workers data_sort_on name encoder_type num_hidden_layers update_bert_opt
multi_gpu_on max_seq_len answer_opt pooler_actf mtl_opt ratio mix_opt bin_on bin_size bin_grow_ratio local_rank
world_size master_addr master_port backend epochs batch_size batch_size_eval optimizer learning_rate warmup
warmup_schedule scheduler_type weight_decay grad_clipping global_grad_clipping adam_eps dropout_p bert_dropout_p
dropout_w vb_dropout grad_accumulation_step log_per_updates save_per_updates save_per_updates_on output_dir seed resume
model_ckpt fp16 fp16_opt_level cuda encode_mode debug transformer_cache adv_train adv_opt adv_norm_level adv_p_norm
adv_alpha adv_k adv_step_size adv_noise_var adv_epsilon beta3 model root_dir workers do_lower do_lower_case
answer_num_turn answer_mem_drop_p
"""


def columns(page: str) -> tuple[set[str], set[str]]:
    """The flags in the first and in the second column of a page's tables."""
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    theirs, ours = (" ".join(cells) for cells in zip(*rows, strict=True))
    return flags(theirs), flags(ours)


def flags(text: str) -> set[str]:
    return set(re.findall(r"--([a-z][\w.]*)", text))


@pytest.fixture(scope="module")
def known() -> set[str]:
    commands = ["-m data_utils.import_dataset", "-m experiments.study", "-m mt_dnn.trained.export", "predict.py"]
    helps = [call([*command.split(), "--help"]).stdout for command in [*commands, "prepro_std.py"]]
    helps += [call(["-m", "experiments.glue.glue_prepro", "--help"]).stdout]
    return flags(" ".join([build_parser().format_help(), *helps])) | {"nproc_per_node"}  # torchrun's


@pytest.mark.parametrize("page", ["from_run_glue.md", "from_mt_dnn.md"])
def test_our_flags_exist(page: str, known: set[str]) -> None:
    assert columns(page)[1] - known == set()
    text = (DOCS / page).read_text(encoding="utf-8").replace("\\\n", "")
    commands = [line for line in re.findall(r"^ {4,}(.*)", text, re.MULTILINE) if "run_glue.py" not in line]
    assert any(line.startswith("python train.py ") for line in commands)
    assert flags(" ".join(commands)) - known == set()


def test_flags_of_run_glue_exist_and_none_of_its_own_is_left_out() -> None:
    from transformers import TrainingArguments

    theirs, _ = columns("from_run_glue.md")
    own = set(RUN_GLUE.split())
    assert theirs - own - OLDER - {field.name for field in dataclasses.fields(TrainingArguments)} == set()
    assert own - theirs == set()


def test_flags_of_mt_dnn_exist_and_none_is_left_out() -> None:
    theirs, _ = columns("from_mt_dnn.md")
    assert theirs ^ set(MT_DNN.split()) == {"answer_"}, "the other answer_* stand together"
