"""The card: what the Hub accepts, what a stranger reads, and nothing that nobody measured."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt
from support.hub_server import HubServer

from hswq_hub.cards.card import Card, card_of, write_card
from hswq_hub.cards.record import PublishedRecord
from hswq_hub.evaluation.results import ORIGINAL
from hswq_hub.sources.catalog import catalog
from hswq_hub.sources.errors import UnknownReferenceError
from hswq_hub.sources.permissions import Permissions
from hswq_runtime.errors import FormatError

SHOWN = Path(__file__).parents[2] / "model_cards/demo-hswq"
ENTRY = next(iter(catalog().values()))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The real client asks this server."""
    with HubServer() as server:
        server.adopt(monkeypatch, tmp_path / "hf")
        yield server


def demo() -> Card:
    return Card.from_folder(SHOWN)


def changed(card: Card = None, source: dict | None = None, **record) -> Card:
    """The demo model's card with other facts in its record."""
    card = card or demo()
    document = {**card.record.document, **record, "source": {**card.record.source, **(source or {})}}
    return replace(card, record=PublishedRecord.from_document(document))


def from_civitai() -> Card:
    permissions = Permissions(False, ("Image",), True, False)
    source = {
        "origin": f"{ENTRY.name} on Civitai", "reference": ENTRY.reference, "url": ENTRY.url, "version": "v8",
        "creator": "someone", "creator_url": "https://civitai.com/user/someone", "nsfw": True,
        "permissions": permissions.__dict__, "permission_lines": permissions.lines(),
    }  # fmt: skip
    return changed(
        source=source, base="Tongyi-MAI/Z-Image-Turbo", repo="alice/wild-hswq", licence="other",
        licence_name="faipl-1.0-sd", licence_link="https://freedevproject.org/faipl-1.0-sd/", quantized_by="alice",
    )  # fmt: skip


def with_one_format(version: str) -> Card:
    record = demo().record.document
    return changed(files={version: record["files"][version]}, layers={version: record["layers"][version]})


def front(card: Card) -> dict:
    return yaml.safe_load(card.render().split("---\n")[1])


CARDS = {
    "demo": demo,
    "civitai": from_civitai,
    "hub": lambda: changed(source={"repo": "owner/finetune", "layout": "diffusers"}, repo="alice/x", base="owner/base"),
    "no licence": lambda: changed(licence=None),
    "other, with its text": lambda: changed(licence="other", licence_name="bespoke"),
    "v1": lambda: with_one_format("v1"),
    "v2": lambda: with_one_format("v2"),
    **{name: lambda entry=entry: Card.from_catalog(entry) for name, entry in catalog().items()},
}


@pytest.mark.parametrize("name", CARDS)
def test_the_hub_accepts_it(hub, name):
    text = CARDS[name]().render()
    ModelCard(text).validate()
    assert not re.search(r"\{\{|\{%|\bNone\b|undefined|\bnan\b|\n\n\n", text)


def test_the_check_refuses_what_the_hub_refuses(hub):
    text = from_civitai().render()
    for there, instead in [
        ("license: other", "license: my-own"),
        ("license_name: ", "licence_name: "),
        ("- Tongyi-MAI/", "- "),
    ]:
        with pytest.raises(ValueError):
            ModelCard(text.replace(there, instead, 1)).validate()


def test_front_matter_is_complete():
    data = front(from_civitai())
    assert data["base_model"] == ["Tongyi-MAI/Z-Image-Turbo"] and data["base_model_relation"] == "quantized"
    assert (data["license"], data["license_name"]) == ("other", "faipl-1.0-sd")
    assert data["quantized_by"] == "alice"
    assert {"hswq", "fp8", "comfyui", "z-image", "not-for-all-audiences"} <= set(data["tags"])
    assert (
        data["thumbnail"] == f"https://huggingface.co/alice/wild-hswq/resolve/main/{data['widget'][0]['output']['url']}"
    )
    assert all((SHOWN / example["output"]["url"]).is_file() for example in data["widget"])


def test_what_nobody_knows_is_absent():
    data = front(changed(licence=None))
    assert not {"license", "base_model", "base_model_relation", "quantized_by", "thumbnail"} & data.keys()
    assert "comfyui" not in front(CARDS["hub"]())["tags"], "nobody tried that"


def test_a_licence_without_an_id_leads_to_its_text():
    data = front(CARDS["other, with its text"]())
    assert data["license_link"] == "LICENSE" and "[`bespoke`](LICENSE)" in CARDS["other, with its text"]().render()


def test_figures_survive_the_clients_own_reading():
    card = demo()
    read = ModelCard(card.render()).data
    assert [(r.metric_type, r.metric_value) for r in read.eval_results] == [
        ("ssim", round(variant.ssim_mean, 4)) for variant in card.published
    ]
    assert len({r.metric_name for r in read.eval_results}) == len(card.published)
    name, again = model_index_to_eval_results(eval_results_to_model_index(read.model_name, read.eval_results))
    assert (name, again) == (card.record.repo, read.eval_results)


def test_the_verdict_comes_first():
    card, body = demo(), demo().render().split("---\n", 2)[2]
    verdict = body.split("\n## ")[0]
    for variant in (card.best, *card.baselines, *card.published):
        assert f"{variant.ssim_mean:.4f}" in verdict and f"{variant.ssim_worst:.4f}" in verdict
    assert f"SSIM {card.best.ssim_mean:.4f}" in verdict.split("**")[1]
    assert card.images[0] in verdict


def test_every_row_of_the_protocol_is_there():
    card, text = demo(), demo().render()
    protocol = card.evaluation.protocol
    for fact in (protocol["hardware"], protocol["dtype"], protocol["ssim"], *protocol["versions"].values()):
        assert fact in text
    for pair in card.original.pairs:
        assert f"| {pair.prompt} | {pair.seed} |" in text
    assert any(example.worst for _, example in card.sheets[:2]), "not among the folded ones"


def test_layers_kept_in_one_file_only_say_so():
    card = demo()
    rows = [dict(row) for row in card.record.document["layers"]["v2"]]
    one = next(row for row in rows if row["reason"].startswith("never"))
    one["number_format"] = "fp8_e4m3fn"
    card = changed(layers=card.record.document["layers"] | {"v2": rows})
    kept = next(kept for kept in card.kept if kept.layer == one["layer"])
    assert kept.reasons[0] and kept.reasons[1] == "FP8"
    assert f"| `{kept.layer}` | {kept.reasons[0]} | FP8 |" in card.render()


@pytest.mark.parametrize(("version", "other"), [("v1", "V2"), ("v2", "V1")])
def test_a_file_that_is_not_published_is_not_offered(version, other):
    body = with_one_format(version).render().split("---\n", 2)[2]
    assert f"-hswq-{other.lower()}.safetensors" not in body and f'variant="{other.lower()}"' not in body


def test_source_creator_and_permissions():
    text = from_civitai().render()
    for line in ("use without credit: no", "share derivatives: yes", "commercial use: sell images made with it"):
        assert f"  - {line}\n" in text
    assert f"[{ENTRY.name.replace('_', chr(92) + '_')} on Civitai]({ENTRY.url}), version v8" in text
    assert "[someone](https://civitai.com/user/someone)" in text
    assert demo().record.source["sha256"] in text


def test_a_strangers_text_stays_text():
    name = "](https://evil.example) <script>alert(1)</script> | **x**"
    text = changed(source={"origin": name, "version": name, "creator": name}).render()
    assert "<script>" not in text and "](https://evil.example)" not in text and "**x**" not in text


@pytest.mark.parametrize("make", [from_civitai, lambda: Card.from_catalog(ENTRY)], ids=["measured", "not measured"])
def test_upstreams_figures_are_under_their_own_heading(make):
    """And nowhere else: not in the front matter, not beside ours."""
    before, section = make().render().split("## Reported upstream\n")
    section, after = section.split("\n## ", 1)
    figures = ENTRY.reported
    for figure in (figures.ssim, figures.naive_ssim, figures.latent_mse):
        assert f"{figure:.4f}" in section and f"{figure:.4f}" not in before + after


def test_without_figures_of_ours_it_says_so():
    card = Card.from_catalog(ENTRY)
    front_matter, body = card.render().split("---\n", 2)[1:]
    assert "**Not yet measured here.**" in body.split("\n## ")[0]
    assert "model-index" not in front_matter and "widget" not in front_matter
    assert "SSIM" not in body.split("## Reported upstream")[0] and "PSNR" not in body and ORIGINAL not in body
    assert f"hswq-hub publish {ENTRY.name}\n" in body
    assert not re.search(r"\.safetensors|from_pretrained", body), "there is no file yet"


def test_what_has_no_card(tmp_path):
    with pytest.raises(UnknownReferenceError, match="hswq-hub models"):
        card_of("nobody_v1")
    with pytest.raises(FormatError, match="is no folder that"):
        card_of(str(tmp_path))
    for name in ("metrics.json", "hswq.json"):
        (tmp_path / name).write_text((SHOWN / name).read_text())
    with pytest.raises(FormatError, match="lacks what the card needs"):
        write_card(tmp_path)  # its pictures are gone


HOSTILE = (
    "# <img src=x onerror=alert(1)>",
    "](https://evil.example) [a](https://evil.example)",
    "`` ` ``` ~~~ <script>",
    "a\n\n---\n\n# b\n```\n<b>\n- x: y",
    "https://evil.example www.evil.example",
    "x |<img src=x>| y",
    "\x1b]0;title\x07 \u202e &lt;i&gt;",
    "{{ card }} }} %} \\url{x} \\",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_strangers_name_is_text_wherever_it_stands(hub, text):
    rows = [dict(row) for row in demo().record.document["layers"]["v1"]]
    kept = next(row for row in rows if row["reason"].startswith("never"))
    kept["layer"] = text
    examples = [{**example, "prompt": text} for example in demo().record.document["examples"]]
    files = {name: {**facts, "file": text} for name, facts in demo().record.document["files"].items()}
    strange = dict.fromkeys(("origin", "version", "creator", "file", "sha256", "url", "creator_url"), text)
    card = changed(
        source=strange, name=text, repo=f"alice/{text}", base=text, licence="other", licence_name=text,
        licence_link=text, quantized_by=text, command=text, examples=examples, files=files, bundled=[text],
        layers={**demo().record.document["layers"], "v1": rows},
    )  # fmt: skip
    for shown in (card, replace(card, evaluation=None)):
        rendered = shown.render()
        assert rendered.replace("\n", "").isprintable()
        _, head, body = re.split(r"^---$", rendered, maxsplit=2, flags=re.MULTILINE)
        stated = yaml.safe_load(head)
        said = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        assert stated["license_name"] == said and stated["quantized_by"] == said
        assert {"license", "tags", "library_name"} <= stated.keys() <= set(shown.metadata.to_dict())
        ModelCard(rendered)
        page, usual = (MarkdownIt("commonmark").enable("table").render(part) for part in (body, ordinary(shown)))
        found, own = (Counter(re.findall(r"<[/!?]?[a-zA-Z0-9]+", part)) for part in (page, usual))
        assert found.keys() <= own.keys(), "HTML of a stranger"
        assert found["<h1"] == own["<h1"] == 1 and found["<a"] <= own["<a"] + 2 and found["<img"] == own["<img"]
        for target in re.findall(r'(?:href|src)="([^"]*)"', page):
            assert "evil.example" not in target or text[:8] in ("https://", "](https:")


def ordinary(card: Card) -> str:
    """The body of the same card without anything strange in it."""
    usual = replace(from_civitai(), evaluation=card.evaluation)
    return usual.render().split("---\n", 2)[2]
