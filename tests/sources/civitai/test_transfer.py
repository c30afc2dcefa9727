"""A download that breaks, changes or lies: it is resumed, begun anew or refused, and never kept if it is wrong."""

import json

import pytest
import torch
from safetensors.torch import save
from support import tiny
from support.civitai import nothing_kept, pull
from support.civitai_server import Fault

from hswq_hub.sources.errors import (
    DownloadError,
    UnsuitableSourceError,
)
from hswq_hub.sources.http import cache
from hswq_runtime.errors import AlreadyQuantizedError, FormatError, UnknownArchitectureError


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, content):
    cuts = [Fault(cut=len(content) // 10) for _ in range(8)]
    server.faults = list(cuts)
    assert pull(server).path.read_bytes() == content
    assert sum(seen.sent for seen in server.stored) == len(content), "nothing was sent twice"
    assert len(server.stored) > 6, "as long as something arrives it goes on"


def test_a_server_that_ignores_the_range_sends_all_once_more(server, content):
    server.faults = [Fault(cut=len(content) // 2), Fault(ignore_range=True)]
    assert pull(server).path.read_bytes() == content


def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(server, content):
    server.faults = [Fault(cut=len(content) // 2)] * 20
    server.faults[1:] = [Fault(status=500)] * 10
    with pytest.raises(DownloadError):
        pull(server)
    (begun,) = cache.contents()
    assert begun.sha256 is None and begun.size == len(content) // 2
    server.faults, server.etag = [], '"second"'
    assert pull(server).path.read_bytes() == content
    assert server.stored[-1].sent == len(content) and "If-Range" in server.stored[-1].headers


def test_all_had_arrived_but_the_last_word(server, content):
    part = cache.partial(server.sha256)
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    part.with_name(f"{part.name}.json").write_text(json.dumps({"name": "tiny", "tag": server.etag}))
    assert pull(server).path.read_bytes() == content
    assert [seen.sent for seen in server.stored] == [0]


def test_a_part_longer_than_the_file_starts_over(server, content):
    part = cache.partial(server.sha256)
    part.parent.mkdir(parents=True)
    part.write_bytes(content + b"more")
    part.with_name(f"{part.name}.json").write_text(json.dumps({"name": "tiny", "tag": server.etag}))
    assert pull(server).path.read_bytes() == content


def test_a_foreign_beginning_is_found_out_by_the_hash_and_replaced(server, content):
    part = cache.partial(server.sha256)
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:20_000] + bytes(10_000))
    part.with_name(f"{part.name}.json").write_text(json.dumps({"name": "tiny", "tag": server.etag}))
    assert pull(server).path.read_bytes() == content


PAGE = {"Content-Type": "text/html; charset=utf-8"}
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        (Fault(status=200, body=b"<html>Sorry</html>", headers=PAGE), DownloadError, "something that is no model"),
        (Fault(status=200, body=b'{"error":"x"}', headers=JSON), DownloadError, "something that is no model"),
        (Fault(length=50_000), DownloadError, "are listed"),
        (Fault(length=-50_000), DownloadError, "are listed"),
        (Fault(status=200, body=b"<html>" * 9999), DownloadError, "are listed"),
    ],
    ids=["html", "json", "longer", "shorter", "untyped page"],
)  # fmt: skip
def test_what_is_no_model_is_never_saved_as_one(server, fault, error, sentence):
    server.faults = [fault] * 10
    with pytest.raises(error, match=sentence):
        pull(server)
    assert nothing_kept(server)


def test_a_length_that_lies_within_the_tolerance_is_a_broken_connection(server, content):
    server.faults = [Fault(length=100)] * 3
    assert pull(server).path.read_bytes() == content


@pytest.mark.parametrize(
    "begin",
    [b"PK\x03\x04", b"\x80\x02ccollections\n", b"GGUF", b"<!doctype html>", b'{"error": "no"}'],
    ids=["zip", "pickle", "gguf", "html", "json"],
)
def test_a_file_that_is_no_safetensors_is_refused_at_its_first_bytes(server, begin):
    server.content = body = begin + bytes(200_000)
    server.file |= {"sizeKB": len(body) / 1024, "hashes": {"SHA256": server.sha256}}
    server.chunk, server.pause = 1000, 0.001
    with pytest.raises(UnsuitableSourceError, match="not a safetensors file"):
        pull(server)
    assert nothing_kept(server) and server.stored[0].sent < len(body) / 2


HOSTILE = ["no", 3, [], [0], [0, 1, 2], {"0": 1}, ["0", "9"], [0, 8.0], [0, None], [False, True], [-8, 8], [8, 0]]
TOO_LONG = [[0, 10**30], [0, 2**63 - 1]]


@pytest.mark.parametrize(
    ("offsets", "listed"),
    [(value, listed) for value in HOSTILE + TOO_LONG for listed in (True, False)] + [([0, 10**7], True)],
    ids=str,
)
def test_a_hostile_header_leaves_nothing_behind(server, offsets, listed):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}).encode()
    server.content = len(header).to_bytes(8, "little") + header + bytes(200_000)
    server.file |= {"sizeKB": len(server.content) / 1024 if listed else None, "hashes": {"SHA256": server.sha256}}
    with pytest.raises(FormatError, match=r"^tiny\.safetensors has (no header|a header that is of)"):
        pull(server)
    assert nothing_kept(server)
    assert {path.suffix for path in cache.partial("x").parent.iterdir()} <= {".lock"}


def test_a_wrong_hash_is_never_kept(server):
    server.file["hashes"]["SHA256"] = "0" * 64
    with pytest.raises(DownloadError, match=f"has the SHA-256 {server.sha256}, but 0000"):
        pull(server)
    assert nothing_kept(server)


def test_hashes_are_compared_without_case_and_may_be_absent(server, content):
    server.file["hashes"] = {"AutoV2": "12345678"}
    assert pull(server).sha256 == server.sha256
    pull(server)
    assert len(server.stored) == 1, "its digest was found out and is remembered"


def changed_content(server, change):
    tensors = tiny.original_layout(tiny.model().state_dict())
    change(tensors)
    server.content = save(tensors)
    server.file |= {"sizeKB": len(server.content) / 1024, "hashes": {"SHA256": server.sha256}}
    server.chunk, server.pause = 1000, 0.001


def quantize_one(tensors):
    key = f"{tiny.PREFIX}layers.0.feed_forward.w1.weight"
    tensors[key] = tensors[key].to(torch.float8_e4m3fn)


def lose_one(tensors):
    del tensors[f"{tiny.PREFIX}layers.0.feed_forward.w1.weight"]


def become_unknown(tensors):
    del tensors[f"{tiny.PREFIX}cap_pad_token"]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (quantize_one, AlreadyQuantizedError, "tiny.safetensors is quantized already"),
        (lose_one, FormatError, "tiny.safetensors does not fit"),
        (become_unknown, UnknownArchitectureError, "tiny.safetensors: unknown architecture"),
    ],
    ids=["quantized", "incomplete", "unknown"],
)
def test_a_file_of_no_use_is_refused_as_soon_as_its_header_is_there(server, change, error, sentence):
    changed_content(server, change)
    with pytest.raises(error, match=f"^{sentence}"):
        pull(server)
    assert nothing_kept(server) and server.stored[0].sent < len(server.content) / 2
