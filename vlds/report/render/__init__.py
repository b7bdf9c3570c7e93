"""How a report looks: page, Markdown, CSV."""
