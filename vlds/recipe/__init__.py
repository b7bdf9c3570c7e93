"""Recipe files before they become dataclasses: base files, paths, mistakes, trust."""
