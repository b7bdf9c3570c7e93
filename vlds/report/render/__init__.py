"""How a report looks: page, picture, Markdown, CSV."""
