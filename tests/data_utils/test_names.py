import pytest

from data_utils.errors import SettingError
from data_utils.names import check_name, slug


@pytest.mark.parametrize("name", ["cola", "bert-base_uncased", "A.1+b", "x" * 100, "0"])
def test_plain_names_pass_unchanged(name: str) -> None:
    assert check_name("task", name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a..b", "/etc", "a/b", "a\\b", "-x", ".hidden", "_x", "a b", "a\n", "é", "x" * 101, "a\0"]
)
def test_other_names_are_refused_with_the_kind_and_the_alphabet(name: str) -> None:
    with pytest.raises(SettingError, match=r"^task name .* is not allowed: use letters, digits"):
        check_name("task", name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("FacebookAI/roberta-large", "FacebookAI--roberta-large"),
        ("/data/models/my bert", "my-bert"),
        ("/data/models/bert-x/", "bert-x"),
        ("./bert", "bert"),
        ("../bert", "bert"),
        ("~/bert", "bert"),
        ("a/b/c", "c"),
        ("/runs/bert-x/best", "bert-x--best"),
        ("model", "model"),
        ("/a/checkpoint-500", "a--checkpoint-500"),
        ("/b/checkpoint-500/", "b--checkpoint-500"),
        ("/a/checkpoints/checkpoint-500", "a--checkpoints--checkpoint-500"),
        ("/x/pretrained/Step_1000", "pretrained--Step_1000"),
        ("../x/epoch=3", "x--epoch-3"),
        ("./checkpoint-500", "checkpoint-500"),
        ("/x/bert-500", "bert-500"),
        ("/x/..weird..name", "weird.name"),
        ("/x/" + "n" * 300, "n" * 100),
    ],
)
def test_slugs(name: str, expected: str) -> None:
    assert slug(name) == expected


@pytest.mark.parametrize("name", ["/", "", "..", "/x/???"])
def test_a_name_without_letters_has_no_slug(name: str) -> None:
    with pytest.raises(SettingError):
        slug(name)
