"""The documentation site: sphinx-build -W docs site, after pip install -e ".[train,plots,docs]"."""

import re

import vqjax

project, author = "vqjax", "The vqjax authors"
copyright = "2026, The vqjax authors"
version = release = vqjax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
html_theme = "sphinx_book_theme"
html_title = "vqjax"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "navbar_persistent": []}

# The pages are run by the tests; notebooks by .ci/full.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "activation"}
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_attr_annotations = napoleon_use_rtype = False
# Fields are listed once, with the class, and not again as its members.
napoleon_custom_sections = [("Attributes", "params_style"), "Source", "Variables"]


def setup(app):
    """Leave out of signatures what Flax adds to every module."""

    def without_flax(app, what, name, obj, options, signature, annotation):
        return signature and re.sub(r",? *parent=<flax[^>]*>, name=None", "", signature), annotation

    app.connect("autodoc-process-signature", without_flax)
