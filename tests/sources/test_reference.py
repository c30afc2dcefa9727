"""What is on the clipboard, and which model is meant by it. No network."""

from pathlib import Path

import pytest

from hswq_hub.sources.catalog import catalog
from hswq_hub.sources.errors import UnknownReferenceError
from hswq_hub.sources.reference import CivitaiRef, DemoRef, HubRef, LocalRef, parse

DIGEST = "a5f58eb1c33616c4f06bca55af39876a7b817913cd829caa8acb111b770c85cc"
BOTH = CivitaiRef(2242173, 2774410)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("https://civitai.com/models/2242173?modelVersionId=2774410", BOTH),
        ("  https://civitai.com/models/2242173?modelVersionId=2774410\n", BOTH),
        ("https://civitai.com/models/2242173/dark-beast-z?modelVersionId=2774410#x", BOTH),
        ("http://www.civitai.com/models/2242173?modelVersionId=2774410", BOTH),
        ("civitai.com/models/2242173?modelVersionId=2774410", BOTH),
        ("//civitai.com/models/2242173?modelVersionId=2774410", BOTH),
        ("https://civitai.red/models/2242173?modelVersionId=2774410", CivitaiRef(2242173, 2774410, host="civitai.red")),
        ("https://civitai.green/models/2242173", CivitaiRef(2242173, host="civitai.green")),
        ("https://civitai.com/models/2242173", CivitaiRef(2242173)),
        ("https://civitai.com/model-versions/2774410", CivitaiRef(version=2774410)),
        ("https://civitai.com/api/v1/models/2242173", CivitaiRef(2242173)),
        ("https://civitai.com/api/v1/model-versions/2774410", CivitaiRef(version=2774410)),
        ("https://civitai.com/api/v1/model-versions/mini/2774410", CivitaiRef(version=2774410)),
        (f"https://civitai.com/api/v1/model-versions/by-hash/{DIGEST.upper()}", CivitaiRef(hash=DIGEST)),
        ("https://civitai.com/api/download/models/2774410?fileId=77", CivitaiRef(version=2774410, file=77)),
        (
            "https://civitai.com/api/download/models/2774410?type=Model&format=SafeTensor&size=full&fp=fp16&token=x",
            CivitaiRef(
                version=2774410,
                wishes=(("type", "Model"), ("format", "SafeTensor"), ("size", "full"), ("fp", "fp16")),
            ),
        ),
        ("urn:air:zimageturbo:checkpoint:civitai:2242173@2774410", BOTH),
        ("urn:air:sdxl:checkpoint:civitai:2242173@2774410.safetensors", BOTH),
        ("air:sdxl:checkpoint:civitai:2242173", CivitaiRef(2242173)),
        ("civitai:2242173@2774410", BOTH),
        ("Civitai:2242173", CivitaiRef(2242173)),
        (f"civitai:sha256:{DIGEST.upper()}", CivitaiRef(hash=DIGEST, is_sha256=True)),
        (f"civitai:hash:{DIGEST.upper()}", CivitaiRef(hash=DIGEST)),
        ("harukiMIX_zit2603", CivitaiRef(856375, 2815582)),
        ("HARUKIMIX_ZIT2603", CivitaiRef(856375, 2815582)),
        ("demo", DemoRef()),
        ("Tongyi-MAI/Z-Image-Turbo", HubRef("Tongyi-MAI/Z-Image-Turbo")),
        ("hf:Tongyi-MAI/Z-Image-Turbo", HubRef("Tongyi-MAI/Z-Image-Turbo")),
        ("owner/repo@refs%2Fpr%2F3/x", HubRef("owner/repo", "x", "refs/pr/3")),
        ("owner/repo@v1.0", HubRef("owner/repo", revision="v1.0")),
        ("owner/repo/file.safetensors", HubRef("owner/repo", "file.safetensors")),
        ("owner/repo/a/b/file.safetensors", HubRef("owner/repo", "a/b/file.safetensors")),
        ("hf:owner/repo/transformer", HubRef("owner/repo", "transformer")),
        ("hf://owner/repo@abc/file.safetensors", HubRef("owner/repo", "file.safetensors", "abc")),
        ("https://huggingface.co/owner/repo", HubRef("owner/repo")),
        ("huggingface.co/owner/repo/tree/main", HubRef("owner/repo")),
        ("https://hf.co/owner/repo/blob/main/x.safetensors", HubRef("owner/repo", "x.safetensors")),
        (
            "https://huggingface.co/owner/repo/resolve/refs%2Fpr%2F3/a/x.safetensors?download=true",
            HubRef("owner/repo", "a/x.safetensors", "refs/pr/3"),
        ),
    ],
)
def test_forms(text, meant):
    assert parse(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        "civitai:1@2",
        "civitai:1",
        f"civitai:sha256:{DIGEST}",
        f"civitai:hash:{DIGEST}",
        "hf:o/r",
        "hf:o/r@x/y.safetensors",
        "hf:o/r@refs%2Fpr%2F3/a/y.safetensors",
    ],
)
def test_short_form_means_the_same(text):
    assert str(parse(text)) == text


def test_what_is_here_comes_before_the_hub_and_names_before_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owner/repo", "demo"):
        Path(name).mkdir(parents=True)
    assert parse("owner/repo") == LocalRef(Path("owner/repo"))
    assert parse("demo") == DemoRef() and parse("./demo") == LocalRef(Path("demo"))
    assert str(parse(".")) == tmp_path.name and str(parse(f"{tmp_path}/owner/repo")) == "repo"


@pytest.mark.parametrize("text", ["~nobody-of-that-name/x", "x" * 5000, "a\0b"])
def test_what_cannot_be_a_path_is_no_crash(text):
    with pytest.raises(UnknownReferenceError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("harukiMIX_zit2604", "did you mean harukiMIX_zit2603?"),
        ("dmeo", "did you mean demo?"),
        ("models/missing.safetensors", "neither a file here"),
        ("./owner/repo", "neither a file here"),
        ("nothing", "give a safetensors file"),
        ("", "neither a file here"),
        ("civitai:abc", "civitai:MODEL@VERSION"),
        ("civitai:sha256:abc", "all 64 digits"),
        ("urn:air:sdxl:checkpoint:huggingface:owner/repo", "no AIR of a Civitai model"),
        ("hf:repo", "hf:owner/repo"),
        ("https://civitai.com/images/5", "not the address of a model"),
        ("https://civitai.com.evil.example/models/5", "neither Civitai nor Hugging Face"),
        ("https://huggingface.co/datasets/owner/repo", "not the address of a model"),
        ("https://[::1/models/5", "not a valid address"),
        ("owner/repo/../../x.safetensors", "no '..'"),
    ],
)
def test_what_is_not_understood_is_explained(text, sentence):
    with pytest.raises(UnknownReferenceError) as error:
        parse(text)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://civitai.com/api/download/models/2774410?fp=fp16&token=SECRET",
        "https://user:SECRET@civitai.com/models/2242173",
        "https://civitai.com/images/5?token=SECRET",
        "https://user:SECRET@example.org/models/5?token=SECRET",
        "examplez/?token=SECRET",
    ],
)
def test_a_token_that_was_pasted_along_is_never_shown(text):
    try:
        shown = str(parse(text)) + repr(parse(text))
    except UnknownReferenceError as error:
        shown = str(error)
    assert "SECRET" not in shown


def test_catalog_is_complete_and_spelled_in_one_way():
    entries = catalog()
    assert len(entries) == 5 and all(key == entry.name.casefold() for key, entry in entries.items())
    assert all(entry.reported.naive_ssim < entry.reported.ssim < 1 for entry in entries.values())
