"""The COCO panoptic classes in the order of 4M's segmentation tokenizer, and the dataset's own category ids."""

from __future__ import annotations

_THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee,
skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,
wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""

_STUFF = """
banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower, fruit,
gravel, house, light, mirror-stuff, net, pillow, platform, playingfield, railroad, river,
road, roof, sand, sea, shelf, snow, stairs, tent, towel, wall-brick,
wall-stone, wall-tile, wall-wood, water-other, window-blind, window-other, tree-merged, fence-merged, ceiling-merged, sky-other-merged,
cabinet-merged, table-merged, floor-other-merged, pavement-merged, mountain-merged, grass-merged, dirt-merged, paper-merged, food-other-merged, building-other-merged,
rock-merged, wall-other-merged, rug-merged
"""


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.replace("\n", " ").split(",") if name.strip())


#: The 80 countable classes.
COCO_THINGS: tuple[str, ...] = _names(_THINGS)

#: The 133 panoptic classes in detectron2's contiguous order (things, then stuff); transformers' Mask2Former checkpoints
#: for COCO panoptic use the same order. 4M's id of a class is its position + 1; 0 = none.
COCO_PANOPTIC: tuple[str, ...] = COCO_THINGS + _names(_STUFF)

#: Category ids that COCO never used for its things, so that 80 classes go up to 90.
_SKIPPED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)

_STUFF_CATEGORY_IDS = (
    *(
        92,
        93,
        95,
        100,
        107,
        109,
        112,
        118,
        119,
        122,
        125,
        128,
        130,
        133,
        138,
        141,
        144,
        145,
        147,
        148,
        149,
        151,
    ),
    *(154, 155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181),
    *range(184, 201),
)

#: Official category id (``categories`` of COCO's panoptic annotation files) of each class of `COCO_PANOPTIC`.
COCO_CATEGORY_IDS: tuple[int, ...] = (*(i for i in range(1, 91) if i not in _SKIPPED), *_STUFF_CATEGORY_IDS)
