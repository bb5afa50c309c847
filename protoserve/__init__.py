"""ProtoServe: image classifiers that explain themselves, as one fused graph.

>>> import protoserve
>>> model = protoserve.load("bundles/grocery")             # doctest: +SKIP
>>> model.predict("photo.jpg", top_k=5).path               # doctest: +SKIP
['Fruit', 'Apple', 'Granny-Smith']
"""

from typing import TYPE_CHECKING, Any

from protoserve.telemetry import disable_telemetry

if TYPE_CHECKING:
    from protoserve.inference.classifier import Classifier, load
    from protoserve.replay.verifying import verify

# Libraries read these variables when they are imported, and every module below imports this one first.
disable_telemetry()

__version__ = "0.1.0"
__all__ = ["Classifier", "__version__", "load", "verify"]


def __getattr__(name: str) -> Any:
    # Imported on first use: training and the command line's help do not need onnxruntime.
    if name in {"Classifier", "load"}:
        from protoserve.inference import classifier

        return getattr(classifier, name)
    if name == "verify":
        from protoserve.replay.verifying import verify

        return verify
    raise AttributeError(f"module 'protoserve' has no attribute {name!r}")
