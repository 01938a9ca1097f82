"""How the page looks: Gradio's theme. Our own colours stand in static/base.css.

Fonts are the system's, so that nothing is loaded from outside. Every pair of colours is readable
(axe-core checks it).
"""

import gradio as gr

THEME = {  # blocks are lines of a form, not boxes
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_border_width_dark": "0px",
    "block_shadow": "none",
    "block_shadow_dark": "none",
    "block_padding": "0px",
    "block_label_background_fill": "none",
    "block_title_background_fill": "none",
    "block_title_background_fill_dark": "none",
    "block_title_padding": "0 0 4px",
    "block_title_text_color": "*neutral_700",
    "block_title_text_color_dark": "*neutral_200",
    "block_title_text_weight": "600",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "body_background_fill": "#f3f6fa",
    "body_background_fill_dark": "#0b1220",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "input_background_fill": "white",
    "input_background_fill_dark": "#0f1829",
    "input_border_width": "1px",
    "input_border_color": "#94a3b8",
    "input_border_color_dark": "#64748b",
    "input_placeholder_color": "#64748b",
    "input_placeholder_color_dark": "#94a3b8",
    "input_shadow": "none",
    "button_secondary_background_fill": "white",
    "button_secondary_background_fill_hover": "#eef2f7",
    "button_secondary_background_fill_dark": "#1e293b",
    "button_secondary_background_fill_hover_dark": "#334155",
    "button_secondary_border_color": "#cbd5e1",
    "button_secondary_border_color_dark": "#475569",
    "button_secondary_shadow": "none",
    "button_secondary_shadow_hover": "none",
    "button_border_width": "1px",
    "button_border_width_dark": "1px",
}


def make_theme() -> gr.themes.Base:
    soft = gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
        radius_size="lg",
    )
    return soft.set(**THEME)
