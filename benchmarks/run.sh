#!/usr/bin/env bash
# All benchmarks, in an environment of their own, one after the other; goes on where it was interrupted.
# Usage: benchmarks/run.sh [NAME ...]   (such as: benchmarks/run.sh tabular_search)
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-bench
python=.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
ready=$venv/.ready
if [ ! -e "$ready" ] || [ pyproject.toml -nt "$ready" ]; then
    "$python" -m venv "$venv"
    "$venv/bin/pip" install -q --upgrade pip
    "$venv/bin/pip" install -q 'torch>=2.13,<2.14'
    # The bound again: what the other libraries pull in must not bring another torch.
    "$venv/bin/pip" install -q 'torch>=2.13,<2.14' -e '.[multiobjective,tables,mnist1d,bench]'
    touch "$ready"
fi

all="import_time tabular_search supernet_step workers pc_darts_step search_step"
names=${*:-$all}
results=benchmarks/results
unfinished=$results/.unfinished
export OMP_NUM_THREADS=1

mkdir -p "$results"
if [ $# -gt 0 ]; then
    for name in $names; do rm -f "$results/$name.json"; done
elif [ ! -e "$unfinished" ]; then  # the last run was complete: this is a new one
    rm -f "$results"/*.json
    touch "$unfinished"
fi
for name in $names; do
    if [ -e "$results/$name.json" ]; then
        echo "$name: done already"
    else
        echo "$name ..."
        "$venv/bin/python" "benchmarks/$name.py"
    fi
done
if [ $# -gt 0 ]; then
    exec "$venv/bin/python" benchmarks/table.py
fi
rm -f "$unfinished"
exec "$venv/bin/python" benchmarks/table.py --page docs/speed.md
