"""bench.payments says how many bytes a shard of the example's state has, and compares before it says so."""

import re

import pytest

from bench.payments import main


def test_bytes_of_each_shard_are_said_for_cards_and_merchants(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--cards", "2000", "--days", "1", "--shards", "3"])
    said = capsys.readouterr().out
    found = re.findall(r"by (card|merchant) +(\d+) features, ([\d,]+) entities, .* ([\d,]+) bytes an entity", said)
    assert [entity for entity, *_ in found] == ["card", "merchant"]
    assert 1_000 < int(found[0][2].replace(",", "")) <= 2_000
    assert int(found[0][3].replace(",", "")) > 100
