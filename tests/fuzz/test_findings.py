"""What the fuzzer, and a look at the code before it, has found: each as a plain case."""

import json
import time
from types import SimpleNamespace

import pytest
import safetensors
import torch
from click.testing import CliRunner
from huggingface_hub.hf_api import ModelInfo
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import originals, tiny

from hswq_hub.cards.card import Card, write_card
from hswq_hub.cli.main import main
from hswq_hub.cli.tables import kept_lines
from hswq_hub.common.text import text_table
from hswq_hub.evaluation.results import Evaluation
from hswq_hub.sources.errors import DownloadError, UnknownReferenceError
from hswq_hub.sources.http.cache import Cached
from hswq_hub.sources.huggingface import Hub
from hswq_hub.sources.reference import HubRef, parse
from hswq_hub.workflow.collect import Kept
from hswq_hub.workflow.inspect import inspect
from hswq_runtime import Checkpoint
from hswq_runtime.checkpoints.header import DTYPE_BITS, MOST_TENSORS
from hswq_runtime.checkpoints.locate import HubOptions, locate
from hswq_runtime.errors import FormatError, HSWQError, UnknownArchitectureError
from hswq_runtime.formats import StoredWeight, read_scale
from hswq_runtime.text import several, shown, written
from spaces_app.request import Limits, RequestError, validated_request

from .targets import SHOWN

ESCAPE = "\x1b]0;owned\x07\u202e"


def write(path, header, data=b""):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)
    return path


def parts(path):
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:size]), content[size:]


def refused(path):
    with pytest.raises(HSWQError) as found:
        Checkpoint(path).empty_model()
    said = str(found.value)
    assert 0 < len(said) <= 300 and said.isprintable()
    return said


def test_a_name_is_cut_and_escaped():
    assert shown("layers.0.weight") == "layers.0.weight"
    assert shown(ESCAPE) == r"\x1b]0;owned\x07\u202e"
    for text in ("a" * 5000, ESCAPE * 500, "\ud800" * 90, "🦊" * 90):
        assert len(shown(text)) <= 80 and shown(text).isprintable()
    assert shown("layers." + "a" * 500 + ".weight").endswith(".weight")
    assert several(["a", "b"]) == "a, b" and several(map(str, range(350_000))) == "0, 1, 2 and 349997 more"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert written(10**5000) == "a int that is too large to be shown" and "too large" in written(deep)
    while deep:  # freed from the outside, or the interpreter's own stack ends
        deep = deep.pop()


def test_every_error_of_ours_is_a_short_sentence():
    for kind in (HSWQError, FormatError, RequestError, UnknownReferenceError):
        error = kind(f"{'x' * 5000} {ESCAPE} is wrong; do this")
        assert len(str(error)) <= 300 and str(error).isprintable() and str(error).endswith("is wrong; do this")


def test_all_dtypes_of_safetensors_are_known(tmp_path):
    path = write(tmp_path / "x.safetensors", {"a": {"dtype": "?", "shape": [1], "data_offsets": [0, 1]}}, b"0")
    with pytest.raises(safetensors.SafetensorError) as found:
        safe_open(path, framework="numpy")
    listed = {name for name in str(found.value).split("`")[3::2]}
    assert listed == DTYPE_BITS.keys()


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_a_tensor_of_any_dtype_is_no_crash(tmp_path, dtype):
    path = tiny.checkpoint(tmp_path)
    header, data = parts(path)
    end, size = len(data), DTYPE_BITS[dtype] * 16 // 8
    header["vae.strange"] = {"dtype": dtype, "shape": [16], "data_offsets": [end, end + size]}
    checkpoint = Checkpoint(write(path, header, data + bytes(size)))
    assert checkpoint.tensors["vae.strange"].nbytes == size
    assert inspect(path).lines("cpu")


def test_a_dtype_that_nobody_knows_is_a_sentence(tmp_path):
    path = write(tmp_path / "x.safetensors", {"a": {"dtype": "Q" * 5000, "shape": [1], "data_offsets": [0, 1]}}, b"0")
    assert "is not a complete safetensors file" in refused(path)


@pytest.mark.parametrize(
    "name", ["flux-1-dev", "flux-2-klein-4b", "sd-3.5-medium", "chroma", "qwen-image", "aura-flow"]
)
@pytest.mark.parametrize("shape", [[], [0], [1]])
def test_any_shape_of_any_key_is_a_sentence(tmp_path, name, shape):
    path = originals.write_tiny(tmp_path, originals.ORIGINALS[name])
    right, data = parts(path)
    for number, key in enumerate(list(right)):
        if number % 3 and ".0." not in key:
            continue
        header = {other: dict(entry) for other, entry in right.items()}
        begin = header[key]["data_offsets"][0]
        size = 2 * (shape[0] if shape else 1)
        header[key] |= {"shape": shape, "dtype": "BF16"}
        moved = header[key]["data_offsets"][1] - begin - size
        for entry in header.values():  # nothing may lie between two tensors
            entry["data_offsets"] = [at - moved if at > begin else at for at in entry["data_offsets"]]
        refused_or_accepted(write(path, header, data[: len(data) - moved]))


def refused_or_accepted(path):
    try:
        Checkpoint(path).layers  # noqa: B018
    except HSWQError as error:
        assert len(str(error)) <= 300 and str(error).isprintable()


def test_a_mutated_key_of_flux_2_is_a_sentence(tmp_path):
    path = originals.write_tiny(tmp_path, originals.ORIGINALS["flux-2-klein-4b"])
    tensors = load_file(path)
    tensors["double_blocks.0.img_attn.norm.query_norm.scale\x1b" * 200] = torch.zeros(1)
    tensors["double_blocks.x" * 400] = tensors.pop("double_blocks.0.img_attn.norm.query_norm.scale")
    save_file(tensors, path)
    assert "\x1b" not in refused(path)


def test_long_keys_and_many_of_them(tmp_path):
    save_file({f"{'strange' * 900}.{i}.weight": torch.zeros(1) for i in range(200)}, tmp_path / "x.safetensors")
    with pytest.raises(UnknownArchitectureError) as found:
        Checkpoint(tmp_path / "x.safetensors")
    assert "200 tensors" in str(found.value) and len(str(found.value)) <= 300
    many = {f"k{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(MOST_TENSORS + 1)}
    assert f"holds {MOST_TENSORS + 1} tensors" in refused(write(tmp_path / "y.safetensors", many))


def test_a_header_of_fifty_megabytes_is_told_in_a_page(tmp_path):
    path = tiny.checkpoint(tmp_path)
    header, data = parts(path)
    header["__metadata__"] = {f"{ESCAPE}{i}": ESCAPE + "v" * 110 for i in range(350_000)} | {"hswq_tool": "hub"}
    write(path, header, data)
    start = time.process_time()
    result = CliRunner().invoke(main, ["inspect", str(path), "--device", "cpu"])
    assert time.process_time() - start < 10, "of the processor; it was 90"
    assert result.exit_code == 0 and "and 349971 more" in result.output and "hswq_tool: hub" in result.output
    assert result.output.replace("\n", "").isprintable() and len(result.output) < 20_000


def test_a_terminal_obeys_no_stranger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tiny.checkpoint(tmp_path, metadata={f"modelspec.{ESCAPE}": ESCAPE, "hswq_base": f"a/{ESCAPE}"})
    strange = path.rename(tmp_path / f"{ESCAPE}.safetensors")
    save_file({f"{ESCAPE}.0.weight": torch.zeros(1)}, tmp_path / f"{ESCAPE}-other.safetensors")
    for words in (["inspect", str(strange)], ["inspect", f"{ESCAPE}-other.safetensors"], ["pull", f"x{ESCAPE}"],
                  ["publish", str(strange), "--dry-run"],
                  ["calibrate", str(strange), "-o", "x.safetensors"]):  # fmt: skip
        result = CliRunner().invoke(main, words)
        assert result.output and result.output.replace("\n", "").isprintable(), words
        assert result.exit_code in (0, 2) and not isinstance(result.exception, (TypeError, KeyError))


def test_a_table_obeys_no_stranger():
    line = text_table(("name", "size"), [(ESCAPE + "a" * 5000, "1")]).splitlines()[-1]
    assert line.isprintable() and len(line) < 200
    cached = Cached(f"{ESCAPE}\nforged", "ab" * 32, 1, 0.0, (), "key")
    assert all(line.isprintable() for line in kept_lines(Kept([cached], [])))


def test_a_mark_without_end_is_not_read():
    mark = torch.zeros(10**8, dtype=torch.uint8)
    start = time.process_time()
    with pytest.raises(FormatError, match="is no description"):
        read_scale(StoredWeight("a.weight", (), "a"), 1, lambda _: mark)
    assert time.process_time() - start < 0.5


def answering(body):
    hub = Hub()
    hub._api = SimpleNamespace(model_info=lambda *_, **__: ModelInfo(**body), endpoint="https://huggingface.co")
    return hub


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 7}, {"sha": ["x"]}, {"siblings": 0.5}, {"siblings": [True]}, {"siblings": [{"size": 1}]},
        {"siblings": [[]]}, {"siblings": ["x"]}, {"cardData": {"license": "mit", 7: 8}},
    ],
)  # fmt: skip
def test_an_answer_of_the_hub_of_another_shape_is_a_sentence(changes):
    with pytest.raises(DownloadError, match="something that is no model for owner/repo"):
        answering({"id": "owner/repo", "sha": "ab", "siblings": []} | changes).listing(HubRef("owner/repo"))


def test_odd_values_in_an_answer_of_the_hub_are_left_out():
    files = [{"rfilename": 7}, {"rfilename": "model.safetensors", "size": [1], "lfs": {"size": 1, "sha256": "../x",
             "pointerSize": 1}}, {"rfilename": "vae/a.safetensors", "size": "many"}]  # fmt: skip
    hub = answering({"id": "owner/repo", "sha": "ab", "siblings": files, "tags": [1, {}, "x"], "gated": [1]})
    listing = hub.listing(HubRef("owner/repo"))
    assert [(file.size, file.sha256) for file in listing.files] == [(None, None)] and listing.provenance.gated is None
    assert hub.components_size("owner/repo") == 0
    endless = [{"rfilename": "model.safetensors", "size": 10**400}]
    (file,) = answering({"id": "owner/repo", "sha": "ab", "siblings": endless}).listing(HubRef("owner/repo")).files
    assert file.size is None
    assert answering({"id": "owner/repo", "siblings": files, "tags": 7}).listing(HubRef("owner/repo")).files


@pytest.mark.parametrize("rows", [["x"], [7], [[]]])
def test_figures_of_another_shape_are_a_sentence(tmp_path, rows):
    (tmp_path / "metrics.json").write_text(json.dumps({"protocol": {}, "variants": rows}))
    with pytest.raises(FormatError, match="holds no figures of ours"):
        Evaluation.load(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text("[" * 100_000)
    with pytest.raises(FormatError, match="holds no figures of ours"):
        Evaluation.load(tmp_path / "metrics.json")


@pytest.mark.parametrize("protocol", [7, {"generation": 7}, {"generation": {"size": "x"}}, {}])
def test_a_protocol_of_another_shape_is_a_sentence(tmp_path, protocol):
    (tmp_path / "hswq.json").write_text((SHOWN / "hswq.json").read_text())
    metrics = json.loads((SHOWN / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"protocol": protocol}))
    (tmp_path / "images").symlink_to(SHOWN / "images")
    with pytest.raises(FormatError, match="lacks what the card needs"):
        write_card(tmp_path)


def test_a_protocol_is_no_html(tmp_path):
    card = Card.from_folder(SHOWN)
    card.evaluation.protocol["hardware"] = f"<script>alert(1)</script>{ESCAPE}\n\n# x"
    text = card.render()
    assert "<script>" not in text and text.replace("\n", "").isprintable() and "\n# x" not in text


@pytest.mark.parametrize(
    "text",
    ["civitai:" + "9" * 5000, "https://civitai.com/models/" + "9" * 5000, "x" * 10**6],
    ids=lambda text: text[:20],
)
def test_a_reference_without_end_is_a_sentence(text):
    with pytest.raises(UnknownReferenceError):
        parse(text)


@pytest.mark.parametrize("text", ["hf:owner/repo@v1//folder/x", "owner/repo@v1/folder//x", "owner/repo@v1/folder/x /"])
def test_slashes_and_blanks_around_a_path_are_no_part_of_it(text):
    found = parse(text)
    assert found == HubRef("owner/repo", "folder/x", "v1") and parse(str(found)) == found


def test_a_reference_that_is_no_text_is_a_sentence():
    for text in ("hf:owner/repo@\ud800", "owner/re\udc80po", "https://huggingface.co/owner/repo/tree/\ud800"):
        with pytest.raises(UnknownReferenceError, match="is no text in UTF-8"):
            parse(text)


def test_a_name_that_no_file_can_have_is_a_sentence():
    for name in ("x" * 5000, "🦊" * 400, "a\0b"):
        with pytest.raises(FormatError, match="neither a file nor a folder here"):
            locate(name, None, None, HubOptions(local_files_only=True))


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000, [10**5000], {"a": [1]}], ids=lambda _: "large")
def test_a_number_without_end_in_a_request_is_a_sentence(value):
    limits = Limits(("original", "V2"), 8, 1.0, 512)
    for fields in (
        ("a fox", "", value, 8, 1.0, 512, ["original", "V2"]),
        ("a fox", "", 1, 8, value, 512, ["original", "V2"]),
        ("a fox", "", 1, 8, 1.0, 512, [value]),
        ("a fox", "", 1, 8, 1.0, 512, value),
    ):
        with pytest.raises(RequestError):
            validated_request(limits, *fields)
