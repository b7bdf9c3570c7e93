#!/bin/sh
''':'
# One file, two languages. A shell runs this head, down to the closing quotes:
#   ./launch.sh              installs vlds and runs the demo
#   ./launch.sh train ...    installs vlds and runs `vlds train ...`
# To Python the head is a string, and the rest is the program: `deepspeed launch.sh train ...` runs
# it once per rank. So the head must not contain triple quotes or backslashes.
# vlds/runtime/ranks.py says what makes a process a rank.
set_by_launchers=${RANK:+r}${WORLD_SIZE:+w}${LOCAL_RANK:+l}${MASTER_ADDR:+a}${MASTER_PORT:+p}
if [ "$set_by_launchers" = rwlap ]; then
    echo "launch.sh: a shell was started as a rank (RANK=$RANK), for example by" >&2
    echo "deepspeed --no_python. Leave --no_python out: deepspeed launch.sh ..." >&2
    echo "(If this is not a rank, unset RANK.)" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
case ${VENV:=.venv} in
    /*) venv=$VENV ;;
    *) venv=$here/$VENV ;;
esac
if [ ! -e "$venv/.installed" ]; then
    case ${1-} in -h | --help | help)
        echo "./launch.sh              install into $VENV, then run the demo (minutes, no GPU)"
        echo "./launch.sh COMMAND ...  install into $VENV, then run: vlds COMMAND ..."
        echo "README.md lists commands and options; after the install, ./launch.sh --help does."
        exit 0 ;;
    esac
fi
make --silent --no-print-directory -C "$here" venv >&2 || exit 1
[ $# -gt 0 ] || set -- demo
exec "$venv/bin/python" -P -m vlds "$@"
'''
import sys

if __name__ == "__main__":
    from vlds.__main__ import main

    sys.exit(main())

# Ends the string that a shell sees in the lines above: '
