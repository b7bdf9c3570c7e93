"""The command `vlds`: its entry, one function per command, help texts, the demo."""
