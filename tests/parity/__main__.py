"""`python -m tests.parity DIR...`: print the largest error per tensor; exit 1 on any miss."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.parity.runner import KEY_LISTS, UnknownCaseError, run_case


def main(folders: list[str]) -> int:
    if not folders:
        print("usage: python -m tests.parity DIR...", file=sys.stderr)
        return 2
    missed = 0
    for folder in map(Path, folders):
        if folder.name == KEY_LISTS:
            print(f"{folder}: skipped, it lists keys of published models and is no case")
            continue
        try:
            results = run_case(folder.resolve())
        except UnknownCaseError as error:
            print(f"{folder}: MISS {error}")
            missed += 1
            continue
        for result in results:
            word = "ok  " if result.passed else "MISS"
            print(
                f"{folder.name}: {word} {result.name} {result.error:.3g} {result.remark}".rstrip()
            )
        missed += sum(not result.passed for result in results) + (not results)
    print(f"{missed} missed" if missed else "all recorded tensors agree")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
