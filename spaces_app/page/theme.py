"""How the page looks: ink on paper, one quiet accent, figures that line up. Light and dark."""

from importlib.resources import files

import gradio as gr

_PAPER = ("#faf9f6", "#131517")
_SURFACE = ("#ffffff", "#1b1e21")
_INK = ("#1c1f23", "#e9eaec")
_MUTED = ("#5f6670", "#9aa2ab")
_LINE = ("#e4e1da", "#2d3237")
_ACCENT = ("#17665e", "#62c1b4")
_ACCENT_HOVER = ("#0f4f49", "#82d3c8")
_ON_ACCENT = ("#ffffff", "#0d1b19")
"""Each by day and by night."""


def theme() -> gr.themes.Base:
    """Gradio's plainest theme in our colours. Its fonts ship with Gradio: nothing is fetched from elsewhere."""
    # Weight 700 and not 600, its default, of which Gradio 6.31 ships half the letters.
    sans = (gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")
    mono = (gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace")
    base = gr.themes.Base(font=sans, font_mono=mono, radius_size="md", spacing_size="md", text_size="md")
    both = _light_and_dark(
        body_background_fill=_PAPER,
        body_text_color=_INK,
        body_text_color_subdued=_MUTED,
        background_fill_primary=_SURFACE,
        background_fill_secondary=_PAPER,
        border_color_primary=_LINE,
        border_color_accent=_ACCENT,
        color_accent_soft=("#e6f0ee", "#1d2f2d"),
        link_text_color=_ACCENT,
        link_text_color_hover=_ACCENT_HOVER,
        link_text_color_visited=_ACCENT,
        block_background_fill=_SURFACE,
        block_border_color=_LINE,
        block_shadow=("none", "none"),
        block_title_text_color=_MUTED,
        block_label_text_color=_MUTED,
        block_info_text_color=_MUTED,
        input_background_fill=(_SURFACE[0], "#15181a"),
        input_border_color=_LINE,
        input_border_color_focus=_ACCENT,
        slider_color=_ACCENT,
        loader_color=_ACCENT,
        checkbox_background_color_selected=(_ACCENT[0], _ACCENT[0]),
        checkbox_border_color_selected=_ACCENT,
        checkbox_label_background_fill=_SURFACE,
        checkbox_label_border_color=_LINE,
        button_primary_background_fill=_ACCENT,
        button_primary_background_fill_hover=_ACCENT_HOVER,
        button_primary_text_color=_ON_ACCENT,
        button_primary_border_color=_ACCENT,
        button_secondary_background_fill=_SURFACE,
        button_secondary_border_color=_LINE,
    )
    return base.set(
        **both,
        color_accent=_ACCENT[0],
        block_border_width="1px",
        block_title_text_size="*text_sm",
        block_title_text_weight="500",
        input_border_width="1px",
        input_shadow="none",
        checkbox_label_border_width="1px",
        checkbox_label_shadow="none",
        button_border_width="1px",
    )


def _light_and_dark(**settings: tuple[str, str]) -> dict[str, str]:
    """Gradio's arguments for settings that are one thing by day and another by night."""
    light = {name: value for name, (value, _) in settings.items()}
    return light | {f"{name}_dark": value for name, (_, value) in settings.items()}


def css() -> str:
    """Rules that a Gradio theme cannot express."""
    return (files("spaces_app.page") / "style.css").read_text(encoding="utf-8")
