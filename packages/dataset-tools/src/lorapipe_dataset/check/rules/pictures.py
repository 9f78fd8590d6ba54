"""Pictures: small, blurred, transparent, animated, turned, framed, in other colours than RGB."""

from __future__ import annotations

from collections.abc import Iterator

from lorapipe_dataset.check.buckets import Placed, place_all
from lorapipe_dataset.check.findings import NOT_DECODED, Check, Finding, Rule, Skipped
from lorapipe_dataset.check.options import Options
from lorapipe_dataset.check.pictures.dataset import Dataset, Look, Picture
from lorapipe_dataset.check.pictures.measures import Measures

BLURRED_BELOW = 0.22  # sharpness; a straight rise over six pixels is 0.17, a hard edge 1
BLURRED_VARIANCE = 60.0  # Laplacian variance above which no picture is called blurred
SOFT_BELOW, SOFT_VARIANCE = 0.3, 5.0  # the same for pictures with hardly any edge
GREY_CHROMA = 3.0  # levels between the channels
BAR_SHARE = 0.03  # of the picture's side
LOW_QUALITY = 60  # JPEG
ENLARGED = 1.01

SMALL = Rule(
    "small",
    "warning",
    "Pictures smaller than the training size",
    "get larger ones, enlarging adds nothing to learn (--fix moves them away)",
    fixable=True,
)
BLURRED = Rule(
    "blurred", "warning", "Blurred pictures", "get sharp ones, or take them out: blur is learned too"
)
BLANK = Rule("blank", "warning", "Pictures that show nothing", "take them out")
ANIMATED = Rule(
    "animated",
    "warning",
    "Animations: only the first frame is trained",
    "save the frame that you want as PNG",
)
TURNED = Rule(
    "exif-rotation",
    "info",
    "Turned by EXIF: lora-train turns them upright, other tools may not",
    "save them upright",
)
ALPHA = Rule(
    "alpha",
    "info",
    "Transparent parts: lora-train puts them on white",
    "put them on a background of your choice",
)
CMYK = Rule(
    "cmyk", "warning", "CMYK pictures: colours may shift", "convert them to RGB with their colour profile"
)
DEEP = Rule("deep-colour", "warning", "More than 8 bits a channel", "save them with 8 bits")
GREY = Rule("grey", "info", "Pictures without colour", "tag them 'monochrome, greyscale', or take them out")
QUALITY = Rule(
    "jpeg-quality", "info", "Strongly compressed JPEGs", "get better copies: block patterns are learned too"
)
BARS = Rule("bars", "warning", "Flat bars at the edges", "crop them away")


def find_small(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """Pictures that training has to enlarge, or that have less than the wanted area."""
    width, height = options.data.size
    for placed in place_all(dataset, options.data):
        if not isinstance(placed, Placed):
            continue
        size = placed.size
        scale = max(placed.scale, (width * height / (size[0] * size[1])) ** 0.5)
        if scale > ENLARGED:
            text = f"{size[0]}x{size[1]}, {scale:.2g} times too small for {width}x{height}"
            yield Finding(SMALL, text, (placed.path,), {"scale": round(scale, 3), "size": list(size)})


def find_pixels(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """What the pixels tell."""
    if not options.look:
        raise Skipped(NOT_DECODED)
    for picture in dataset.pictures:
        look = picture.look
        if look is not None and look.problem is None:
            yield from _of_file(picture, look)
            yield from _of_pixels(picture, look)


def _of_file(picture: Picture, look: Look) -> Iterator[Finding]:
    paths = (picture.path,)
    if look.frames != 1:
        yield Finding(ANIMATED, f"{look.frames or 'several'} frames", paths)
    if look.turned != 1:
        yield Finding(TURNED, f"orientation {look.turned}", paths, {"orientation": look.turned})
    if look.transparent:
        yield Finding(ALPHA, f"{look.mode}", paths)
    if look.mode in ("CMYK", "YCCK"):
        yield Finding(CMYK, look.mode, paths)
    if look.mode.startswith(("I;16", "I", "F")):
        yield Finding(DEEP, look.mode, paths)
    if look.quality is not None and look.quality < LOW_QUALITY:
        yield Finding(QUALITY, f"quality {look.quality}", paths, {"quality": look.quality})


def _of_pixels(picture: Picture, look: Look) -> Iterator[Finding]:
    paths, measures = (picture.path,), look.measures
    if measures is None:
        return
    if measures.contrast < 1 and measures.chroma < 1:
        yield Finding(BLANK, "one level of grey", paths)
    elif measures.contrast < 1:
        yield Finding(BLANK, "one colour", paths)
    elif _is_blurred(measures):
        data = {"sharpness": round(measures.sharpness, 3), "laplacian": round(measures.laplacian, 1)}
        yield Finding(
            BLURRED,
            f"sharpness {measures.sharpness:.2f}, Laplacian variance {measures.laplacian:.1f}",
            paths,
            data,
        )
    elif measures.chroma < GREY_CHROMA:
        yield Finding(GREY, f"mode {look.mode}", paths)
    left, top, right, bottom = measures.bars
    if min(left, right) >= BAR_SHARE or min(top, bottom) >= BAR_SHARE:
        sides = zip(("left", "top", "right", "bottom"), measures.bars, strict=True)
        text = ", ".join(f"{side} {share:.0%}" for side, share in sides if share)
        yield Finding(BARS, text, paths, {"bars": [round(share, 3) for share in measures.bars]})


def _is_blurred(measures: Measures) -> bool:
    blurred = measures.sharpness < BLURRED_BELOW and measures.laplacian < BLURRED_VARIANCE
    return blurred or (measures.sharpness < SOFT_BELOW and measures.laplacian < SOFT_VARIANCE)


CHECKS = (
    Check((SMALL,), find_small),
    Check((BLURRED, BLANK, ANIMATED, TURNED, ALPHA, CMYK, DEEP, GREY, QUALITY, BARS), find_pixels),
)
