"""timm's image models as backbones: the last feature map, or the patch tokens laid out as a map.

A name is `timm/ARCHITECTURE` or `timm/ARCHITECTURE.TAG`; the tag names one of the weights that are published for the
architecture. timm is an extra of training and export: the exported graph holds the model.

`timm.create_model(features_only=True)` ends before the layers behind the last stage, such as the widening convolution
of an EfficientNet or the final norm of a transformer. This module takes what `forward_features` returns, which is what
the model's own classifier reads.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, fx, nn

from protoserve.errors import InputError, MissingExtraError, nearest
from protoserve.networks.statistics import IMAGENET, Statistics
from protoserve.networks.weights_file import FileWeights, check_weights, read_weights
from protoserve.run.provenance import BackboneReference

PREFIX: Final = "timm/"
# How many tokens may precede those of the patches where a model does not say: one of the class, one of a teacher.
_PREFIX_TOKENS: Final = 2


class TimmBody(NamedTuple):
    """A model up to its feature map: `body` maps normalised pictures float32 [N, 3, height, width] of one size to maps
    [N, channels, rows, columns] with a cell every `stride` pixels."""

    body: fx.GraphModule
    channels: int
    stride: int


def is_timm(name: str) -> bool:
    """Whether a backbone's name is one of timm's."""
    return name.startswith(PREFIX)


def timm_body(name: str, weights: str | Path | None, stride: int | None, size: tuple[int, int]) -> TimmBody:
    """Make a timm model up to its last feature map, or the last one of `stride` pixels per cell.

    `weights` is None (random), `DEFAULT` (those of the name's tag, or timm's default), a tag, or a file of tensors
    (`.safetensors`, else as `torch.save` writes it). Tables of positions are interpolated where `size` (height, width)
    is not that of the weights.

    Raises MissingExtraError without timm, and InputError for an unknown name, tag or stride, for a file that does not
    fit, for weights that can't be downloaded, and for a model that can't take `size` or has no feature map.
    """
    architecture, tag = _named(name)
    file = None if weights is None else Path(weights)
    given: FileWeights | None = None
    if file is not None and file.is_file():
        model = _model(name, architecture, size)
        given = read_weights(file, model.state_dict(), lambda tensors: _adapted(tensors, model))
        model.load_state_dict(given.fitting, strict=False)
    elif weights is None:
        model = _model(name, architecture, size)
    else:
        model = _downloaded(name, architecture, _tag(architecture, tag, str(weights)), str(weights), size)
    found = _traced(model.eval(), name, stride, size)
    if file is not None and given is not None:
        check_weights(file, name, model, found.body, given)
    return found


def timm_reference(name: str, weights: str | Path | None) -> BackboneReference:
    """Return what timm publishes of a backbone: the tag of its weights, and how their pictures are made.

    `tag` is None for random weights, a file or a run; the rest is then that of the name's own tag, or of timm's
    default. Raises as `timm_body` does for the name and the tag.
    """
    timm = _timm()
    architecture, tag = _named(name)
    published = weights is not None and not Path(weights).exists()
    chosen = _tag(architecture, tag, str(weights)) if published else tag
    cfg = timm.models.get_pretrained_cfg(architecture if chosen is None else f"{architecture}.{chosen}")
    size = None if cfg is None else cfg.input_size[1:]
    mean, deviation = IMAGENET if cfg is None or len(cfg.mean or ()) != 3 else (tuple(cfg.mean), tuple(cfg.std))
    return BackboneReference(
        name=name,
        library=f"timm {version('timm')}",
        tag=(cfg.tag or None) if published and cfg is not None else None,
        mean=list(mean),
        deviation=list(deviation),
        height=None if size is None else size[0],
        width=None if size is None else size[1],
        interpolation=None if cfg is None else cfg.interpolation,
    )


def timm_statistics(name: str, weights: str | Path | None) -> Statistics:
    """Mean and standard deviation of the colours that the weights were trained with."""
    reference = timm_reference(name, weights)
    (a, b, c), (d, e, f) = reference.mean, reference.deviation
    return Statistics((a, b, c), (d, e, f))


def _timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"a backbone of timm (which imports {error.name})", "timm") from error
    return timm


def _named(name: str) -> tuple[str, str | None]:
    """Split a name into architecture and tag, and check the former."""
    timm = _timm()
    architecture, tag = timm.models.split_model_name_tag(name.removeprefix(PREFIX))
    if not timm.is_model(architecture):
        hint = nearest(architecture, timm.list_models()).replace("did you mean '", f"did you mean '{PREFIX}")
        raise InputError(f"no timm model {name!r}{hint}")
    if tag:
        _tag(architecture, None, tag)
    return architecture, tag or None


def _tag(architecture: str, tag: str | None, weights: str) -> str | None:
    """Return the tag that `weights` names: `tag`, None for timm's default, or the tag that it spells."""
    if weights.upper() == "DEFAULT":
        return tag
    offered = [name.partition(".")[2] for name in _timm().list_pretrained(architecture)]
    if weights not in offered:
        raise InputError(
            f"weights {weights!r} are neither a file nor weights of {PREFIX}{architecture}{nearest(weights, offered)}; "
            f"it has {', '.join(['DEFAULT', *offered])}"
        )
    return weights


def _model(name: str, architecture: str, size: tuple[int, int], **options: Any) -> nn.Module:
    """Create a model for pictures of `size`; a model that takes any size has no such option."""
    timm = _timm()
    for sized in ({"img_size": size, "dynamic_img_size": False}, {"img_size": size}, {}):
        try:
            model: nn.Module = timm.create_model(architecture, **sized, **options)
            return model
        except TypeError as error:
            if not sized:
                raise InputError(f"backbone {name!r} can't be made ({error}); choose another") from error
        except (AssertionError, ValueError) as error:
            raise _wrong_size(name, size, error) from error
    raise AssertionError("the last try has no options")


def _downloaded(name: str, architecture: str, tag: str | None, weights: str, size: tuple[int, int]) -> nn.Module:
    """Return a model with published weights, from the cache of the hub or the network."""
    full = architecture if tag is None else f"{architecture}.{tag}"
    try:
        return _model(name, full, size, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"weights {weights!r} of {PREFIX}{full}: can't get them ({_first_line(error)}); give --weights FILE, or "
            "--weights none for random ones"
        ) from error


def _adapted(tensors: dict[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Rename and resample the tensors of an original file as timm does for its own downloads."""
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return tensors
    try:
        adapted: Mapping[str, Tensor] = adapt(dict(tensors), model)
    except (KeyError, TypeError, RuntimeError, AttributeError, IndexError):
        # These functions expect files of their own architecture; the check that follows says what is missing.
        return tensors
    return adapted


class _Features(nn.Module):
    """A model whose forward pass ends before its pooling."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Any:
        features: Any = self.model.forward_features
        return features(pictures)


class _Tracer(fx.Tracer):
    """Keeps whole what behaves differently while it learns, what has no parts, and what timm says can't be traced."""

    def __init__(self) -> None:
        layers = _timm().layers
        super().__init__(autowrap_functions=tuple(layers.get_notrace_functions()))
        self._whole = (*layers.get_notrace_modules(), nn.BatchNorm2d, nn.Dropout)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._whole) or not list(m.children()) or super().is_leaf_module(m, module_qualified_name)


@torch.no_grad()
def _traced(model: nn.Module, name: str, stride: int | None, size: tuple[int, int]) -> TimmBody:
    """Trace a model up to a feature map, by running it once on a picture of `size`."""
    features = _Features(model)
    try:
        graph = _Tracer().trace(features)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, ValueError) as error:
        raise InputError(f"backbone {name!r} can't be traced by torch.fx ({error}); choose another") from error
    for node in graph.nodes:
        # Parameters keep timm's own names.
        if node.op in ("call_module", "get_attr"):
            node.target = node.target.removeprefix("model.")
    for constant, tensor in vars(features).items():
        # Tables of positions, which tracing computes once.
        if isinstance(tensor, Tensor):
            model.register_buffer(constant, tensor)
    traced = fx.GraphModule(model, graph)
    try:
        shapes = _shapes(traced, size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _wrong_size(name, size, error) from error
    (last,) = next(node for node in graph.nodes if node.op == "output").all_input_nodes or (None,)
    stages = {round(stage["reduction"]): stage for stage in _stages(model)}
    own = None if last is None else _form(model, shapes.get(last, ()), size, _last_stage(model))
    if last is None or own is None:
        raise InputError(f"backbone {name!r} has no feature map; choose another model")
    if stride in (None, round(size[0] / own.rows)):
        return _cut(traced, last, own, size)
    if stride in stages:
        stage = stages[stride]
        inside = f"model.{stage['module']}"
        nodes = [node for node in graph.nodes if _within(node, inside) and len(shapes.get(node, ())) == 4]
        if nodes and (form := _form(model, shapes[nodes[-1]], size, stage)) is not None:
            return _cut(traced, nodes[-1], form, size)
    known = sorted({*stages, round(size[0] / own.rows)})
    raise InputError(f"backbone {name!r} has no feature map of stride {stride}; it has {known}")


class _Form(NamedTuple):
    """How a node's output holds a map of `rows` × `columns` cells of `channels`: as tokens behind a `prefix` of others,
    with the channels last, or (both None and False) as a map."""

    channels: int
    rows: int
    columns: int
    prefix: int | None = None
    last: bool = False


def _form(
    model: nn.Module, shape: tuple[int, ...], size: tuple[int, int], stage: Mapping[str, Any] | None
) -> _Form | None:
    """Recognise a feature map by its shape; None if it is none."""
    if len(shape) == 4:
        wide = None if stage is None else stage["num_chs"]
        last = getattr(model, "output_fmt", "NCHW") == "NHWC" or (wide == shape[3] != shape[1])
        _, channels, rows, columns = (shape[0], shape[3], *shape[1:3]) if last else shape
        return _Form(channels, rows, columns, last=last) if rows * columns else None
    if len(shape) != 3:
        return None
    stated = getattr(model, "num_prefix_tokens", None)
    for rows, columns in _grids(model, size, stage):
        prefix = shape[1] - rows * columns
        if rows * columns > 1 and (0 <= prefix <= _PREFIX_TOKENS if stated is None else prefix == stated):
            return _Form(shape[2], rows, columns, prefix)
    return None


def _grids(model: nn.Module, size: tuple[int, int], stage: Mapping[str, Any] | None) -> Iterator[tuple[int, int]]:
    """Yield the grids (rows, columns) that tokens may stand for: of the patches, and of the last stage's reduction."""
    patches = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if patches is not None:
        yield patches[0], patches[1]
    if stage is not None:
        for rounded in (math.floor, math.ceil):
            yield rounded(size[0] / stage["reduction"]), rounded(size[1] / stage["reduction"])


def _stages(model: nn.Module) -> list[Mapping[str, Any]]:
    info = getattr(model, "feature_info", None) or []
    return list(info.get_dicts() if hasattr(info, "get_dicts") else info)


def _last_stage(model: nn.Module) -> Mapping[str, Any] | None:
    return stages[-1] if (stages := _stages(model)) else None


def _within(node: fx.Node, module: str) -> bool:
    """Whether a node computes a part of the module of this name."""
    inside: Iterable[str] = (path for path, _ in node.meta.get("nn_module_stack", {}).values())
    return any(path == module or path.startswith(f"{module}.") for path in inside)


def _shapes(traced: fx.GraphModule, size: tuple[int, int]) -> dict[fx.Node, tuple[int, ...]]:
    """Return every node's output shape for one picture of `size` (height, width)."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            result = super().run_node(node)
            if isinstance(result, Tensor):
                shapes[node] = tuple(result.shape)
            return result

    Recorder(traced).run(torch.zeros(1, 3, *size))
    return shapes


def _cut(traced: fx.GraphModule, last: fx.Node, form: _Form, size: tuple[int, int]) -> TimmBody:
    """Copy the graph up to a node and make its output a map."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        copied[node] = graph.node_copy(node, lambda argument: copied[argument])
        if node is last:
            break
    output = copied[last]
    if form.prefix is not None:
        patches = graph.call_method("narrow", (output, 1, form.prefix, form.rows * form.columns))
        channels_first = graph.call_method("transpose", (patches, 1, 2))
        output = graph.call_method("unflatten", (channels_first, 2, (form.rows, form.columns)))
    elif form.last:
        output = graph.call_method("permute", (output, 0, 3, 1, 2))
    graph.output(output)
    body = fx.GraphModule(traced, graph)
    body.graph.eliminate_dead_code()
    body.recompile()
    body.delete_all_unused_submodules()
    return TimmBody(body, form.channels, round(size[0] / form.rows))


def _wrong_size(name: str, size: tuple[int, int], error: Exception) -> InputError:
    own = timm_reference(name, None)
    return InputError(
        f"backbone {name!r} can't take pictures of {size[0]} × {size[1]} pixels ({_first_line(error)}); set "
        f"image.height and image.width to those of its weights, {own.height} × {own.width}, or to others that it takes"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
