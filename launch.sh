#!/bin/sh
''':'
# One file, two languages. A shell reads this head, down to the closing quotes:
#   ./launch.sh              sets up and runs the demo
#   ./launch.sh train ...    sets up and is the command `vlds train ...`
# Python takes the head for a string and reads the rest: `deepspeed launch.sh train ...` does that
# once per rank. Keep triple quotes and backslashes out of the head.
# What makes a rank: vlds/runtime/rank_environment.py.
set_by_launchers=${RANK:+r}${WORLD_SIZE:+w}${LOCAL_RANK:+l}${MASTER_ADDR:+a}${MASTER_PORT:+p}
if [ "$set_by_launchers" = rwlap ]; then
    echo "launch.sh: a shell was started as a rank (RANK=$RANK), for example by" >&2
    echo "deepspeed --no_python. Leave --no_python out: deepspeed launch.sh ..." >&2
    echo "(Not a rank? Then unset RANK.)" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
case ${VENV:=.venv} in
    /*) venv=$VENV ;;
    *) venv=$here/$VENV ;;
esac
if [ ! -e "$venv/.installed" ]; then
    case ${1-} in -h | --help | help)
        echo "./launch.sh              install into $VENV, then run the demo: minutes, no GPU needed"
        echo "./launch.sh COMMAND ...  install into $VENV, then run: vlds COMMAND ..."
        echo "Commands and options: README.md; after the first start, ./launch.sh --help."
        exit 0 ;;
    esac
fi
make --silent --no-print-directory -C "$here" venv >&2 || exit 1
[ $# -gt 0 ] || set -- demo
exec "$venv/bin/python" -m vlds "$@"
'''
import sys

if __name__ == "__main__":
    from vlds.__main__ import main

    sys.exit(main())

# The string that a shell sees in the lines above ends here: '
