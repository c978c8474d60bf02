"""Pictures of the documentation, drawn by the library's own code.

``python -m docsite.pictures`` draws those of the concepts anew, into ``docs/figures/concepts``, and the heat map of the
page that one starts with.
"""

from docsite.pictures.concepts import CONCEPTS
from docsite.pictures.paths import method_paths, svg
from docsite.pictures.start import heat_map

__all__ = ["CONCEPTS", "heat_map", "method_paths", "svg"]
