"""How the page looks: ink on paper, one quiet accent, figures that line up. Light and dark."""

from importlib.resources import files

import gradio as gr

_PAPER, _PAPER_DARK = "#faf9f6", "#131517"
_SURFACE, _SURFACE_DARK = "#ffffff", "#1b1e21"
_INK, _INK_DARK = "#1c1f23", "#e9eaec"
_MUTED, _MUTED_DARK = "#5f6670", "#9aa2ab"
_LINE, _LINE_DARK = "#e4e1da", "#2d3237"
_ACCENT, _ACCENT_DARK = "#17665e", "#62c1b4"
_ACCENT_HOVER, _ACCENT_HOVER_DARK = "#0f4f49", "#82d3c8"
_ON_ACCENT_DARK = "#0d1b19"


def theme() -> gr.themes.Base:
    """Gradio's plainest theme in our colours. Its fonts ship with Gradio: nothing is fetched from elsewhere."""
    # Weight 700 and not 600, its default, of which Gradio 6.31 ships half the letters.
    sans = (gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")
    mono = (gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace")
    base = gr.themes.Base(font=sans, font_mono=mono, radius_size="md", spacing_size="md", text_size="md")
    return base.set(
        body_background_fill=_PAPER,
        body_background_fill_dark=_PAPER_DARK,
        body_text_color=_INK,
        body_text_color_dark=_INK_DARK,
        body_text_color_subdued=_MUTED,
        body_text_color_subdued_dark=_MUTED_DARK,
        background_fill_primary=_SURFACE,
        background_fill_primary_dark=_SURFACE_DARK,
        background_fill_secondary=_PAPER,
        background_fill_secondary_dark=_PAPER_DARK,
        border_color_primary=_LINE,
        border_color_primary_dark=_LINE_DARK,
        border_color_accent=_ACCENT,
        border_color_accent_dark=_ACCENT_DARK,
        color_accent=_ACCENT,
        color_accent_soft="#e6f0ee",
        color_accent_soft_dark="#1d2f2d",
        link_text_color=_ACCENT,
        link_text_color_dark=_ACCENT_DARK,
        link_text_color_hover=_ACCENT_HOVER,
        link_text_color_hover_dark=_ACCENT_HOVER_DARK,
        link_text_color_visited=_ACCENT,
        link_text_color_visited_dark=_ACCENT_DARK,
        block_background_fill=_SURFACE,
        block_background_fill_dark=_SURFACE_DARK,
        block_border_color=_LINE,
        block_border_color_dark=_LINE_DARK,
        block_border_width="1px",
        block_shadow="none",
        block_shadow_dark="none",
        block_title_text_color=_MUTED,
        block_title_text_color_dark=_MUTED_DARK,
        block_title_text_size="*text_sm",
        block_title_text_weight="500",
        block_label_text_color=_MUTED,
        block_label_text_color_dark=_MUTED_DARK,
        block_info_text_color=_MUTED,
        block_info_text_color_dark=_MUTED_DARK,
        input_background_fill=_SURFACE,
        input_background_fill_dark="#15181a",
        input_border_color=_LINE,
        input_border_color_dark=_LINE_DARK,
        input_border_color_focus=_ACCENT,
        input_border_color_focus_dark=_ACCENT_DARK,
        input_border_width="1px",
        input_shadow="none",
        slider_color=_ACCENT,
        slider_color_dark=_ACCENT_DARK,
        loader_color=_ACCENT,
        loader_color_dark=_ACCENT_DARK,
        checkbox_background_color_selected=_ACCENT,
        checkbox_background_color_selected_dark=_ACCENT,
        checkbox_border_color_selected=_ACCENT,
        checkbox_border_color_selected_dark=_ACCENT_DARK,
        checkbox_label_background_fill=_SURFACE,
        checkbox_label_background_fill_dark=_SURFACE_DARK,
        checkbox_label_border_width="1px",
        checkbox_label_border_color=_LINE,
        checkbox_label_border_color_dark=_LINE_DARK,
        checkbox_label_shadow="none",
        button_primary_background_fill=_ACCENT,
        button_primary_background_fill_dark=_ACCENT_DARK,
        button_primary_background_fill_hover=_ACCENT_HOVER,
        button_primary_background_fill_hover_dark=_ACCENT_HOVER_DARK,
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark=_ON_ACCENT_DARK,
        button_primary_border_color=_ACCENT,
        button_primary_border_color_dark=_ACCENT_DARK,
        button_secondary_background_fill=_SURFACE,
        button_secondary_background_fill_dark=_SURFACE_DARK,
        button_secondary_border_color=_LINE,
        button_secondary_border_color_dark=_LINE_DARK,
        button_border_width="1px",
    )


def css() -> str:
    """What a theme cannot say."""
    return (files("spaces_app") / "style.css").read_text(encoding="utf-8")
