"""The pictures that a run trains and selects on, and the network's features of them.

Features that later steps need again are computed once and cached on disk. If the backbone is frozen, these are its
features. If its last parts learn, these are the output of the parts before them (the trunk), so that an epoch computes
only the last parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from protoserve.cores import usable_cores
from protoserve.data.dataset import Dataset
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from training.data.batches import slices
from training.data.pictures import PLAIN, Views, loaded
from training.features.cache import FeatureCache, cache_files, cached_features
from training.features.frozen import PictureFeatures, TopFeatures, TrunkMaps, frozen_forward, uses_onnxruntime
from training.features.precision import Learning, learning_forward
from training.features.shared_cache import GIGABYTE, SharedCache
from training.features.trunk import Cut, TiledCut, cut_backbone
from training.processes import ALONE, Processes
from training.progress import tracked

Part = Literal["fit", "selection"]
# Views from this number on are random crops that are not cached.
FRESH_VIEW = 1000


def fresh_view(step: int) -> int:
    """The number of the view that gives every image a new crop in this step."""
    return FRESH_VIEW + step


class Feed:
    """Pictures of the fit and selection images, and their features by the network last passed to `use`.

    Pictures come in batches of `batch`, decoded by `workers` threads (None: one per core available to this process).
    `views` gives their augmentation and `learning` how the backbone learns. `seed` draws the view of each image in each
    step.

    Features are cached in `directory`, or in `shared` if runs share a folder. There the folder's name is a hash of
    everything that the features depend on, so that other runs with the same pictures and weights find them.

    `frozen` tells whether the backbone is frozen now, so that its features can be cached. `version` counts how many
    times it has been unfrozen, so that features of an earlier backbone are not mistaken for those of the current one.
    """

    def __init__(
        self,
        fit: Dataset,
        selection: Dataset,
        *,
        views: Views,
        learning: Learning,
        seed: int,
        batch: int,
        workers: int | None,
        directory: Path,
        device: torch.device,
        console: Console,
        processes: Processes = ALONE,
        shared: SharedCache | None = None,
    ) -> None:
        self.views, self.learning, self.seed, self.batch = views, learning, seed, batch
        self.device, self.console, self.processes = device, console, processes
        # Each process caches a stripe of the images, and reads the stripes of the others.
        self.directories = (
            [directory]
            if processes.count == 1
            else [directory / f"process-{rank + 1}" for rank in range(processes.count)]
        )
        self.directory = self.directories[processes.rank]
        self.shared = shared
        self._shared_names: dict[tuple[Part, str], str] = {}
        self.datasets: dict[Part, Dataset] = {"fit": fit, "selection": selection}
        self.workers = workers or max(1, usable_cores() // processes.local_count)
        self.frozen, self.version = True, 0
        self._caches: dict[tuple[str, int], FeatureCache] = {}

    def use(self, network: PrototypeNetwork | LinearNetwork) -> None:
        """Compute features by this network from now on."""
        self.network = network
        self._cut: Cut | TiledCut | None = None
        if not self.learning.fresh and self.learning.train_from is not None:
            self._cut = cut_backbone(network.backbone, self.learning.train_from)
        self._forward: Callable[[Tensor], Tensor] | None = None

    def set_backbone(self, *, frozen: bool, version: int) -> None:
        """Set whether the backbone is frozen, and how many times it has been unfrozen. Removes features of earlier
        versions from the cache."""
        self.frozen, self.version = frozen, version
        for key, view in [*self._caches]:
            if key in (f"{part}-{old}" for part in self.datasets for old in range(version)):
                del self._caches[key, view]
        for old in range(version):
            for file in self.directory.glob(f"*-{old}-*"):
                file.unlink(missing_ok=True)

    def continue_alone(self) -> None:
        """Use only this process from now on; the others have ended."""
        self.processes, self.directories = ALONE, [self.directory]

    # ---- pictures --------------------------------------------------------------------------------------------

    def pictures(self, part: Part, numbers: NDArray[np.int64], view: int) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of pictures in one view, as (numbers, uint8 [batch, H, W, 3]); decodes ahead of the consumer."""
        return self._pictures(part, slices(numbers, self.batch), view)

    def _pictures(
        self, part: Part, batches: Iterable[NDArray[np.int64]], view: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        dataset = self.datasets[part]
        return loaded(
            lambda number: self.views.of(dataset, number, view),
            (numbers.tolist() for numbers in batches),
            self.workers,
            pinned=self.device.type == "cuda",
        )

    def on_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the run's device; asynchronously if it is in pinned memory."""
        return tensor.to(self.device, non_blocking=tensor.is_pinned())

    # ---- features to train on --------------------------------------------------------------------------------

    def maps(self, batches: Iterable[NDArray[np.int64]], step: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """The backbone's feature maps of batches of fit images, with gradients, as (numbers, maps).

        Each image has a view drawn for this step: a cached one if there is a trunk, else a new crop.
        """
        if self._forward is None:
            module: nn.Module = self.network.backbone if self._cut is None else self._cut.top
            self._forward = learning_forward(module, self.learning, self.device)
        if self._cut is None:
            for loaded_numbers, pictures in self._pictures("fit", batches, fresh_view(step)):
                yield np.array(loaded_numbers), self._forward(self.network.normalise(self.on_device(pictures)))
            return
        caches = [self._trunk_cache("fit", view) for view in range(self.views.count)]
        for numbers, rows in self._drawn(caches, batches, step):
            yield numbers, self._forward(rows)

    def varied(
        self, batches: Iterable[NDArray[np.int64]], step: int, *, learning: bool = False, plain: bool = True
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Features of batches of fit images, as (numbers, features), each image in a view drawn for this step.

        With `learning`, they have gradients through the backbone. Without `plain`, the plain view is never drawn.
        """
        if learning:
            for numbers, maps in self.maps(batches, step):
                yield numbers, self.network.from_maps(maps)
            return
        views = range(self.views.count) if plain else range(PLAIN + 1, self.views.count)
        caches = [self._cache("fit", view) for view in views]
        yield from self._drawn(caches, batches, step)

    def _drawn(
        self, caches: list[FeatureCache], batches: Iterable[NDArray[np.int64]], step: int
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Rows of batches of fit images. Every cache holds one view; each image is read from a cache drawn for this
        step."""
        # Draw for all images at once, so that an image's view does not depend on batches or processes.
        drawn = np.random.default_rng((self.seed, step)).integers(0, len(caches), len(self.datasets["fit"]))
        for numbers in batches:
            views = drawn[numbers]
            pieces = [
                (indices, caches[view].batch(numbers[indices]))
                for view in np.unique(views).tolist()
                for indices in [np.flatnonzero(views == view)]
            ]
            order = np.argsort(np.concatenate([indices for indices, _ in pieces]))
            yield numbers, torch.cat([rows for _, rows in pieces])[torch.from_numpy(order)].to(self.device)

    # ---- features without gradients --------------------------------------------------------------------------

    def batch_features(self, part: Part, numbers: NDArray[np.int64], view: int = PLAIN) -> Tensor:
        """Features of one batch of pictures in one view."""
        return next(self.features(part, [numbers], view))

    @torch.inference_mode()
    def features(self, part: Part, batches: Iterable[NDArray[np.int64]], view: int = PLAIN) -> Iterator[Tensor]:
        """Features of batches of pictures in one view, without gradients.

        Plain views of fit images never pass through the float16 trunk, because prototypes are cut from them.
        """
        if self.frozen:
            cache = self._cache(part, view)
            for numbers in batches:
                yield cache.batch(numbers).to(self.device)
        elif self._cut is not None and (part, view) != ("fit", PLAIN):
            rows = self._trunk_cache(part, view)
            for numbers in batches:
                yield self._from_trunk(rows.batch(numbers).to(self.device))
        else:
            for _, pictures in self._pictures(part, batches, view):
                yield self.network.features(self.on_device(pictures))

    @torch.inference_mode()
    def selection_maps(self) -> Iterator[Tensor]:
        """The feature maps of this process's stripe of the selection images, in batches, by a backbone that learns."""
        count = len(self.datasets["selection"])
        numbers = np.arange(count)[self.processes.stripe(count)]
        if self._cut is None:
            for _, pictures in self.pictures("selection", numbers, PLAIN):
                yield self.network.backbone(self.network.normalise(self.on_device(pictures)))
            return
        rows = self._trunk_cache("selection", PLAIN)
        for piece in slices(numbers, self.batch):
            yield self._cut.top(rows.batch(piece).to(self.device))

    # ---- caches ----------------------------------------------------------------------------------------------

    def cached(self, part: Part, view: int = PLAIN) -> FeatureCache:
        """The features of all images of a part by the frozen backbone, computed if they are not cached."""
        return self._cache(part, view)

    def give(self, part: Part, view: int, features: FeatureCache) -> None:
        """Use these features for the images of a part in one view, instead of computing them."""
        self._caches[f"{part}-{self.version}", view] = features

    def _from_trunk(self, rows: Tensor) -> Tensor:
        assert self._cut is not None
        return self.network.from_maps(self._cut.top(rows))

    @staticmethod
    def _trunk_key(part: Part) -> str:
        return f"trunk-{part}"

    def _cache(self, part: Part, view: int) -> FeatureCache:
        """Features of a frozen backbone, float32. Views other than the plain one are computed from the trunk's output,
        if there is a trunk."""
        key, label = f"{part}-{self.version}", f"features of {part} images, view {view + 1}"
        if (key, view) in self._caches:
            return self._caches[key, view]
        network, directories = self.network, None
        if self.shared is not None:
            reduction = network.reduction if isinstance(network, PrototypeNetwork) else None
            parts: list[nn.Module] = [network.backbone, *([] if reduction is None else [reduction])]
            directories = self._shared_directories(self.shared, part, f"{_form(network)}-{self.version}", parts)
        if self._cut is None or view == PLAIN:
            return self._cached(key, part, view, label, PictureFeatures(network), directories=directories)
        rows, top = self._trunk_cache(part, view), TopFeatures(network, self._cut)
        return self._cached(key, part, view, label, top, rows, directories=directories)

    def _trunk_cache(self, part: Part, view: int) -> FeatureCache:
        """The trunk's output as float16, which halves its size. The rounding error is far below the noise of
        training."""
        assert self._cut is not None
        trunk = TrunkMaps(self.network, self._cut)
        label = f"trunk of {part} images, view {view + 1}"
        directories = None
        if self.shared is not None:
            directories = self._shared_directories(self.shared, part, "trunk", [self._cut.trunk])
        return self._cached(self._trunk_key(part), part, view, label, trunk, dtype=np.float16, directories=directories)

    def _shared_directories(self, shared: SharedCache, part: Part, of: str, modules: list[nn.Module]) -> list[Path]:
        """The shared folders, one per process, for the output of `modules` for a part.

        `of` names the kind of output. The folder's name is a hash of that, the weights, the pictures, their resize
        rule, their augmentation, their tiles and what computes it.
        """
        if (part, of) not in self._shared_names:
            digest = hashlib.sha256(self.datasets[part].fingerprint().encode())
            views, backbone = self.views, self.network.backbone
            digest.update(views.rule.model_dump_json().encode())
            varied = (views.zoom, views.mirror, views.seed)
            if backbone.tiles is not None:
                digest.update(repr(backbone.tiles).encode())
            engine, count = self.learning.features, len(self.datasets[part])
            if uses_onnxruntime(engine, modules[0], count, self.device):
                digest.update(b"onnxruntime")
            digest.update(repr((of, backbone.name, backbone.stride, *varied)).encode())
            for module in modules:
                for name, tensor in sorted(module.state_dict().items()):
                    digest.update(name.encode() + tensor.cpu().numpy().tobytes())
            self._shared_names[part, of] = digest.hexdigest()[:32]
        folder = shared.use(self._shared_names[part, of])
        if self.processes.count == 1:
            return [folder]
        count = self.processes.count
        return [folder / f"process-{rank + 1}-of-{count}" for rank in range(count)]

    def _cached(
        self,
        key: str,
        part: Part,
        view: int,
        label: str,
        features: nn.Module,
        rows: FeatureCache | None = None,
        dtype: type[np.float32] | type[np.float16] = np.float32,
        directories: list[Path] | None = None,
    ) -> FeatureCache:
        """The features of all images of a part, computed from the pictures or from `rows` if they are not cached."""
        if (key, view) in self._caches:
            return self._caches[key, view]
        directories = directories or self.directories
        count = len(self.datasets[part])
        stripe = self.processes.stripe(count)
        own = np.arange(count)[stripe]

        def sources() -> Iterator[tuple[list[int], Tensor]]:
            if rows is None:
                source: Iterator[tuple[list[int], Tensor]] = self.pictures(part, own, view)
            else:
                source = ((piece.tolist(), rows.batch(piece)) for piece in slices(own, self.batch))
            return (([number - stripe.start for number in numbers], batch) for numbers, batch in source)

        with tracked(self.console, label, len(own)) as advance:
            cached_features(
                directories[self.processes.rank],
                key,
                frozen_forward(features, count, self.learning.features, self.device, self.console),
                sources(),
                view,
                images=len(own),
                device=self.device,
                advance=advance,
                dtype=dtype,
            )
        self.processes.wait()
        files = [cache_files(directory, key, view)[0] for directory in directories]
        arrays = tuple(np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
        self._caches[key, view] = FeatureCache(arrays)
        if self.shared is not None and self.processes.first:
            evicted = self.shared.evict(self._shared_names.values())
            if evicted:
                where, limit = self.shared.directory, f"{self.shared.limit / GIGABYTE:g} GB"
                self.console.print(
                    f"note: {where}: evicted {len(evicted)} least recently used sets of features; the limit is {limit}",
                    markup=False,
                    soft_wrap=True,
                )
        return self._caches[key, view]


def _form(network: PrototypeNetwork | LinearNetwork) -> str:
    """The form of a network's features: one pooled vector per picture, or maps smoothed over a square of this side."""
    if isinstance(network, LinearNetwork):
        return "pooled"
    return f"maps-{1 if network.smoothing is None else network.smoothing.kernel_size}"
