"""Thumbnails: an image that is written into a storage becomes smaller ones, in a sandbox."""

import io

from PIL import Image

from grape import Event, Node, State, Topology

SIZES = {"small": 64, "medium": 256}
Image.MAX_IMAGE_PIXELS = 50_000_000  # what claims to be more is an attack


class Thumbnails(Node):
    """One event for each version of an image. Whatever is wrong with it is this event's failure alone."""

    made: int = State(int, default=0)

    def process(self, event: Event) -> None:
        pictures, thumbnails = self.storage["pictures"], self.storage["thumbnails"]
        image = pictures.get(event.key)
        if image is None:  # removed meanwhile
            return
        self.made += 1
        with Image.open(io.BytesIO(image)) as picture:
            picture.load()
            size = picture.size
            for name, edge in SIZES.items():
                small = picture.convert("RGB")
                small.thumbnail((edge, edge))
                out = io.BytesIO()
                small.save(out, "WEBP", quality=80)
                thumbnails.put(f"{event.key}.{name}.webp", out.getvalue(), content_type="image/webp")
        self.emit("made", {"width": size[0], "height": size[1], "version": self.made})


class Remove(Node):
    """Of a picture that is gone."""

    def process(self, event: Event) -> None:
        for name in SIZES:
            self.storage["thumbnails"].remove(f"{event.key}.{name}.webp")


class Changed(Node):
    """What the driver tells of, by what it is."""

    def process(self, event: Event) -> None:
        self.emit("picture" if event.data["change"] == "written" else "removed")


def topology(config: dict) -> Topology:
    t = Topology("thumbnails")
    t.add_slot("changed", Changed())
    t.add_slot("picture", Thumbnails(), retries=1, timeout=30)
    t.add_slot("removed", Remove())
    t.add_output("made")
    return t
