"""The Python interface, in one file for each thing that a user does; `import vlds` names what is
public, and imports a file when one of its names is asked for."""
