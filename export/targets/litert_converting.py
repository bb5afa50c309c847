"""Converts a torch.export file to LiteRT: python litert_converting.py MODEL.pt2 MODEL.tflite

It runs in the environment of `export.targets.converters`, which has the converter, and imports nothing of ours.
"""

import sys
from importlib import import_module
from typing import Any


def main(source: str, file: str) -> None:
    """Convert the program in the file `source` for the input that it was exported with, and write `file`."""
    import torch

    # Not a requirement of ours: only the converter's environment has it.
    converter = import_module("litert_torch")
    program = torch.export.load(source)
    example: Any = program.example_inputs
    converter.convert(program.module(), example[0]).export(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
