"""From recipe files to dataclasses: base files, paths, mistakes, trust."""
