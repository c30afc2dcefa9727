"""hswq.json read into types: nothing is lost, and what does not belong there is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hswq_hub.cards.record import PublishedRecord
from hswq_hub.quantization.plan import Decision, Plan
from hswq_runtime.architectures import ARCHITECTURES
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format

SHOWN = Path(__file__).parents[2] / "model_cards/demo-hswq"
DOCUMENT = json.loads((SHOWN / "hswq.json").read_text())
ROW = DOCUMENT["layers"]["v1"][0]


def test_a_plan_survives_json():
    rows = [Decision.from_row(row) for row in DOCUMENT["layers"]["v1"]]
    folded = replace(rows[0], fold=((4, -2), (12, 0)))
    plan = Plan(Format.V1, "measured", (folded, *rows[1:]))
    assert Plan.from_rows(Format.V1, "measured", json.loads(json.dumps(plan.as_rows()))) == plan


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (ROW | {"colour": "red"}, "unknown key 'colour'"),
        ({name: value for name, value in ROW.items() if name != "layer"}, "lacks the key 'layer'"),
        (ROW | {"scale": "1"}, "'scale' cannot be"),
        (ROW | {"layer": None}, "'layer' cannot be"),
        (ROW | {"fold": [[1]]}, "'fold' cannot be"),
        ([], "has to be an object"),
    ],
    ids=["unknown", "missing", "number", "text", "fold", "list"],
)
def test_a_row_that_is_none_is_named(row, sentence):
    with pytest.raises(FormatError, match=sentence):
        Decision.from_row(row)


def test_a_record_gives_what_is_in_the_folder():
    record = PublishedRecord.load(SHOWN)
    assert record.plans[Format.V2].as_rows() == [row | {"fold": ()} for row in DOCUMENT["layers"]["v2"]]
    assert record.files[Format.V1].bytes == DOCUMENT["files"]["v1"]["bytes"]
    assert [example.worst for example in record.examples] == [row["worst"] for row in DOCUMENT["examples"]]
    assert (record.licence, record.recipe, record.base) == ("apache-2.0", "measured", None)


@pytest.mark.parametrize("model", [m for row in ARCHITECTURES.values() for m in row.models], ids=lambda m: m.title)
def test_the_base_says_which_variant_it_is(model):
    record = PublishedRecord.from_document(DOCUMENT | {"architecture": model.name, "base": model.base_repo})
    assert record.architecture.title == model.title


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("repo", None), ("architecture", "x"), ("base", 1), ("source", None), ("recipe", []), ("files", {"v9": {}}),
        ("files", {"v1": {}}), ("layers", []), ("layers", {"v1": [{}]}), ("examples", [{}]), ("contents", "all"),
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_is_none_is_refused(key, value):
    with pytest.raises(FormatError):
        PublishedRecord.from_document(DOCUMENT | {key: value})


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(FormatError, match="is no folder that"):
        PublishedRecord.load(tmp_path)
