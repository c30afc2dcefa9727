"""A published file against its record: which tensor or metadata entry is another one, missing, or new."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hswq_hub.cards.record import PublishedRecord
from hswq_hub.cli.main import main
from hswq_hub.evaluation.digests import Difference, differences, digests_of
from hswq_runtime.errors import FormatError
from spaces_app.models.bundled import SHIPPED

NAME = "demo-hswq-v2.safetensors"


@pytest.fixture
def file(tmp_path):
    """A copy of a published file, with its record beside it."""
    for name in (NAME, "hswq.json"):
        shutil.copyfile(SHIPPED / name, tmp_path / name)
    return tmp_path / NAME


def check(*words):
    return CliRunner().invoke(main, ["compare", *map(str, words)])


def save(file, tensors, **entries):
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, file, metadata={k: v for k, v in (metadata | entries).items() if v is not None})


def listed(result):
    """(what, name, how) of each line of the table."""
    assert result.exit_code == 1, result.output
    assert "is not the file that" in result.stderr
    return [tuple(line.split(maxsplit=2)) for line in result.stdout.splitlines()[2:]]


def test_what_was_published_is_as_recorded(file):
    result, count = check(file, "--against-record"), len(load_file(file))
    assert result.exit_code == 0, result.output
    assert f"{count} tensors and" in result.stdout and "all as recorded" in result.stdout


@pytest.mark.parametrize("format", ["v1", "v2"])
def test_the_record_has_a_digest_of_every_tensor_and_entry(format):
    record = json.loads((SHIPPED / "hswq.json").read_text())["files"][format]
    with safe_open(SHIPPED / record["file"], framework="pt") as opened:
        assert list(record["tensors"]) == opened.offset_keys()
        assert record["metadata"].keys() == opened.metadata().keys()


def test_a_flipped_bit_is_found_in_its_tensor(file):
    key, data = list(load_file(file))[-1], bytearray(file.read_bytes())
    (length,), header = [int.from_bytes(data[:8], "little")], None
    header = json.loads(data[8 : 8 + length])
    for name in (key, next(iter(header.keys() - {"__metadata__", key}))):
        data[8 + length + header[name]["data_offsets"][1] - 1] ^= 1
        file.write_bytes(data)
        assert ("tensor", name, "other contents") in listed(check(file, "--against-record"))
    assert len(listed(check(file, "--against-record"))) == 2


def test_a_tensor_of_the_same_bytes_and_another_shape_or_dtype_is_another(file):
    tensors = load_file(file)
    rows, bias = (next(key for key, t in tensors.items() if t.ndim == n and t.numel() > 1) for n in (2, 1))
    tensors[rows], tensors[bias] = tensors[rows].reshape(-1), tensors[bias].view(torch.uint8)
    save(file, tensors)
    found = listed(check(file, "--against-record"))
    assert sorted(found) == sorted(("tensor", key, "other contents") for key in (rows, bias))


def test_a_missing_and_an_added_tensor_are_named(file):
    tensors = load_file(file)
    key = sorted(tensors)[3]
    tensors["added\x1b[31m"] = tensors.pop(key)
    save(file, tensors)
    result = check(file, "--against-record")
    assert listed(result) == [("tensor", key, "missing"), ("tensor", r"added\x1b[31m", "not in the record")]
    assert "\x1b" not in result.output


def test_another_a_missing_and_an_added_entry_of_the_metadata_are_named(file):
    save(file, load_file(file), hswq_format="v1", hswq_tool=None, note="new")
    assert listed(check(file, "--against-record")) == [
        ("metadata", "hswq_format", "other contents"),
        ("metadata", "hswq_tool", "missing"),
        ("metadata", "note", "not in the record"),
    ]


def test_the_order_of_a_header_is_no_difference(file):
    before = file.read_bytes()
    save(file, load_file(file))
    assert file.read_bytes() != before and check(file, "--against-record").exit_code == 0


def test_a_record_may_be_elsewhere_and_has_to_be_of_that_file(file, tmp_path):
    elsewhere = shutil.move(tmp_path / "hswq.json", tmp_path / "another.json")
    assert check(file, "--against-record", elsewhere).exit_code == 0
    missing = check(file, "--against-record")
    assert missing.exit_code == 2 and "hswq.json cannot be read" in missing.stderr
    renamed = check(file.rename(tmp_path / "renamed.safetensors"), "--against-record", elsewhere)
    assert renamed.exit_code == 2 and "the record knows no renamed.safetensors" in renamed.stderr


def test_a_record_of_before_says_what_is_left_to_compare(file, tmp_path):
    document = json.loads((tmp_path / "hswq.json").read_text())
    del document["files"]["v2"]["tensors"]
    (tmp_path / "hswq.json").write_text(json.dumps(document))
    result = check(file, "--against-record")
    assert result.exit_code == 2 and document["files"]["v2"]["sha256"] in result.stderr
    document["files"]["v2"]["tensors"] = {"a": 1}
    with pytest.raises(FormatError, match="no digests under 'tensors'"):
        PublishedRecord.from_document(document)


def test_one_of_the_two_is_to_be_given(file):
    for words in ([file], [file, file, "--against-record"]):
        assert "a second file, or --against-record" in check(*words).stderr


def test_a_file_is_not_another(file):
    one, other = digests_of(file), digests_of(SHIPPED / "demo-hswq-v1.safetensors")
    assert differences(one, one) == []
    assert Difference("metadata", "hswq_format", "other contents") in differences(one, other)
