"""The demo's worlds of colored shapes, in the publishers' file layouts."""
