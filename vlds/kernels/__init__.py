"""Computations of a step that suit a CPU better than torch's own: attention, dropout, norms."""
