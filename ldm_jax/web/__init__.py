"""The page to play with a model, and to watch one that is training. Gradio is imported by `page` alone."""
