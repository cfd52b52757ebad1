"""A results file in words: the terminal's table, Markdown, and the page."""
