"""Comparison sheets: what differs is visible, and nothing else is."""

import numpy as np

from hswq_hub.evaluation.pictures import amplification, comparison, difference

GREY = np.full((32, 32, 3), 100, np.uint8)


def with_spot(value):
    image = GREY.copy()
    image[10:12, 20:22, 0] = value  # red alone, a colour that no grey label has
    return image


def test_difference_is_black_where_pictures_agree_and_bright_where_not():
    found = difference(GREY, with_spot(97), 16)
    assert found[10, 20].tolist() == [48, 0, 0]
    assert found.astype(int).sum() == 4 * 48


def test_difference_neither_wraps_nor_depends_on_the_sign():
    assert difference(GREY, with_spot(0), 16).max() == 255
    assert np.array_equal(difference(GREY, with_spot(103), 8), difference(with_spot(103), GREY, 8))


def test_amplification_fits_the_largest_difference():
    noise = np.random.default_rng(0).integers(-10, 11, GREY.shape)
    factor = amplification(GREY, [(GREY + noise).astype(np.uint8)])
    assert factor == 16, "10 · 16 = 160 fits into 255, 10 · 32 does not"
    assert amplification(GREY, [GREY]) == 64


def test_sheet_shows_every_picture_and_under_each_its_difference():
    page = np.asarray(comparison({"original": GREY, "V1": with_spot(90), "V2": GREY}))
    spots = np.argwhere((page == [90, 100, 100]).all(axis=-1))
    assert len(spots) == 4 * 8 * 8, "enlarged eight times, pixel for pixel"
    black = (page == 0).all(axis=-1).sum()
    assert black == (2 * 32 * 32 - 4) * 64, "two differences, the first with a spot of four pixels"
