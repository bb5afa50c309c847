"""The command `lists`: named lists of what can be in a picture, kept in a bundle."""

from __future__ import annotations

from typing import Annotated

import typer

from protoserve.cli.options import AllowOption, BundleArgument, DenyOption, DepthOption, JsonOption, PriorOption
from protoserve.cli.output import say
from protoserve.errors import InputError, nearest


def lists(
    bundle: BundleArgument,
    add: Annotated[
        str | None, typer.Option("--add", metavar="NAME", help="Keep the list under this name, or replace it.")
    ] = None,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="NAME", help="Remove the list of this name.")
    ] = None,
    allow: AllowOption = None,
    deny: DenyOption = None,
    depth: DepthOption = None,
    prior: PriorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a bundle's lists of what can be in a picture, for a shop, a region or a season; add or remove one.

    A request names a list with ?list=NAME or --list NAME. Adding or removing one writes a new version of the bundle:
    the folder is replaced as a whole, once the new one is complete.

    Example: protoserve lists bundles/grocery --add winter --deny Fruit/Peach --deny Fruit/Melon --prior Fruit/Orange:3
    """
    import json

    from protoserve.bundle.ensemble import ENSEMBLE
    from protoserve.bundle.folder import read_bundle, rewrite_manifest
    from protoserve.bundle.manifest import ListRecord
    from protoserve.cli.promise_report import list_line
    from protoserve.inference.option_text import levels_of, weights_of
    from protoserve.names import is_plain
    from protoserve.restriction import restriction_of

    given = any((allow, deny, depth, prior))
    if (bundle / ENSEMBLE).is_file():
        raise InputError(f"{bundle}: an ensemble; add the list to each member, then combine them again")
    if add is not None and remove is not None:
        raise InputError("--add and --remove are both given; do one at a time")
    if add is None and given:
        raise InputError("--allow, --deny, --depth and --prior describe the list of --add NAME; name it")
    opened = read_bundle(bundle)
    kept = dict(opened.manifest.lists)
    if add is not None:
        if not add or add != add.strip() or not is_plain(add) or "," in add or len(add) > 80:
            raise InputError(
                f"--add {add[:80]!r}: a name has 1 to 80 characters, no commas or line breaks, no spaces at its ends"
            )
        if not given:
            raise InputError(
                f"--add {add}: the list is empty; say what it allows with --allow, --deny, --depth or --prior"
            )
        record = ListRecord(
            allow=allow or [],
            deny=deny or [],
            depth=levels_of(depth or (), "--depth "),
            prior=weights_of(prior or (), "--prior "),
        )
        # It names what is unknown, contradictory or empty.
        restriction_of(opened.taxonomy, **record.model_dump())
        kept[add] = record
    if remove is not None:
        if remove not in kept:
            raise InputError(f"--remove: {bundle} has no list {remove!r}{nearest(remove, kept)}")
        del kept[remove]
    if add is not None or remove is not None:
        opened = rewrite_manifest(opened, lists=kept)
    if as_json:
        say(json.dumps({name: record.model_dump(mode="json") for name, record in kept.items()}, indent=2))
        return
    for name, record in kept.items():
        say(f"{name}: {list_line(record)}")
    if not kept:
        say("no lists")
    if add is not None or remove is not None:
        say(f"version {opened.version[:19]}")
