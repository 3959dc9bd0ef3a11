"""The style of the page, for wide and narrow screens, light and dark. System fonts only."""

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACED = ("ui-monospace", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { width: 100%; min-width: 0; }
.gradio-container > .main { max-width: 60rem !important; margin: 0 auto !important; padding: 1rem !important; }
.gradio-container *:focus-visible { outline: 3px solid var(--accent) !important; outline-offset: 2px; }
.gradio-container .gallery-item:focus-visible { outline-offset: -3px; }
.gradio-container { --accent: #0f766e; --bar: #99f6e4; --edge: #cbd5e1; --quiet: #526077; --wrong: #b91c1c; }
.dark .gradio-container, .gradio-container.dark { --accent: #2dd4bf; --bar: #115e59; --edge: #3f4b5f;
  --quiet: #a3b1c6; --wrong: #fca5a5; }
.html-container { padding: 0 !important; }
.head h1 { font-size: clamp(1.5rem, 5vw, 2rem); font-weight: 700; margin: 1rem 0 .25rem; }
.head a { margin: 0; padding: 0; }
.head p { font-size: 1.05rem; line-height: 1.55; margin: 0; }
.head p.quiet, .quiet { color: var(--quiet); font-size: .9rem; margin-top: .35rem; }
.tab-container button.selected { color: var(--accent) !important; }
.why { overflow-wrap: anywhere; }
.answer { min-height: 2rem; overflow-wrap: anywhere; }
.answer h3 { font-size: .9rem; font-weight: 600; color: var(--quiet); margin: 0 0 .4rem; }
.answer .text { font-size: 1.15rem; line-height: 1.65; white-space: pre-wrap; margin: .25rem 0 1rem; }
.answer mark { background: var(--bar); color: inherit; border-radius: .25rem; padding: .05rem .3rem; }
.mistake { color: var(--wrong); border-left: 4px solid var(--wrong); padding: .35rem .75rem; margin: .5rem 0; }
.answer .note { color: var(--quiet); font-size: .9rem; margin: .5rem 0; }
.answer .result { font-size: 1.1rem; margin: .5rem 0 1rem; }
.groups { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
ol.bars { list-style: none; margin: 0; padding: 0; display: grid; gap: .35rem; }
ol.bars li { margin: 0; }
.bar { display: flex; justify-content: space-between; gap: 1rem; width: 100%; min-height: 2.5rem;
  align-items: center; padding: .45rem .7rem; text-align: left; font-size: 1rem;
  border: 1px solid var(--edge); border-radius: .4rem;
  background: linear-gradient(var(--bar), var(--bar)) left / var(--p) 100% no-repeat; color: inherit; }
button.bar { cursor: pointer; }
button.bar:hover { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
.bar b { font-weight: 600; } .bar span { font-variant-numeric: tabular-nums; }
.scale { display: flex; justify-content: space-between; color: var(--quiet); font-size: .75rem;
  padding: .2rem .1rem 0; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.charts figure { margin: 0; } .charts svg { width: 100%; height: auto; display: block; }
.answer table { border-collapse: collapse; margin: .75rem 0; border: 0 !important; overflow-wrap: normal; }
.answer tr { border: 0 !important; background: none !important; }
.answer table.pairs { width: 100%; }
.answer th, .answer td { border: 0 !important; border-bottom: 1px solid var(--edge) !important;
  padding: .45rem .35rem; }
.answer .pairs th { font-weight: 600; text-align: left; width: 40%; }
.answer .pairs td { font-family: var(--font-mono); }
.answer .numbers { width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
.answer .numbers th { font-weight: 600; color: var(--quiet); } .answer .numbers * { text-align: right; }
@media (max-width: 480px) { .tab-container button { padding: 0 .4rem !important; font-size: .85rem !important; } }
footer { display: none !important; }
"""
