"""Computations of a step that suit a CPU better than torch's: attention, dropout, norms, loss."""
