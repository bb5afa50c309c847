"""The truth card: what an audit measured about a bundle's evidence, kept in its manifest.

`docs/audit.md` defines every figure and names its source; `protoserve.audit` computes them.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from protoserve.schema import Contract

Fill = Literal["mean", "blur", "swap"]
FILLS: tuple[Fill, ...] = get_args(Fill)
# What replaces pixels: at random, for every bundle; `attack` is projected gradient ascent on the network of its run.
Replacement = Literal["noise", "picture", "attack"]
REPLACEMENTS: tuple[Replacement, ...] = ("noise", "picture")
PerturbationKind = Literal["brightness", "contrast", "saturation", "hue", "blur", "waves", "all"]
Background = Literal["rendered", "swapped"]
PartKind = Literal["object", "decisive"]
Place = Literal["off the object", "at the border"]


class Estimate(Contract):
    """The mean over `images`, and its 95 % interval from a bootstrap over these images."""

    mean: float
    low: float
    high: float
    images: int = Field(ge=1)


class Comparison(Contract):
    """A figure beside its baseline on the same images; `difference` is that of the pairs, figure less baseline."""

    measured: Estimate
    baseline: Estimate
    difference: Estimate


class Additivity(Contract):
    """How exactly priors and contributions add up to the logits of the predicted nodes, in logits."""

    largest_gap: float = Field(description="largest |logit − (prior + Σ contributions)| over images and nodes")
    largest_piece_gap: float = Field(
        description="largest |stated contribution − weight × (similarity − usual)| over all shown prototypes"
    )
    tolerance: float = Field(description="what rounding may cost: 1e-4 × the largest |logit|, at least 1e-4")
    gap: Comparison | None = Field(
        description="each image's largest gap, beside that with the contributions of another image"
    )


class BoxEffect(Contract):
    """What a level's node loses when evidence boxes are filled (necessity), or gains when only they are kept
    (sufficiency), in nats of log-probability; `steps` are the numbers of boxes."""

    level: int = Field(ge=1)
    fill: Fill
    steps: list[int]
    evidence: list[float] = Field(description="mean effect at every step, strongest evidence first")
    random: list[float] = Field(description="the same boxes, all shifted by one random offset: equal area")
    least: list[float] = Field(
        description="boxes of the other prototypes that contribute least, of at least equal area"
    )
    area: list[float] = Field(description="mean share of the picture inside the evidence boxes")
    first: Comparison = Field(description="the effect of the first box, beside that of the shifted box")
    over_random: Comparison = Field(description="areas under the two curves, divided by the number of boxes")
    over_least: Comparison


class Locality(Contract):
    """What happens to a first piece of evidence when the pixels outside its box are replaced or attacked; the baselines
    replace or attack the pixels inside (Sacha et al. 2024)."""

    level: int = Field(ge=1)
    replacement: Replacement
    activation_change: Comparison | None = Field(description="PAC: |change| of the similarity at the cell, in percent")
    place_change: Comparison | None = Field(description="PLC: 100 · (1 − IoU) of the cells above the 90th percentile")
    rank_change: Comparison = Field(description="PRC: how many more prototypes of other nodes are more similar")
    accuracy_change: Comparison = Field(description="AC: accuracy at the level before less after")
    bounded: int = Field(description="pieces whose activation change is known only from below")
    unknown: int = Field(description="pieces whose similarity at the cell the graph did not give")


class Perturbation(Contract):
    """The share of a first evidence's similarity that a perturbation inside its box takes away; the baseline is that of
    the same perturbation outside (Xu-Darme et al. 2024). `all` is the mean over the kinds."""

    level: int = Field(ge=1)
    kind: PerturbationKind
    drop: Comparison | None
    bounded: int = Field(description="similarities outside and inside whose drop is known only from below")
    unknown: int = Field(description="similarities at the cell that the graph did not give")


class PartHits(Contract):
    """The share of evidence whose box has its centre on a part; the baseline is that of all cells' boxes."""

    level: int = Field(ge=1)
    part: PartKind
    first: Comparison
    first_three: Comparison


class Stability(Contract):
    """The share of first evidence that shows the same parts after noise; the baseline is that of all cells (Huang et
    al. 2023). Evidence that shows no part is left out."""

    level: int = Field(ge=1)
    same_parts: Comparison


class Consistency(Contract):
    """The share of the `prototypes` of a level's nodes that keep to one part of the object (Huang et al. 2023)."""

    level: int = Field(ge=1)
    prototypes: int = Field(ge=1)
    consistent: float = Field(ge=0, le=1)
    shuffled: float = Field(ge=0, le=1, description="the same share with the best cells of other pictures of the node")


class PartEffects(Contract):
    """Whether the evidence says which parts an answer depends on, by pictures without each part (FunnyBirds, Hesse et
    al. 2023). The baselines spread the contributions evenly over the picture; that of `contrastive` is one half. None
    where no image tells."""

    level: int = Field(ge=1)
    complete: Comparison | None = Field(
        description="controlled synthetic data check: share of images whose important parts hold a decisive one"
    )
    undistracted: Comparison | None = Field(
        description="distractibility: share of the parts without effect that are not among the important ones"
    )
    correct: Comparison | None = Field(
        description="single deletion: rank correlation of a part's contributions with what the logit loses without it"
    )
    contrastive: Comparison | None = Field(
        description="target sensitivity: share of the siblings to which a decisive part adds less than to the node"
    )


class BackgroundIndependence(Contract):
    """The share of images that keep what they had on another background; the baseline keeps the background and
    exchanges the object."""

    level: int = Field(ge=1)
    background: Background = Field(description="rendered: drawn anew; swapped: that of another image, by the masks")
    answers: Comparison = Field(description="the same node at the level")
    first: Comparison | None = Field(description="the same prototype as first evidence")


class PartPurity(Contract):
    """Over the `prototypes` of a level's nodes: the share of a prototype's most similar patches that hold the same part
    (PIP-Net, Nauta et al. 2023), on pictures of `split`."""

    level: int = Field(ge=1)
    prototypes: int = Field(ge=1)
    pure: float = Field(ge=0, le=1)
    shuffled: float = Field(ge=0, le=1, description="the same with the best cells of other pictures of the ten")
    split: str


class Sparsity(Contract):
    """How concentrated and how telling a level's evidence is."""

    level: int = Field(ge=1)
    prototypes_for_80: Comparison = Field(
        description="prototypes that make 80 % of the positive sum; baseline: if all contributed the same"
    )
    always_on: Comparison = Field(
        description="share of first evidence from always-on prototypes; baseline: their share among the group's"
    )
    telling: Comparison = Field(
        description="share of first evidence from prototypes with an effect of 1 or more; baseline as above"
    )
    distinctiveness: Comparison | None = Field(
        description="1 − mean IoU of the first five boxes; baseline: as many boxes at random cells"
    )


class Suspect(Contract):
    """A prototype that speaks for its `node` by what lies off the object, or at the picture's border."""

    prototype: int
    node: str
    place: Place
    share: float = Field(description="share of what it adds to its node that comes from there, over the node's images")
    chance: float = Field(description="share of all cells that are there")
    adds: float = Field(description="what it adds to its node's logit from there, mean over the node's images")


class PrototypeFlags(Contract):
    """Which of the `prototypes` deserve a look, by id; measured on the exported graph with `images` of `split`."""

    prototypes: int
    telling: int = Field(description="prototypes with an effect of 1 or more")
    always_on: list[int] = Field(description="prototypes with an effect below 0.5")
    border: list[int] = Field(
        description="prototypes whose contributions come from the map's border far more than by chance"
    )
    off_object: list[int] = Field(
        default=[], description="prototypes whose contributions come from off the object; empty without masks"
    )
    duplicates: list[int] = Field(description="prototypes whose source image and box an earlier prototype has")
    suspects: list[Suspect] = Field(
        default=[], description="those off the object, or without masks at the border; what adds most comes first"
    )
    split: str
    images: int


class Check(Contract):
    """A statement that the audit tested, and whether it held."""

    name: str
    level: int | None = Field(description="null for a statement about all levels")
    passed: bool
    statement: str


class TruthCard(Contract):
    """The result of `protoserve audit`. Lists by level skip the levels at which no image has evidence."""

    data: str = Field(description="name of the data set's folder or table")
    split: str
    images: int
    passed_over: dict[str, int] = Field(default={}, description="files of the split that are not pictures, by reason")
    seed: int
    resamples: int = Field(description="bootstrap resamples of every interval")
    audited_with: str = Field(description="the version of ProtoServe")
    additivity: Additivity
    necessity: list[BoxEffect] = Field(description="empty if it was left out (--quick); so is sufficiency")
    sufficiency: list[BoxEffect]
    locality: list[Locality]
    perturbation: list[Perturbation] = Field(default=[], description="empty if it was left out (--quick)")
    parts: list[PartHits] = Field(description="empty without masks")
    stability: list[Stability] = Field(description="empty without masks")
    consistency: list[Consistency] = Field(default=[], description="empty without masks")
    part_effects: list[PartEffects] = Field(default=[], description="empty without masks and pictures without parts")
    backgrounds: list[BackgroundIndependence] = Field(default=[], description="empty without masks")
    purity: list[PartPurity] = Field(default=[], description="empty without masks")
    sparsity: list[Sparsity]
    prototypes: PrototypeFlags
    checks: list[Check]
