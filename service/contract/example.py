"""An answer to show in the OpenAPI document: two levels, with evidence for and against."""

from __future__ import annotations

from typing import Final

from protoserve.schema import (
    Alternative,
    Evidence,
    EvidenceSource,
    ImageSize,
    Level,
    ModelReference,
    Prediction,
)

EXAMPLE: Final = Prediction(
    model=ModelReference(name="grocery", version="sha256:4f0c…"),
    image=ImageSize(width=348, height=464),
    path=["Fruit", "Apple"],
    known_through_level=2,
    levels=[
        Level(
            level=1,
            node="Fruit",
            label="Fruit",
            probability=0.98,
            conditional=0.98,
            known=True,
            alternatives=[Alternative(node="Vegetables", label="Vegetables", probability=0.02)],
            logit=2.0,
            prior=0.1,
            rest=0.2,
            evidence_share=0.8,
            evidence=[
                Evidence(
                    prototype=12,
                    similarity=3.0,
                    usual=1.0,
                    weight=1.0,
                    contribution=2.0,
                    box=(104, 80, 190, 171),
                    source=EvidenceSource(
                        image="train/Fruit/Apple/Granny-Smith/Granny-Smith_012.jpg",
                        box=(12, 40, 98, 130),
                        href="v1/prototypes/12/image",
                    ),
                )
            ],
            against=[
                Evidence(
                    prototype=31,
                    similarity=1.4,
                    usual=0.8,
                    weight=-0.5,
                    contribution=-0.3,
                    box=(232, 310, 290, 387),
                    source=EvidenceSource(
                        image="train/Vegetables/Cabbage/Cabbage_003.jpg",
                        box=(60, 8, 146, 98),
                        href="v1/prototypes/31/image",
                    ),
                )
            ],
        ),
        Level(
            level=2,
            node="Fruit/Apple",
            label="Apple",
            probability=0.98,
            conditional=1.0,
            forced=True,
            known=True,
        ),
    ],
)
