"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import isolib

project = "isolib"
author = "The isolib authors"
project_copyright = "The isolib authors"
release = version = isolib.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["README.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# A docstring's `name` is a link to that name, and a link that leads nowhere is an error. What others have documented is theirs.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!isolib\b).*"),
    (r"py:.*", r"isolib\.confine(\..*)?"),  # a part to come
    (r"py:.*", r"isolib\._kernel\..*"),  # private: shown where a signature says so, described in the sources
    (r"py:.*", r"isolib\.unionfs\.(archive|disk|drivers|images|overlays|store)\..*"),  # the same
    (r"py:class", r"isolib\.(namespaces\.handle\.NamespaceT|spec\.SandboxFields)"),  # a type variable, keyword arguments
]

# Two parts have a class of one name, as History and Limits: what a signature means is said by its page.
suppress_warnings = ["ref.python"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"isolib {release}"
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False
