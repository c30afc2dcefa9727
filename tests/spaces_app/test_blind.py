"""The blind test: what it says is exact, nothing gives the original away, and no answer counts twice."""

import io
import itertools
import re
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.served_page import Visitor, served

from hswq_hub.evaluation.results import ORIGINAL
from spaces_app.comparison import round as rounds
from spaces_app.comparison.round import PAIRS, Round
from spaces_app.comparison.runs import Run, png
from spaces_app.models.registry import ModelRegistry
from spaces_app.page.blind_view import stage
from spaces_app.page.chance import at_least, at_most
from spaces_app.request import RequestError

pytestmark = pytest.mark.usefixtures("shared_home")


@pytest.fixture
def model():
    return ModelRegistry().model()


def run_of(model, round: Round) -> Run:
    """A run as the worker makes it, of pictures of which one compresses to much less than the other."""
    flat, noisy = np.zeros((64, 64, 3), np.uint8), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return Run(model.reference, round.request(model), {ORIGINAL: png(flat), round.label: png(noisy)}, ())


def is_original(picture: bytes) -> bool:
    return not np.asarray(Image.open(io.BytesIO(picture))).any()


def kinds(picture: bytes) -> list[str]:
    """Of the chunks of a PNG file, each named once."""
    found, at = [], 8
    while at < len(picture):
        found.append(picture[at + 4 : at + 8].decode())
        at += 12 + int.from_bytes(picture[at : at + 4])
    return list(dict.fromkeys(found))


def play(model, strategy) -> Round:
    """Answer ten pairs; strategy: the pair -> 0 or 1."""
    round = Round("demo", "V2")
    while not round.finished:
        round.add(run_of(model, round))
        round.answer(round.shown.number, strategy(round.shown))
    return round


def test_chance_is_counted_exactly():
    """Against all 2^n ways to answer."""
    for asked in (1, 2, 5, 10):
        ways = [sum(way) for way in itertools.product((0, 1), repeat=asked)]
        for right in range(asked + 1):
            more = Fraction(sum(count >= right for count in ways), len(ways))
            fewer = Fraction(sum(count <= right for count in ways), len(ways))
            assert (at_least(right, asked), at_most(right, asked)) == (float(more), float(fewer))


@pytest.mark.parametrize(
    ("right", "share", "verdict"),
    [
        (10, "0.1 %", "That is hardly luck: you can tell V2 from the original."),
        (9, "1.1 %", "That is hardly luck"),
        (8, "5.5 %", "That may well be luck: nothing here shows that you can tell V2 from the original."),
        (7, "17 %", "That may well be luck"),
        (5, "62 %", "That may well be luck"),
        (2, "99 %", "That may well be luck"),
        (1, "99.9 %", "So few are hardly luck either: you can tell the two apart, and took V2 for the original."),
        (0, "100 %", "So few are hardly luck either"),
    ],
)
def test_the_result_is_told_in_plain_words(right, share, verdict):
    text = stage(Round("demo", "V2", right=[True] * right + [False] * (PAIRS - right)))
    assert f"<b>{right} of 10 right</b>" in text
    assert f"Somebody who guesses gets that many or more in {share} of cases. {verdict}" in text
    assert text.count('class="right"') == right and text.count('class="wrong"') == PAIRS - right


def test_who_sees_a_difference_is_right_every_time_and_who_has_it_backwards_never(model):
    assert play(model, lambda pair: int(is_original(pair.pictures[1]))).right == [True] * PAIRS
    assert play(model, lambda pair: int(is_original(pair.pictures[0]))).right == [False] * PAIRS


def test_which_comes_first_is_by_chance_and_so_is_the_seed(model):
    firsts, seeds = [], set()
    for _ in range(20):
        round = Round("demo", "V2")
        for _ in range(PAIRS):
            run = run_of(model, round)
            seeds.add(run.request.seed)
            firsts.append(is_original(round.add(run).pictures[0]))
    assert 60 < sum(firsts) < 140, "one in ten million runs of this test is outside"
    assert len(seeds) > 195


def test_nothing_but_the_pixels_tells_the_pictures_apart(model):
    """Files of one length without any metadata; HTML of which the halves are equal once number and picture are out."""
    round = Round("demo", "V2")
    pair = round.add(run_of(model, round))
    one, other = pair.pictures
    assert len(one) == len(other)
    assert [kinds(picture) for picture in pair.pictures] == [["IHDR", "IDAT", "IEND"]] * 2
    assert one[:33] == other[:33], "size and kind"
    text = stage(round)
    words = re.sub('base64,[^"]*', "", text)
    assert not [word for word in ("V2", "demo", "seed", "variant", "quantized", 'title="V') if word in words]
    assert words.count("original") == words.count("is the original")
    left, right = text.split('<div class="side">')[1:]
    sides = []
    for number, half in enumerate((left, right.split('<p class="fine">')[0]), 1):
        before, data = half.split("base64,")
        sides.append(
            (before + data.split('"', 1)[1]).replace(f"Picture {number}", "N").replace(f'choose="{number}"', "N")
        )
    assert sides[0] == sides[1].removesuffix("</div>")


def test_an_answer_counts_once_and_only_for_the_pair_that_is_shown(model):
    round = Round("demo", "V2")
    round.answer(1, 0)
    assert round.right == [], "nothing is shown yet"
    for _ in range(3):
        round.add(run_of(model, round))
    for number, picture in ((2, 0), (0, 1), (1, 2), (1, -1), (1, None)):
        round.answer(number, picture)
    assert round.right == []
    round.answer(1, 0)
    round.answer(1, 0)
    assert len(round.right) == 1 and round.shown.number == 2


def test_two_pairs_are_made_ahead_and_never_more_than_ten(model):
    round = Round("demo", "V2")
    while round.wanted:
        round.add(run_of(model, round))
    assert round._made == 3
    while not round.finished:
        round.answer(round.shown.number, 0)
        while round.wanted:
            round.add(run_of(model, round))
    assert round._made == PAIRS and round._pairs == {}


def test_without_the_original_it_says_so(model):
    bare = SimpleNamespace(files={"V1": None, "V2": None}, limits=model.limits, examples=model.examples)
    with pytest.raises(RequestError, match="without the original"):
        Round("demo", "V2").request(bare)
    with pytest.raises(RequestError, match="there is no variant"):
        Round("demo", "/etc/passwd").request(model)


def test_pairs_are_the_variants_of_one_seed(model):
    round = Round("demo", "INT8")
    request = round.request(model)
    assert request.variants == (ORIGINAL, "INT8") and request.prompt == model.examples[0]
    assert (request.steps, request.size) == (model.limits.steps, model.limits.size)


def completed(visitor: Visitor) -> dict:
    (end,) = (message for message in visitor.messages() if message["msg"] == "process_completed")
    return end


def test_programs_that_send_nonsense_get_no_further(tmp_path_factory):
    """To the functions behind the buttons, as they are served."""
    with served(tmp_path_factory.mktemp("served")) as page:
        visitor = Visitor(page.url)
        functions = visitor.functions()
        names = [
            name
            for name in functions
            if name in ("_begin_1", "_choose", "_choose_1", "_prepare", "_prepare_1", "_stop")
        ]
        assert len(names) == 6
        for name in names:
            for data in (
                [],
                [None],
                ["demo", "/etc/passwd"],
                [{"path": "/etc/passwd"}, None],
                [None, {"right": [True] * 10}],
            ):
                visitor.join(data, functions[name])
                text = str(completed(visitor))
                assert "root:" not in text and "10 of 10" not in text
        visitor.ask("a star", steps=1)
        assert completed(visitor)["success"], "it goes on"


def test_the_order_is_not_a_generators_that_a_seed_repeats(monkeypatch, model):
    asked = []
    monkeypatch.setattr(rounds.secrets, "randbelow", lambda below: asked.append(below) or 0)
    round = Round("demo", "V2")
    round.add(run_of(model, round))
    assert asked == [2**32, 2]
