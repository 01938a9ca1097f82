"""How the page looks: Gradio's theme, and the HTML of the panels that the page draws itself.

The panels' colours stand in static/page.css. Fonts are the system's, so that nothing is loaded from
outside. Every pair of colours is readable (axe-core checks it).
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
    "button_cancel_background_fill": "#b91c1c",
    "button_cancel_background_fill_hover": "#991b1b",
    "button_cancel_background_fill_dark": "#b91c1c",
    "button_cancel_background_fill_hover_dark": "#dc2626",
    "button_cancel_text_color": "white",
    "button_cancel_text_color_dark": "white",
    "button_primary_background_fill": "#0f766e",
    "button_primary_background_fill_hover": "#115e59",
    "button_primary_background_fill_dark": "#0f766e",
    "button_primary_background_fill_hover_dark": "#0d9488",
    "button_primary_text_color": "white",
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


# -- the panels, which static/panels.js fills ------------------------------------------------------
#
# Gradio reads this HTML as Handlebars and as a JavaScript template: no braces, no backticks.

HEADER = """
<header class="pp-header">
  <h1>PersonaPlex</h1>
  <p>Talk with it as with a person: it listens while it speaks, and you may interrupt.</p>
</header>
"""

STATE = """
<section class="state-card" data-tone="idle" aria-label="State of the call">
  <div class="orb" aria-hidden="true"></div>
  <div class="state-words" role="status">
    <p class="state-headline">One moment</p>
    <p class="state-detail">The page is getting ready.</p>
  </div>
  <dl class="figures">
    <div><dt>Model</dt><dd class="model">–</dd></div>
    <div><dt>Delay</dt><dd class="delay">–</dd></div>
    <div><dt>Dropped</dt><dd class="lost">0</dd></div>
  </dl>
  <div class="meters">
    <div class="meter mic" role="meter" aria-label="Microphone level"
      aria-valuemin="0" aria-valuemax="100" aria-valuenow="0">
      <span aria-hidden="true">You</span><canvas></canvas>
    </div>
    <div class="meter agent" role="meter" aria-label="Speaker level"
      aria-valuemin="0" aria-valuemax="100" aria-valuenow="0">
      <span aria-hidden="true">Agent</span><canvas></canvas>
    </div>
  </div>
  <p class="notice" role="alert" hidden></p>
</section>
"""

CONVERSATION = """
<section class="conversation" aria-label="Conversation">
  <div class="legend">
    <span class="key own">the agent’s own words</span>
    <span class="key given">words it was given</span>
    <span class="key user">you</span>
  </div>
  <div class="log" role="log" tabindex="0" aria-label="Transcript"></div>
  <p class="empty">What is said appears here, word by word.</p>
  <p class="hint" hidden>Your own words are not shown: the transcript needs the recogniser.</p>
  <ol class="queue" aria-label="Waiting to be said" hidden></ol>
</section>
"""

DOWNLOADS = """
<h2 class="pp-caption">Save this conversation</h2>
<p class="pp-caption-note">Made in your browser; the server keeps nothing.</p>
"""
