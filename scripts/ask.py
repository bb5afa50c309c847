#!/usr/bin/env python3
"""Send a picture to a running service and print the answer, using only the standard library.

Example: python scripts/ask.py http://127.0.0.1:3000 photo.jpg
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SHOWN = 2
# Ignore the environment's proxy: the service usually runs on this machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> int:
    """Return 0 for an answer (with --expect: if it is right at every level), else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="where the service listens, such as http://127.0.0.1:3000")
    parser.add_argument("picture", nargs="?", type=Path, help="a picture file")
    parser.add_argument("--ready", action="store_true", help="only ask whether the service is ready")
    parser.add_argument("--expect", metavar="PATH", help="the right answer, level by level: Fruit/Apple/Granny-Smith")
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if arguments.ready:
        return 0 if is_ready(arguments.address) else 1
    if arguments.picture is None:
        parser.error("give a picture to ask about, or --ready")
    try:
        prediction = predict(arguments.address, arguments.picture)
    except urllib.error.HTTPError as problem:
        print(f"error: {problem.code} {problem.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_levels(prediction)
    if arguments.expect is None:
        return 0
    return 0 if print_verdict(prediction["path"], arguments.expect.split("/")) else 1


def is_ready(address: str) -> bool:
    """Whether the service reports that it is ready."""
    try:
        with OPENER.open(f"{address}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def predict(address: str, picture: Path) -> Any:
    """The answer to the picture's bytes as the body of `POST /v1/predict`."""
    request = urllib.request.Request(
        f"{address}/v1/predict?top_k={SHOWN}",
        data=picture.read_bytes(),
        headers={"Content-Type": "application/octet-stream"},
        method="POST",
    )
    with OPENER.open(request, timeout=60) as response:
        return json.load(response)


def shown(text: str) -> str:
    """A name from the answer, with escapes in place of characters that a terminal obeys."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def print_levels(prediction: Any) -> None:
    """Print each level below the one before it, with its strongest evidence for and against, and the whole sum."""
    for level in prediction["levels"]:
        indent = "    " * (level["level"] - 1)
        print(f"{indent}{shown(level['label'])}  {level['probability']:.1%}")
        for evidence in (*level["evidence"], *level["against"]):
            source = evidence["source"]
            likeness = "looks like" if evidence["similarity"] >= evidence["usual"] else "looks less than usual like"
            print(
                f"{indent}  {evidence['contribution']:+.2f} because {box(evidence['box'])} {likeness} "
                f"{box(source['box'])} of {shown(source['image'])}"
            )
        if level["logit"] is not None:
            print(f"{indent}  {level['prior']:+.2f} prior, {level['rest']:+.2f} rest: score {level['logit']:.2f}")


def print_verdict(predicted: list[str], expected: list[str]) -> bool:
    """Print for each level whether the answer is right; return whether all are."""
    print()
    right = [here == there for here, there in zip(predicted, expected, strict=False)]
    right += [False] * abs(len(predicted) - len(expected))
    for number, good in enumerate(right):
        truth = expected[number] if number < len(expected) else "nothing"
        print(f"level {number + 1}: {'right' if good else 'WRONG'}, it is {truth}")
    return all(right)


def box(corners: list[int]) -> str:
    """Format a box as (left, top)–(right, bottom), in pixels."""
    left, top, right, bottom = corners
    return f"({left}, {top})–({right}, {bottom})"


if __name__ == "__main__":
    raise SystemExit(main())
