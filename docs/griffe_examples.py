"""FLA's docstrings say `Example:`, which Google's style knows as `Examples:`."""

import griffe


class Examples(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
