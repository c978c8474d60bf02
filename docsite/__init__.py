"""The documentation site: what is made of the repository when `nox -s docs` builds it. Not part of any package."""
