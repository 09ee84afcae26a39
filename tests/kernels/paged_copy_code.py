#!/usr/bin/env python3
"""Checks that the kernels for paged copies access global memory 16 bytes at a time, and no other way.

Usage: paged_copy_code.py PTX FATBIN [CUOBJDUMP]. The machine code is looked at where cuobjdump is
there; where it is not, only the PTX is, and a word says so.
"""
import re
import shutil
import subprocess
import sys

KERNELS = ("TerraceGatherPages", "TerraceScatterPages")
LOADS = 4  # Of a thread, all under way before the first store.


def problems_of(listing, split, access, is_wide):
    """Looks at each kernel of a listing: `split` finds where kernels begin, `access` their accesses."""
    parts = re.split(split, listing)
    found = dict(zip(parts[1::2], parts[2::2]))
    for kernel in KERNELS:
        if kernel not in found:
            yield f"{kernel} is not in it"
            continue
        kinds = []
        for match in access.finditer(found[kernel]):
            if not is_wide(match.group(0)):
                yield f"{kernel}: {match.group(0)} is not of 16 bytes"
            kinds.append(match.group("kind"))
        if len(kinds) < 2 * LOADS:
            yield f"{kernel}: {len(kinds)} accesses of global memory, not {2 * LOADS}"
        elif len(set(kinds[:LOADS])) != 1 or kinds[0] == kinds[LOADS]:
            yield f"{kernel}: a store before the last load: {kinds}"


def ptx_problems(text):
    return problems_of(
        text, r"\.entry (\w+)\(",
        re.compile(r"\b(?P<kind>ld|st|red|atom)\.global[.\w:]*"),
        lambda access: re.search(r"\.v4\.[bufs]32|\.v2\.[bufs]64|\.b128", access))


def sass_problems(text):
    return problems_of(
        text, r"Function : (\w+)",
        re.compile(r"\b(?P<kind>LDG|STG|LD|ST|RED|ATOMG?)\.[.\w]*"),
        lambda access: ".128" in access)


def main():
    if len(sys.argv) not in (3, 4):
        print(__doc__)
        return 2
    with open(sys.argv[1]) as ptx:
        problems = ["PTX: " + problem for problem in ptx_problems(ptx.read())]
    cuobjdump = sys.argv[3] if len(sys.argv) == 4 else shutil.which("cuobjdump")
    if cuobjdump:
        for sm in ("sm_80", "sm_90", "sm_100"):
            listing = subprocess.run([cuobjdump, "-sass", "-arch", sm, sys.argv[2]], check=True,
                                     capture_output=True, text=True).stdout
            problems += [f"SASS of {sm}: {problem}" for problem in sass_problems(listing)]
    print("\n".join(problems) or "wide")
    if problems:
        return 1
    if not cuobjdump:
        print("machine code not looked at: there is no cuobjdump")
    return 0


if __name__ == "__main__":
    sys.exit(main())
