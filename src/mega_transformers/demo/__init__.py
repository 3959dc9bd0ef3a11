"""The page of `mega demo`: plain functions take a visitor's input and return HTML.

`models` loads the models; `answers` and `reading` compute; `markup` and `chart` draw; only `tabs` and `app` use
gradio.
"""
