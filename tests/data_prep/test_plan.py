"""`plan`: files that are there or missing, and commands that pack what is there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from data_prep.cli import build_parser, main
from data_prep.plan import PUBLISHED, downloads_of, words_of
from tests.toys.files import ROOT
from tests.toys.official_sets import write_okvqa
from tests.toys.shards import packed


def test_every_data_set_of_a_publisher_is_planned() -> None:
    commands = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    with_splits = {
        name for name, parser in commands.items()  # type: ignore[union-attr]
        if "--src" in parser._option_string_actions
    }  # fmt: skip
    assert with_splits == PUBLISHED.keys()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_command_parses(name: str) -> None:
    published = PUBLISHED[name]
    for split in published.needs:
        words = words_of(published, split, Path("data"), Path("shards"))
        options = vars(build_parser().parse_args(words))
        assert options["src"].parent == Path("data")
        assert split in (options.get("split"), options.get("what"))
    places = {entry.gives.split("/")[0] for entry in downloads_of(published)}
    named = {options["src"].name, getattr(options.get("images"), "name", options["src"].name)}
    assert places == named


def test_a_file_that_the_command_would_not_look_for_is_named() -> None:
    """The answers to train on are an option, so that the packed split is that of the recipes."""
    train = words_of(PUBLISHED["vqav2"], "karpathy-train", Path("data"), Path("shards"))
    told = "--vocabulary data/COCO/trainval_ans2label.json --split karpathy-train"
    assert told in " ".join(train)
    test = words_of(PUBLISHED["vqav2"], "karpathy-test", Path("data"), Path("shards"))
    assert "--vocabulary" not in test


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_page_lists_every_file(name: str) -> None:
    pages = (ROOT / "docs" / page for page in ("reproduce.md", "few_shot_data.md"))
    lines = [line for page in pages for line in page.read_text("utf-8").splitlines()]
    rows = [line for line in lines if line.startswith("|")]
    for entry in downloads_of(PUBLISHED[name]):
        (row,) = [row for row in rows if f"`{entry.gives}`" in row]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:] == [entry.address, entry.size, entry.licence]


@pytest.mark.slow
def test_what_is_missing_is_a_comment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_okvqa(tmp_path / "OKVQA")
    (tmp_path / "COCO").mkdir()
    (tmp_path / "OKVQA/val2014").rename(tmp_path / "COCO/val2014")
    out = tmp_path / "shards"
    given = ["plan", "okvqa", "--data", str(tmp_path), "--out", str(out)]
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# OK-VQA"
    assert (
        f"#   there   {tmp_path}/COCO/val2014 (6.6 GB, Flickr's terms for pictures) "
        in "\n".join(lines)
    )
    assert any(line.startswith(f"#   missing {tmp_path}/COCO/train2014 (13.5 GB") for line in lines)
    assert lines[-2].startswith("# vlds data okvqa --src ")
    words = shlex.split(lines[-1])
    assert words[:3] == ["vlds", "data", "okvqa"]
    assert words[-4:] == ["--split", "val", "--out", f"{out}/okvqa-val"]

    assert main([*given, "--run"]) == 0
    assert sorted(packed(out / "okvqa-val")) == ["51606", "81"]
    assert not (out / "okvqa-train").exists()
    capsys.readouterr()
    assert main([*given, "--run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("nothing is left to do: 0 splits packed now, 1 packed before, 1 without")
