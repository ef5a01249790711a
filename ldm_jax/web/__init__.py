"""The page to play with a model, and to watch one that is training.

`page` is made of Gradio's components, and `server` serves it; the others do not need Gradio.
"""
