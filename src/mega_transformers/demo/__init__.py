"""The page of `mega demo`: what a visitor gives goes to plain functions, and their answers come back as HTML.

`models` loads what serves a tab; `answers` and `reading` compute; `markup` and `chart` draw; `tabs` and `app` are
all that knows gradio.
"""
