"""The HTML of what the page draws itself; filled by static/panels.js.

Gradio reads a template in here as Handlebars and as a JavaScript template: no braces, no backticks.
"""

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
