"""Explanations of a plain classifier as people make them today: an attribution per pixel, from captum or a few lines.

Every function explains the score of one node: the logarithm of the sum of the exponentials of its leaves' logits, which
at a leaf is its logit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.audit.subject import BATCH, LOG_FLOOR
from protoserve.networks.network import LinearNetwork

# The sides of the squares of pixels that LIME and KernelSHAP switch on and off together.
SQUARE: Final = 8
# The defaults of the packages `lime` (`explain_instance`) and `shap` (`KernelExplainer`: 2 × features + 2048).
LIME_SAMPLES: Final = 1000
SHAP_SAMPLES: Final = 2048
# The steps of integrated gradients: captum's default.
STEPS: Final = 50

# Pixels' attributions [height, width] to a node's score, from a picture uint8 [height, width, 3] and the node.
Attribute = Callable[[NDArray[np.uint8], int], NDArray[np.float64]]


class PlainClassifier:
    """A trained linear head on a backbone, with the interface that the audit's measures need."""

    def __init__(self, network: LinearNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def log_probability(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the log-probabilities of all nodes, float64 [images, nodes], at least `LOG_FLOOR`."""
        parts = [self.network(torch.from_numpy(images[at : at + BATCH])) for at in range(0, len(images), BATCH)]
        return np.maximum(torch.cat(parts).numpy().astype(np.float64), LOG_FLOOR)

    def scores(self, pictures: Tensor) -> Tensor:
        """Compute all nodes' scores [N, nodes] from normalised pictures [N, 3, height, width]."""
        return self.scores_of_maps(self.network.backbone(pictures))

    def scores_of_maps(self, maps: Tensor) -> Tensor:
        """Compute all nodes' scores [N, nodes] from feature maps [N, channels, rows, columns]."""
        return node_scores(self.network, self.network.leaf_logits(self.network.from_maps(maps)))

    def normalised(self, picture: NDArray[np.uint8]) -> Tensor:
        """Return a picture [height, width, 3] as a normalised batch of one, [1, 3, height, width]."""
        pictures: Tensor = self.network.normalise(torch.from_numpy(picture[None]))
        return pictures

    def placed(self, weights: Tensor, size: tuple[int, int]) -> NDArray[np.float64]:
        """Enlarge the cells' attributions [1, 1, rows, columns] to pixels, linearly between the cells' true centres."""
        values = weights[0, 0].double().numpy()
        field = self.network.backbone.field
        for count, side in zip(values.shape, size, strict=True):
            if field is None:
                centres = (np.arange(count) + 0.5) * side / count
            else:
                centres = field.start + field.step * np.arange(count) + field.size / 2
            # Each pass interpolates along one axis and turns the map.
            values = np.array([np.interp(np.arange(side) + 0.5, centres, line) for line in values.T])
        return values


def node_scores(network: LinearNetwork, leaf_logits: Tensor) -> Tensor:
    """Compute the scores of all nodes [N, nodes] from the leaves' logits [N, leaves]."""
    below = network.leaves_below > 0
    return torch.where(below, leaf_logits[:, None, :], -torch.inf).logsumexp(dim=2)


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute LayerCAM (Jiang et al. 2021), [N, 1, rows, columns], from a layer's activations and the score's gradient
    [N, channels, rows, columns]: the positive part of Σ over channels of max(gradient, 0) × activation."""
    return (gradients.clamp_min(0) * activations).sum(1, keepdim=True).clamp_min(0)


def squares(height: int, width: int, side: int = SQUARE) -> Tensor:
    """Number the squares of `side` pixels of a picture: int64 [1, 1, height, width], rows first."""
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    return (rows[:, None] * (int(columns[-1]) + 1) + columns)[None, None]


def gradient_methods(plain: PlainClassifier) -> Mapping[str, Attribute]:
    """Grad-CAM (Selvaraju et al. 2017; captum's, rectified), LayerCAM (as above), both at the last feature map, and
    integrated gradients (Sundararajan et al. 2017; captum's, 50 steps from the mean colour of ImageNet, signed, summed
    over the channels)."""
    attr = captum_attr()
    grad_cam = attr.LayerGradCam(plain.scores, plain.network.backbone)
    integrated = attr.IntegratedGradients(plain.scores)

    def by_grad_cam(picture: NDArray[np.uint8], node: int) -> NDArray[np.float64]:
        batch = plain.normalised(picture).requires_grad_()
        return plain.placed(grad_cam.attribute(batch, node, relu_attributions=True).detach(), picture.shape[:2])

    def by_layer_cam(picture: NDArray[np.uint8], node: int) -> NDArray[np.float64]:
        maps = plain.network.backbone(plain.normalised(picture)).requires_grad_()
        (gradients,) = torch.autograd.grad(plain.scores_of_maps(maps)[0, node], maps)
        return plain.placed(layer_cam(maps.detach(), gradients), picture.shape[:2])

    def by_integrated_gradients(picture: NDArray[np.uint8], node: int) -> NDArray[np.float64]:
        found = integrated.attribute(plain.normalised(picture), target=node, n_steps=STEPS, internal_batch_size=BATCH)
        return np.asarray(found[0].sum(0).double().numpy())

    return {"Grad-CAM": by_grad_cam, "LayerCAM": by_layer_cam, "integrated gradients": by_integrated_gradients}


def sampling_methods(
    scores: Callable[[Tensor], Tensor], lime_samples: int = LIME_SAMPLES, shap_samples: int = SHAP_SAMPLES
) -> Mapping[str, Attribute]:
    """LIME (Ribeiro et al. 2016) and KernelSHAP (Lundberg and Lee 2017), both captum's, on squares of pixels that are
    replaced by the picture's mean colour; the samples are `lime_samples`, and 2 × squares + `shap_samples`.

    `scores` computes all nodes' scores [N, nodes] from pictures in 0..255, float32 [N, height, width, 3].
    """
    attr = captum_attr()

    def by(explainer: Any, samples: Callable[[int], int]) -> Attribute:
        def attribute(picture: NDArray[np.uint8], node: int) -> NDArray[np.float64]:
            torch.manual_seed(0)
            colour = np.rint(picture.reshape(-1, 3).mean(axis=0))
            mask = squares(*picture.shape[:2])[0, 0, :, :, None]
            features = int(mask.max()) + 1
            found = explainer.attribute(
                torch.from_numpy(picture[None]).float(),
                baselines=torch.from_numpy(np.broadcast_to(colour, picture.shape)[None].copy()).float(),
                target=node,
                feature_mask=mask.expand(picture.shape)[None],
                n_samples=samples(features),
                perturbations_per_eval=BATCH,
            )
            # Every pixel has its square's attribution; a box's sum shall be its share of the squares'.
            return np.asarray(found[0, :, :, 0].double().numpy() / SQUARE**2)

        return attribute

    return {
        "LIME": by(attr.Lime(scores), lambda features: lime_samples),
        "KernelSHAP": by(attr.KernelShap(scores), lambda features: 2 * features + shap_samples),
    }


def plain_scores(plain: PlainClassifier) -> Callable[[Tensor], Tensor]:
    """The scores of a plain classifier, for `sampling_methods`."""
    normalise: nn.Module = plain.network.normalise
    return torch.inference_mode()(lambda pictures: plain.scores(normalise(pictures)))


def remembered(scores: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Remember the scores of every batch: with one seed, the samples for all nodes of a picture are the same."""
    known: dict[bytes, Tensor] = {}

    def recall(pictures: Tensor) -> Tensor:
        key = hashlib.sha256(pictures.numpy().tobytes()).digest()
        if key not in known:
            known[key] = scores(pictures)
        return known[key]

    return recall


def captum_attr() -> Any:
    """captum's attribution methods; SystemExit with the cure if captum is not installed."""
    try:
        import captum.attr
    except ImportError as error:
        raise SystemExit("captum is not installed; pip install 'protoserve[bench]'") from error
    return captum.attr
