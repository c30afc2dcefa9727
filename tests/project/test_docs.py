"""What the repository shows people is what its commands made."""

import json
from pathlib import Path

import pytest
import yaml

from hswq_hub.cards.card import Card, write_catalog_cards
from hswq_hub.evaluation.report import headings, table
from hswq_hub.sources.catalog import catalog
from hswq_hub.sources.find import resolve

ROOT = Path(__file__).parents[2]
SHOWN = ROOT / "model_cards/demo-hswq"


def test_shown_card_is_what_the_card_command_renders_from_its_figures():
    assert (SHOWN / "README.md").read_text() == Card.from_folder(SHOWN).render()


def test_shown_cards_of_the_catalog_are_what_the_card_command_writes(tmp_path):
    written = write_catalog_cards(tmp_path)
    assert len(written) == len(catalog())
    for path in written:
        assert (SHOWN.parent / path.relative_to(tmp_path)).read_text() == path.read_text()


def test_no_other_card_is_shown():
    shown = {path.parent.name for path in SHOWN.parent.glob("*/README.md")}
    assert shown == {SHOWN.name, *(f"{entry.name}-hswq" for entry in catalog().values())}


def test_shown_figures_are_of_the_bundled_model():
    assert json.loads((SHOWN / "hswq.json").read_text())["source"]["sha256"] == resolve("demo").sha256


def test_readme_has_the_figures_of_the_shown_card():
    readme, card = (ROOT / "README.md").read_text(), Card.from_folder(SHOWN)
    for row in (headings(card.evaluation), *table(card.evaluation)):
        assert f"| {' | '.join(row)} |" in readme
    assert card.evaluation.protocol["hardware"] in readme


@pytest.mark.parametrize("document", ["README.md", "docs/spaces.md", "model_cards/demo-hswq/README.md"])
def test_pictures_are_there(document):
    text = (ROOT / document).read_text()
    pictures = [part.split(")")[0] for part in text.split("](")[1:] if part.split(")")[0].endswith(".png")]
    assert pictures
    assert [name for name in pictures if not ((ROOT / document).parent / name).is_file()] == []


def test_the_skill_has_the_front_matter_that_the_format_wants():
    """As of agentskills.io/specification."""
    (skill,) = (ROOT / "skills").glob("*/SKILL.md")
    _, front, body = skill.read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["name"] == skill.parent.name and len(fields["name"]) <= 64
    assert 0 < len(fields["description"]) <= 1024 and 0 < len(fields["compatibility"]) <= 500
    assert fields.keys() <= {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    assert len(body.splitlines()) < 500
