"""From figures to files: tables, plots, Markdown and one HTML page."""
