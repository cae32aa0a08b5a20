"""Trees of empty files, and listings by name."""

from pathlib import Path

from shards.source import Listing, Video


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.mp4").touch()


def by_name(listing: Listing) -> dict[str, Video]:
    return {video.name: video for video in listing.videos}
