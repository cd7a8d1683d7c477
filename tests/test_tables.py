"""A table that is wider than the terminal is folded: no label and no number is broken."""

from __future__ import annotations

import pytest

from ivlens.tables import INTERVAL, Table, folded, print_table

METHODS = ("lora", "lora+iv-general-random-0.3", "replay-general+fv-published-random-0.03")


def printed(table: Table, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(table)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_columns_that_do_not_fit_follow_below_beside_the_same_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [(name, *(f"{number}.123 ±0.0{at}" for number in range(5))) for at, name in enumerate(METHODS)]
    table = Table("", ("method", "learned", "AP", "F", "GP", "IP"), (values,))
    wide, narrow = (printed(table, width, capsys, monkeypatch) for width in (200, 80))
    assert len(wide) == 2 + len(METHODS) and max(map(len, wide)) > 80
    assert max(map(len, narrow)) <= 80
    for line in values:
        rows = [row for row in narrow if row.startswith(line[0] + "  ")]
        assert " ".join(row.removeprefix(line[0]) for row in rows).split() == " ".join(line[1:]).split()


def test_an_interval_stays_beside_its_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("a head of the vector", "0.042", "[0.031, 0.055]", "0.142", "[0.131, 0.155]")
    table = Table("", ("head", "AIE", INTERVAL, "without", INTERVAL), ([line],))
    for width in range(46, 68):
        rows = [row for row in printed(table, width, capsys, monkeypatch) if row.startswith(line[0])]
        assert [row.split()[5:] for row in rows] == [["0.042", "[0.031,", "0.055]"], ["0.142", "[0.131,", "0.155]"]]


def test_words_of_a_heading_stand_above_each_other_before_a_table_is_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table("", ("head", "with the instruction", "with demonstrations"), ([("L3H3", "0.1", "0.2")],))
    assert len(printed(table, 60, capsys, monkeypatch)) == 3
    rows = printed(table, 40, capsys, monkeypatch)
    assert rows[-1].split() == ["L3H3", "0.1", "0.2"] and max(map(len, rows)) <= 40


def test_sentences_are_broken_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "left out: its prompts are longer than the context of the model, by 12 tokens"
    rows = printed(Table("", ("task", "accuracy", ""), ([("antonym", "0.5", reason)],)), 60, capsys, monkeypatch)
    assert rows[2].startswith("antonym") and max(map(len, rows)) <= 60
    assert " ".join(" ".join(rows[2:]).split()) == f"antonym 0.5 {reason}"


def test_a_sentence_is_folded_between_words_and_no_option_or_name_is_broken() -> None:
    text = f"{'word ' * 14}--clean-prompts and lora+iv-general-random-0.3 {'word ' * 8}zero-shot accuracy"
    lines = folded(text).split("\n")
    assert " ".join(lines).split() == text.split() and max(map(len, lines)) <= 80 < len(text)
