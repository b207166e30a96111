#!/usr/bin/env bash
# Build the wheel through an sdist, install it into a new environment, and use it from another folder: finds files that
# were left out of the wheel and imports that work only inside the repository. Usage: smoke_test.sh PYTHON
set -euo pipefail

python=$(realpath --no-symlinks "$1")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"
export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt  # relative: pip splits them at spaces
unset PYTHONPATH

echo "building the wheel"
"$python" -m build --outdir "$work/dist" "$root" > "$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }

echo "installing it into a new environment"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check --quiet --quiet install "$work"/dist/*.whl

echo "using it from another folder"
mkdir "$work/elsewhere"
cd "$work/elsewhere"
"$work/venv/bin/python" - "$root" "$work/venv" << 'PYTHON'
import sys
from pathlib import Path

import moesim
from moesim import configs

root, environment = Path(sys.argv[1]), Path(sys.argv[2])
package = Path(moesim.__file__).resolve().parent
assert package.is_relative_to(environment.resolve()), f"{package} is not the installed package"

suffixes = {".yaml", ".npz", ".parquet", ".json"}
written, shipped = (
    {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in suffixes}
    for folder in (root / "configs", Path(configs.__file__).parent)
)
assert shipped == written, f"in the repository or in the wheel, but not in both: {sorted(shipped ^ written)}"
assert (package / "py.typed").is_file(), "py.typed is missing"
PYTHON
"$work/venv/bin/moesim" --version
"$work/venv/bin/moesim" models list --json | "$python" -m json.tool > /dev/null
"$work/venv/bin/moesim" simulate --num-requests 5 --json | "$python" -m json.tool > /dev/null
echo "the wheel works"
