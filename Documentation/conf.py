# SPDX-License-Identifier: GPL-2.0
"""For Sphinx outside of the kernel's tree, where this file does not go: see scripts/doc."""

project = "percpu_ref"
html_title = "Per-CPU reference counts for Rust"
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "fixed_sidebar": True}
html_show_copyright = False
# The kernel marks up the names of functions and documents by itself; here they are plain text.
smartquotes = False
