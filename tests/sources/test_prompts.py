"""Which prompts a source has: files of a user, examples of its page, lists that fit it; never one on both sides."""

from dataclasses import asdict, replace
from json import dumps, loads

import pytest

from hswq_hub.settings import PromptSettings
from hswq_hub.sources.errors import PromptsError
from hswq_hub.sources.find import resolve
from hswq_hub.sources.prompts.choose import ENOUGH, Offered, choose
from hswq_hub.sources.prompts.examples import MOST_EXAMPLES, Examples, clean
from hswq_hub.sources.prompts.given import LONGEST_PROMPT, MOST_PROMPTS, GivenPrompts, read_prompts
from hswq_hub.sources.prompts.lists import GENERAL, shipped, style_of
from hswq_hub.sources.prompts.prompts import Prompts, same
from hswq_hub.sources.source import Source
from hswq_runtime.architectures import ARCHITECTURES

PAGE = "its page"
STYLES = (GENERAL, *sorted({style for row in ARCHITECTURES.values() for style in row.prompt_styles.values()}))


@pytest.fixture
def file(tmp_path):
    """Write prompts to a file."""

    def write(name: str, *prompts: str):
        path = tmp_path / name
        path.write_text("\n".join(prompts), encoding="utf-8")
        return path

    return write


def examples(count: int, negative: str | None = None) -> Examples:
    return Examples(tuple(f"example {i}" for i in range(count)), negative, PAGE)


def shares(prompts: Prompts) -> list[list[tuple[int, str]]]:
    return [[(s.count, s.origin) for s in side] for side in (prompts.calibration_from, prompts.evaluation_from)]


@pytest.mark.parametrize("style", STYLES)
def test_lists_hold_what_they_promise(style):
    prompts = shipped(style)
    assert len(prompts.calibration) == (128 if style == GENERAL else 32) and len(prompts.evaluation) == 16
    everything = [*prompts.calibration, *prompts.evaluation]
    assert len({same(prompt) for prompt in everything}) == len(everything)
    assert all(clean(prompt) is not None and len(prompt) <= LONGEST_PROMPT for prompt in everything)


def test_no_list_repeats_another():
    lists = [{*shipped(style).calibration, *shipped(style).evaluation} for style in STYLES]
    assert not any(one & other for i, one in enumerate(lists) for other in lists[:i])


def test_lists_are_written_as_their_users_write():
    for prompts, mark in ((shipped("tags"), ", "), (shipped("pony"), "score_9, score_8_up, score_7_up, ")):
        assert all(mark in prompt for prompt in (*prompts.calibration, *prompts.evaluation))


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("Illustrious", "tags"),
        ("NoobAI", "tags"),
        ("Pony", "pony"),
        ("waiIllustriousSDXL_v160", "tags"),
        ("Illustrious-xl-early-release-v0", "tags"),
        ("noobai-XL-1.1", "tags"),
        ("NoobAIXL", "tags"),
        ("ponyDiffusionV6XL", "pony"),
        ("SDXL 1.0", GENERAL),
        ("ponytails and horses", GENERAL),
        ("juggernautXL", GENERAL),
        ("", GENERAL),
    ],
)
def test_the_family_is_known_by_its_name(name, style):
    assert style_of(ARCHITECTURES["sdxl"], [name]) == style


def test_the_clearest_name_decides_and_another_architecture_has_no_such_families():
    assert style_of(ARCHITECTURES["sdxl"], ["base", "NoobAI", "my-pony"]) == "tags"
    assert {style_of(row, ["Pony V7"]) for row in ARCHITECTURES.values() if not row.prompt_styles} == {GENERAL}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a cat, <lora:detail_v2:0.8>, red hat", "a cat, red hat"),
        ("<lyco:x:1> a cat <hypernet:y:0.5>", "a cat"),
        ("(masterpiece:1.2), ((best quality)), [blurry]", "masterpiece, best quality, blurry"),
        ("(a fox in (deep snow:1.3):1.1)", "a fox in deep snow"),
        (r"frieren \(series\), sousou", "frieren (series), sousou"),
        ("a sign: open at 9:30", "a sign: open at 9:30"),
        ("one BREAK two, break dance", "one, two, break dance"),
        ("line\none\ttwo\x1b[31m", "line one two 31m"),
        ("tags,, ,  here ,", "tags, here"),
        ("a {wild} <arrow>", "a {wild} <arrow>"),
        ("<lora:x:1>", None),
        ("-", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_what_only_a_webui_understands_is_taken_out(written, read):
    assert clean(written) == read


def test_examples_are_few_short_and_each_there_once():
    found = Examples.of([f"picture {i % 100}" for i in range(300)], [], PAGE)
    assert found.prompts == tuple(f"picture {i}" for i in range(MOST_EXAMPLES))
    assert len(Examples.of(["x" * 10**6], [], PAGE).prompts[0]) == LONGEST_PROMPT


def test_the_most_common_negative_prompt_is_taken():
    negatives = ["ugly", "", None, "(blurry:1.4)", "blurry", "  "]
    assert Examples.of([], negatives, PAGE).negative == "blurry"
    assert Examples.of([], ["", None], PAGE).negative is None


def test_every_fourth_example_measures_and_enough_need_no_list():
    found = choose(Offered("tags", examples(40)))
    assert found.evaluation[:10] == tuple(f"example {i}" for i in range(3, 40, 4))
    assert found.calibration == tuple(f"example {i}" for i in range(40) if i % 4 != 3)
    assert shares(found) == [[(30, PAGE)], [(10, PAGE), (6, "the list `tags`")]]
    many = choose(Offered("tags", examples(MOST_EXAMPLES * 2)))
    assert len(many.evaluation) == ENOUGH and len(many.calibration) == 2 * MOST_EXAMPLES - ENOUGH


def test_few_examples_come_first_and_the_list_completes_them():
    found, listed = choose(Offered("pony", examples(6))), shipped("pony")
    own = tuple(f"example {i}" for i in (0, 1, 2, 4, 5))
    assert found.calibration == (*own, *listed.calibration[: ENOUGH - 5])
    assert found.evaluation == ("example 3", *listed.evaluation[: ENOUGH - 1])
    assert shares(found)[0] == [(5, PAGE), (ENOUGH - 5, "the list `pony`")]


@pytest.mark.parametrize("style", STYLES)
def test_without_examples_it_is_the_whole_list(style):
    found = choose(Offered(style))
    assert (found.calibration, found.evaluation) == (shipped(style).calibration, shipped(style).evaluation)


def test_an_example_that_the_list_has_on_the_other_side_is_there_once():
    listed = shipped("tags")
    shown = Examples((listed.evaluation[0], "one", "two", listed.calibration[0].upper()), None, PAGE)
    found = choose(Offered("tags", shown))
    assert not {same(p) for p in found.calibration} & {same(p) for p in found.evaluation}
    assert len(found.calibration) == len(found.evaluation) == ENOUGH and found.notes == ()


def test_files_take_the_place_of_everything_else(file):
    settings = PromptSettings(file("mine.txt", "one", "", "  two "), file("other.txt", "three"))
    found = choose(Offered("tags", examples(40, "ugly")), GivenPrompts.read(settings))
    assert (found.calibration, found.evaluation, found.negative) == (("one", "two"), ("three",), "ugly")
    assert shares(found) == [[(2, "the file mine.txt")], [(1, "the file other.txt")]]


def test_what_a_file_calibrates_with_is_not_measured_on_and_that_is_said(file):
    listed = shipped("tags").evaluation
    given = GivenPrompts.read(PromptSettings(calibration=file("mine.txt", "one", listed[0], f"  {listed[1].upper()}")))
    found = choose(Offered("tags"), given)
    assert found.evaluation == listed[2:]
    assert found.notes == ("2 of the prompts to measure on, which mine.txt calibrates with",)


def test_what_a_file_measures_on_does_not_calibrate_and_that_is_said(file):
    given = GivenPrompts.read(PromptSettings(evaluation=file("mine.txt", "example 0", "another")))
    found = choose(Offered("tags", examples(40)), given)
    assert "example 0" not in found.calibration and len(found.calibration) == 29
    assert found.notes == ("1 of the prompts to calibrate with, which mine.txt measures on",)


@pytest.mark.parametrize("side", ["calibration", "evaluation"])
def test_a_file_that_leaves_nothing_is_refused(file, side):
    listed = shipped("tags")
    path = file("all.txt", *listed.calibration, *listed.evaluation)
    with pytest.raises(PromptsError, match=r"all prompts .* all.txt .*; give others with --"):
        choose(Offered("tags"), GivenPrompts.read(PromptSettings(**{side: path})))


def test_a_prompt_in_both_files_is_refused_and_named(file):
    settings = PromptSettings(file("a.txt", "one", "a red  Fox"), file("b.txt", "A red fox"))
    with pytest.raises(PromptsError, match=r"'A red fox' is in both a.txt and b.txt, .*take it out"):
        GivenPrompts.read(settings)


def test_files_are_read_as_editors_write_them(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\n\r\n  two  \r\n")
    assert read_prompts(path).prompts == ("café", "two")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"cannot be read \(No such file or directory\); name a text file"),
        (b"", "are empty; write one prompt a line"),
        (b" \n\n\t\n", "are empty; write one prompt a line"),
        (b"caf\xe9\n", "are not UTF-8; save them as a UTF-8 text file"),
        (b"ok\n" + b"x" * (LONGEST_PROMPT + 1), "hold one of 2001 characters, 'xxx.*shorten it to 2000"),
        (b"x\n" * (MOST_PROMPTS + 1), "are more than 10000; leave the most typical ones"),
        (bytes(4 * LONGEST_PROMPT * MOST_PROMPTS + 1), "are more than 10000"),
    ],
    ids=["missing", "empty", "blank", "not UTF-8", "long", "many", "huge"],
)
def test_files_that_cannot_be_used(tmp_path, content, sentence):
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PromptsError, match=sentence):
        read_prompts(path)


def test_bounds_are_not_off_by_one(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("\n".join(["x" * LONGEST_PROMPT, *(f"p{i}" for i in range(MOST_PROMPTS - 1))]))
    assert len(read_prompts(path).prompts) == MOST_PROMPTS


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(PromptsError, match="cannot be read"):
        read_prompts(tmp_path)


def test_files_reach_the_source(file):
    source = resolve("demo", prompts=file("a.txt", "one"), evaluation_prompts=file("b.txt", "two"))
    assert (source.prompts.calibration, source.prompts.evaluation) == (("one",), ("two",))
    demo, captions = resolve("demo").prompts, "the demo model's own captions"
    assert shares(demo) == [[(len(side), captions)] for side in (demo.calibration, demo.evaluation)]


def test_a_source_is_the_same_after_it_was_noted():
    offered = Offered("tags", examples(9, "ugly"))
    source = replace(resolve("demo"), offered=offered, prompts=choose(offered))
    again = Source.from_dict(loads(dumps(source.as_dict())))
    assert (again.prompts, again.offered) == (source.prompts, offered)
    assert asdict(again.with_prompts(GivenPrompts()).prompts) == asdict(source.prompts)


@pytest.mark.parametrize("guidance", [0.0, 4.0])
@pytest.mark.parametrize("title", ["sdxl", "z-image", "flux-1-dev", "flux-2-klein-4b"])
def test_a_negative_prompt_is_for_guided_pictures(title, guidance):
    source = resolve("demo")
    row = replace(ARCHITECTURES[title], variants={})

    class Fake:
        architecture, prompts = row, replace(source.prompts, negative="ugly")

    takes = guidance > 0 and title in ("sdxl", "z-image")
    assert Source.negative_prompt(Fake(), guidance) == ("ugly" if takes else None)
