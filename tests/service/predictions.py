"""The prediction that the service sends, from that of the Python interface."""

from __future__ import annotations

from protoserve.schema import Prediction


def as_served(prediction: Prediction) -> Prediction:
    """Return the prediction with the URL of every evidence's image, which only the service knows."""
    document = prediction.model_dump()
    for level in document["levels"]:
        for item in [*level["evidence"], *level["against"]]:
            if item["source"] is not None:
                item["source"]["href"] = f"v1/prototypes/{item['prototype']}/image"
    return Prediction.model_validate(document)
