"""Pictures of the documentation, drawn by the library's own code.

``python -m docsite.pictures`` draws those of the concepts anew, into ``docs/figures/concepts``.
"""

from docsite.pictures.concepts import CONCEPTS
from docsite.pictures.paths import method_paths, svg

__all__ = ["CONCEPTS", "method_paths", "svg"]
