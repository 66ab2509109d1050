"""Package files that hold one emoji set each, as `npm pack` fetches them."""

import dataclasses
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pixelflow_jax.errors import DataError
from pixelflow_jax.paths import local_path, printable

Style = Literal["openmoji", "fluent", "noto", "twemoji"]
MANIFEST = "package.json"
MAX_MEMBER = 64 * 2**20  # bytes; the largest that is read has 12 million


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageKind:
    """A package of npm that this program can read.

    `members` matches the paths of its pictures, of which group 1 are the code points,
    or its one file of many pictures. `side` is the pictures' size in pixels, None for
    SVG, which is drawn at any size.
    """

    name: str
    style: Style
    members: str
    side: int | None
    licence: str
    author: str

    def to_get(self) -> str:
        """The command that fetches it."""
        return f"npm pack {self.name}"


KINDS = (
    PackageKind(
        name="@lobehub/fluent-emoji-3d",
        style="fluent",
        members=r"assets/([0-9a-f-]+)\.webp",
        side=256,
        licence="MIT",
        author="Microsoft (Fluent Emoji), packaged by LobeHub",
    ),
    PackageKind(
        name="@iconify-json/noto",
        style="noto",
        members=r"(?:icons|chars)\.json",
        side=None,
        licence="Apache-2.0",
        author="Google (Noto Emoji), packaged by Iconify",
    ),
    PackageKind(
        name="emoji-datasource-google",
        style="noto",
        members=r"img/google/64/([0-9a-f-]+)\.png",
        side=64,
        licence="MIT for the package, Apache-2.0 for the pictures",
        author="Google (Noto Emoji), packaged by Cal Henderson",
    ),
    PackageKind(
        name="@discordapp/twemoji",
        style="twemoji",
        members=r"dist/svg/([0-9a-f-]+)\.svg",
        side=None,
        licence="MIT for the code, CC-BY-4.0 for the pictures",
        author="Twitter, Inc. and other contributors (Twemoji)",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of a package by `picture_key`: files of PNG, WebP or SVG.

    `names` are what the package calls them, where it does; `version` is its own.
    """

    kind: PackageKind
    version: str
    files: dict[str, bytes]
    names: dict[str, str]


def picture_key(codepoints: str) -> str:
    """Code points in hexadecimal, joined by "-", in the one form that sets share.

    Without variation selectors and leading zeros, which packages write or leave out.
    """
    numbers = (int(one, 16) for one in codepoints.split("-"))
    return "-".join(f"{number:x}" for number in numbers if number != 0xFE0F)


def read_package(path: str) -> Pictures:
    """A .tgz of `npm pack`, or the folder that it unpacks to.

    Raises DataError where it is neither, holds no package of KINDS, or is damaged.
    """
    place = local_path(path, "A package of emoji", DataError)
    try:
        if place.is_dir():
            return _read(path, _in_folder(place))
        with tarfile.open(place, "r:gz") as archive:
            return _read(path, _in_archive(archive))
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{printable(path)} cannot be read as a package of npm ({reason}). Give "
            f"the .tgz file that one of these writes: {_commands()}."
        ) from error


def _read(path: str, members: dict[str, bytes]) -> Pictures:
    manifest = json.loads(members[MANIFEST]) if MANIFEST in members else {}
    name = manifest.get("name", "")
    kind = next((kind for kind in KINDS if kind.name == name), None)
    if kind is None:
        found = f"is the package {name!r}" if name else f"holds no {MANIFEST}"
        raise DataError(
            f"{printable(path)} {found}, which is no set of emoji that is known. Give "
            f"the .tgz file that one of these writes: {_commands()}."
        )
    if kind.name == "@iconify-json/noto":
        files, names = _icons(members)
    else:
        matches = {m: re.fullmatch(kind.members, m) for m in members}
        named = {match[1]: members[m] for m, match in matches.items() if match}
        files, names = {picture_key(c): f for c, f in named.items()}, {}
    if not files:
        raise DataError(
            f"{printable(path)} holds no pictures where {kind.name} has them: fetch it "
            f"again with: {kind.to_get()}."
        )
    version = str(manifest.get("version", ""))
    return Pictures(kind=kind, version=version, files=files, names=names)


def _icons(members: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Pictures and names of a set in Iconify's format: bodies of SVG in one JSON."""
    icons = json.loads(members["icons.json"])
    called = json.loads(members["chars.json"])
    frame = f"0 0 {icons['width']} {icons['height']}"
    files, names = {}, {}
    for codepoints, name in called.items():
        icon = icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent"))
        icon = icons["icons"].get(name, icon)
        if icon is not None:
            key = picture_key(codepoints)
            files[key] = (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{frame}" '
                f'xmlns:xlink="http://www.w3.org/1999/xlink">{icon["body"]}</svg>'
            ).encode()
            names[key] = name.replace("-", " ")
    return files, names


def _in_folder(folder: Path) -> dict[str, bytes]:
    root = folder if (folder / MANIFEST).is_file() else folder / "package"
    files = (file for file in sorted(root.rglob("*")) if file.is_file())
    found = ((file.relative_to(root).as_posix(), file) for file in files)
    return {name: file.read_bytes() for name, file in found if _is_wanted(name)}


def _in_archive(archive: tarfile.TarFile) -> dict[str, bytes]:
    """What is wanted of an archive, which is read from front to back once."""
    return {name: content for name, content in _members(archive)}


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        name = member.name.partition("/")[2]  # npm puts all in one folder
        if not member.isfile() or not _is_wanted(name):
            continue
        if member.size > MAX_MEMBER:
            raise ValueError(f"{name} has {member.size:,} bytes")
        file = archive.extractfile(member)
        yield name, file.read() if file else b""


def _is_wanted(name: str) -> bool:
    return name == MANIFEST or any(re.fullmatch(kind.members, name) for kind in KINDS)


def _commands() -> str:
    return "; ".join(kind.to_get() for kind in KINDS)
