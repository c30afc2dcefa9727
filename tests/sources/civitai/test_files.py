"""Which file of a version is taken, and what its creator permits."""

import pytest
from support.civitai import REFERENCE, locate, pull
from support.civitai_server import DEADLINE, VERSION

from hswq_hub.sources.errors import (
    NotPermittedError,
    UnknownReferenceError,
    UnsuitableSourceError,
)
from hswq_hub.sources.http import cache


def another(server, id, **changes):
    digest = {"SHA256": f"{id:064d}"}
    return {**server.file, "id": id, "primary": False, "hashes": digest, "name": f"other{id}.safetensors", **changes}


def precise(fp, **more):
    return {"metadata": {"format": "SafeTensor", "fp": fp}, **more}


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ([{}, {"primary": True}], 1),
        ([precise("fp32"), precise("fp16")], 1),
        ([precise("fp32", primary=True), precise("fp16")], 0),
        ([precise("fp8", primary=True), precise("bf16")], 1),
        ([{"type": "VAE", "primary": True}, {"type": "Diffusion Model"}], 1),
        ([{"metadata": {"format": "GGUF"}, "name": "q4.gguf", "primary": True}, {}], 1),
        ([{"metadata": None}, {"metadata": {"format": "PickleTensor"}, "name": "x.ckpt", "primary": True}], 0),
    ],
    ids=["primary", "half before full", "primary before half", "fp8", "type", "gguf", "pickle"],
)
def test_which_file_is_taken(server, changes, chosen):
    server.version["files"] = [another(server, i + 1, **change) for i, change in enumerate(changes)]
    assert locate(REFERENCE, server.url).files[0].id == chosen + 1


HASHES = {"SHA256": "A" * 63 + "1", "BLAKE3": "B" * 64, "AutoV1": "C" * 8, "AutoV2": "A" * 10, "AutoV3": "D" * 12}


@pytest.mark.parametrize("algorithm", HASHES)
def test_a_hash_names_one_file_of_a_version(server, algorithm):
    server.version["files"] = [
        another(server, 1, primary=True, hashes={"SHA256": "E" * 64, "BLAKE3": "F" * 64}),
        another(server, 2, hashes=HASHES),
    ]
    address = f"https://civitai.com/api/v1/model-versions/by-hash/{HASHES[algorithm].lower()}"
    assert locate(address, server.url).files[0].id == 2
    form = "sha256" if algorithm == "SHA256" else "hash"
    assert locate(f"civitai:{form}:{HASHES[algorithm]}", server.url).files[0].id == 2


def test_a_hash_that_no_file_lists_leaves_those_that_it_may_be_of(server):
    digest = "9" * 64
    server.version["files"] = [another(server, 1), another(server, 2, hashes={}, primary=False)]
    server.known_hashes = {digest}
    assert locate(f"civitai:hash:{digest}", server.url).files[0].id == 1
    (file,) = locate(f"civitai:sha256:{digest}", server.url).files
    assert (file.id, file.sha256) == (2, digest), "it has to be that in the end"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (precise("fp8"), "quantized already (fp8)"),
        (precise("nf4"), "quantized already (nf4)"),
        ({"metadata": {"format": "GGUF"}, "name": "q.gguf"}, "no safetensors file but GGUF"),
        ({"metadata": {"format": "PickleTensor"}}, "no safetensors file but PickleTensor"),
        ({"metadata": {}, "name": "model.ckpt"}, "no safetensors file"),
        ({"type": "Text Encoder"}, "is a Text Encoder"),
        ({"pickleScanResult": "Danger"}, "pickle scan (Danger)"),
        ({"virusScanResult": "Pending"}, "virus scan (Pending)"),
        ({"virusScanResult": None}, "virus scan (no result)"),
    ],
)
def test_why_a_file_is_not_taken(server, change, reason):
    server.file |= change
    with pytest.raises(UnsuitableSourceError) as error:
        pull(server)
    assert reason in str(error.value) and server.stored == []


def test_a_download_address_that_names_a_file_gets_that_one_or_none(server):
    address = f"https://civitai.com/api/download/models/{VERSION}"
    assert pull(server, f"{address}?type=Model&format=SafeTensor&fp=bf16").sha256 == server.sha256
    with pytest.raises(UnknownReferenceError, match="no such file"):
        pull(server, f"{address}?fp=fp32")
    with pytest.raises(UnknownReferenceError, match="no such file"):
        pull(server, f"{address}?fileId=78")


@pytest.mark.parametrize("digest", ["2" * 64, None])
def test_a_file_that_is_not_the_first_choice_is_referred_to_by_itself(server, digest):
    hashes = {"SHA256": digest.upper()} if digest else {}
    full, half = another(server, 2, **precise("fp32", hashes=hashes)), another(server, 1, primary=True)
    server.version["files"] = [full, half]
    for asked in ("fp=fp32", "fileId=2"):
        listing = locate(f"https://civitai.com/api/download/models/{VERSION}?{asked}", server.url)
        assert (listing.files[0].id, listing.version) == (2, VERSION)
        assert listing.reference.startswith("civitai:sha256:2222" if digest else "https://civitai.com/api/download/")
        again = locate(listing.reference, server.url)
        assert (again.files, again.reference) == (listing.files, listing.reference)
    assert locate(REFERENCE, server.url).reference == REFERENCE


@pytest.mark.parametrize(
    "wire",
    ["{Image,Rent}", ["Image", "Rent"], ["Rent", "Image", "Unheard"], '{"Image","Rent"}'],
    ids=["postgres", "list", "unknown", "quoted"],
)
def test_permissions_in_every_shape(server, wire):
    server.model["allowCommercialUse"] = wire
    assert pull(server).provenance.permissions.commercial_use == ("Image", "Rent")


@pytest.mark.parametrize(("wire", "meant"), [("Sell", ("Sell",)), ("None", ()), ([], ()), ("{}", ()), (7, None)])
def test_permissions_of_old_and_of_nothing(server, wire, meant):
    server.model["allowCommercialUse"] = wire
    assert pull(server).provenance.permissions.commercial_use == meant


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.model.update(allowDerivatives=False), "does not allow derivatives"),
        (lambda s: s.model.pop("allowDerivatives"), "does not say whether derivatives"),
        (lambda s: s.model.update(availability="Private"), "not public but Private"),
        (lambda s: s.version.update(availability="Unsearchable"), "not public but Unsearchable"),
        (
            lambda s: s.model["modelVersions"][0].update(availability="EarlyAccess", earlyAccessDeadline=DEADLINE),
            "EarlyAccess until 2031-05-01 12:00 UTC",
        ),
        (lambda s: s.version.update(usageControl="Generation"), "downloads are disabled"),
        (lambda s: s.model.update(poi=True), "depicts a real person"),
    ],
)
def test_what_its_creator_would_not_want_needs_a_permission(server, change, sentence):
    change(server)
    with pytest.raises(NotPermittedError, match=sentence) as error:
        pull(server)
    assert "--i-have-permission" in str(error.value) and server.stored == []
    assert pull(server, permitted=True).sha256 == server.sha256


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/cron.d/x.safetensors",
        "/root/x.safetensors",
        "..\\x.safetensors",
        ".hidden.safetensors",
        "a b\x1b[31m\n|`.safetensors",
        "x" * 5000 + ".safetensors",
    ],
    ids=["above", "absolute", "windows", "hidden", "odd", "long"],
)
def test_names_from_the_api_are_never_paths(server, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.file["name"] = name
    source = pull(server)
    assert source.path.parent == cache.folder() / server.sha256
    assert set(source.path.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not source.path.name.startswith(".") and len(source.path.name) < 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("模型.safetensors", f"civitai-{VERSION}.safetensors"),
        ("模型 v2.safetensors", "v2.safetensors"),
        (".safetensors", f"civitai-{VERSION}.safetensors"),
        ("a.b.safetensors", "a.b.safetensors"),
    ],
)
def test_a_name_of_which_nothing_is_left_is_not_its_suffix(server, name, kept):
    server.file["name"] = name
    listing = locate(REFERENCE, server.url)
    assert (listing.files[0].name, listing.name) == (kept, kept.removesuffix(".safetensors"))
