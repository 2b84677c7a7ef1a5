"""Which COCO panoptic class the names of common label sets stand for; ``None`` = none of them.

The tokenizer knows 133 classes and nothing else, so a class without counterpart either becomes "none" or the class that
looks and is used most like it. Both are choices; each that is not obvious says why. Give a file of your own for others.
"""

from __future__ import annotations

# COCO labels neither tableware without food nor containers other than bottles, cups and bowls. A manipulation policy
# needs to see them, so open vessels that are no cups count as bowls, closed food containers as bottles, and packets of
# food as food.
_OPEN_VESSEL = "bowl"
_CLOSED_CONTAINER = "bottle"
_FOOD_PACKET = "food-other-merged"

#: LIBERO: structure, the work spaces of its problem classes, and every category registered in hf-libero 0.1.4 (those of
#: the four public suites, of libero_90, and those that no task uses).
LIBERO: dict[str, str | None] = {
    # Everything that is no object: table, floor and walls in one. No single class is right; an environment that
    # tells them apart should give them the names below.
    "background": None,
    "other": None,
    "arena": None,
    "target_zone": None,  # a region on the table, nothing that one sees
    # COCO has no robots; any other class would claim that the arm is, say, a person.
    "robot": None,
    "gripper": None,
    "mount": None,
    "table": "table-merged",  # "dining table" is a thing with all that stands on it
    "kitchen_table": "table-merged",
    "living_room_table": "table-merged",
    "coffee_table": "table-merged",
    "study_table": "table-merged",
    "floor": "floor-other-merged",
    "wall": "wall-other-merged",
    # Articulated objects.
    "microwave": "microwave",
    "flat_stove": "oven",  # COCO's oven is the whole kitchen range
    "short_fridge": "refrigerator",
    "faucet": "sink",  # COCO's annotators draw the tap with its sink
    "basin_faucet": "sink",
    "window": "window-other",
    "slide_cabinet": "cabinet-merged",
    "short_cabinet": "cabinet-merged",
    "wooden_cabinet": "cabinet-merged",
    "white_cabinet": "cabinet-merged",
    # Tableware and vessels.
    "akita_black_bowl": "bowl",
    "white_bowl": "bowl",
    "glazed_rim_porcelain_ramekin": "bowl",
    "plate": _OPEN_VESSEL,
    "wooden_tray": _OPEN_VESSEL,
    "basket": _OPEN_VESSEL,
    "chefmate_8_frypan": _OPEN_VESSEL,
    "red_coffee_mug": "cup",
    "porcelain_mug": "cup",
    "white_yellow_mug": "cup",
    "moka_pot": "cup",  # a small coffee pot with a handle; COCO has no kettles
    "wine_bottle": "bottle",
    "dining_set_group": "dining table",  # a laid table in one piece
    # Bottles, and cans and cartons of the same use and shape.
    "bbq_sauce": "bottle",
    "ketchup": "bottle",
    "mayo": "bottle",
    "salad_dressing": "bottle",
    "new_salad_dressing": "bottle",
    "milk": _CLOSED_CONTAINER,
    "orange_juice": _CLOSED_CONTAINER,
    "alphabet_soup": _CLOSED_CONTAINER,
    "tomato_sauce": _CLOSED_CONTAINER,
    "cherries": _CLOSED_CONTAINER,
    "corn": _CLOSED_CONTAINER,
    # Small boxes with food in them.
    "butter": _FOOD_PACKET,
    "chocolate_pudding": _FOOD_PACKET,
    "cookies": _FOOD_PACKET,
    "cream_cheese": _FOOD_PACKET,
    "macaroni_and_cheese": _FOOD_PACKET,
    "popcorn": _FOOD_PACKET,
    # Things that hold other things.
    "wooden_shelf": "shelf",
    "wooden_two_layer_shelf": "shelf",
    "rack": "shelf",
    "wine_rack": "shelf",
    "bowl_drainer": "shelf",
    "desk_caddy": "shelf",  # compartments for books
    "white_storage_box": "cardboard",  # COCO's only class for boxes
    "black_book": "book",
    "yellow_book": "book",
}

#: Ids of the LIBERO environment's segmentation pictures in the four suites: position = id. Policies are trained on these
#: numbers, so the order is final.
LIBERO_LABELS: tuple[str, ...] = (
    *("background", "robot", "gripper", "mount", "other"),
    *(
        "akita_black_bowl",
        "alphabet_soup",
        "basket",
        "bbq_sauce",
        "black_book",
        "butter",
        "chefmate_8_frypan",
    ),
    *(
        "chocolate_pudding",
        "cookies",
        "cream_cheese",
        "desk_caddy",
        "flat_stove",
        "glazed_rim_porcelain_ramekin",
    ),
    *("ketchup", "microwave", "milk", "moka_pot", "orange_juice", "plate", "porcelain_mug", "red_coffee_mug"),
    *("salad_dressing", "tomato_sauce", "white_cabinet", "white_yellow_mug", "wine_bottle", "wine_rack"),
    "wooden_cabinet",
)

#: Those of libero_90: the four suites' ids, then the categories that only libero_90 has.
LIBERO_90_LABELS: tuple[str, ...] = (
    *LIBERO_LABELS,
    *("new_salad_dressing", "white_bowl", "wooden_tray", "wooden_two_layer_shelf", "yellow_book"),
)

#: The mini suite (`multismolvla.modalities.MINI_LABELS`); the reasons are those of `LIBERO`.
MINI: dict[str, str | None] = {
    "background": None,
    "robot": None,
    "gripper": None,
    "cube": "cardboard",  # COCO's only class for boxes
    "can": _CLOSED_CONTAINER,
    "basket": _OPEN_VESSEL,
    "plate": _OPEN_VESSEL,
    "other": None,
}

#: ADE20K's 150 classes in order, as detectors number them (0 = wall). Only clear matches; the rest is none.
ADE20K: dict[str, str | None] = {
    "wall": "wall-other-merged",
    "building": "building-other-merged",
    "sky": "sky-other-merged",
    "floor": "floor-other-merged",
    "tree": "tree-merged",
    "ceiling": "ceiling-merged",
    "road": "road",
    "bed": "bed",
    "windowpane": "window-other",
    "grass": "grass-merged",
    "cabinet": "cabinet-merged",
    "sidewalk": "pavement-merged",
    "person": "person",
    "earth": "dirt-merged",
    "door": "door-stuff",
    "table": "table-merged",
    "mountain": "mountain-merged",
    "plant": None,  # potted and wild ones alike
    "curtain": "curtain",
    "chair": "chair",
    "car": "car",
    "water": "water-other",
    "painting": None,
    "sofa": "couch",
    "shelf": "shelf",
    "house": "house",
    "sea": "sea",
    "mirror": "mirror-stuff",
    "rug": "rug-merged",
    "field": "grass-merged",
    "armchair": "chair",
    "seat": "chair",
    "fence": "fence-merged",
    "desk": "table-merged",
    "rock": "rock-merged",
    "wardrobe": "cabinet-merged",
    "lamp": "light",
    "bathtub": None,
    "railing": "fence-merged",
    "cushion": "pillow",
    "base": None,
    "box": "cardboard",
    "column": None,
    "signboard": None,
    "chest of drawers": "cabinet-merged",
    "counter": "counter",
    "sand": "sand",
    "sink": "sink",
    "skyscraper": "building-other-merged",
    "fireplace": None,
    "refrigerator": "refrigerator",
    "grandstand": None,
    "path": "pavement-merged",
    "stairs": "stairs",
    "runway": None,
    "case": None,
    "pool table": None,
    "pillow": "pillow",
    "screen door": "door-stuff",
    "stairway": "stairs",
    "river": "river",
    "bridge": "bridge",
    "bookcase": "shelf",
    "blind": "window-blind",
    "coffee table": "table-merged",
    "toilet": "toilet",
    "flower": "flower",
    "book": "book",
    "hill": "mountain-merged",
    "bench": "bench",
    "countertop": "counter",
    "stove": "oven",  # COCO's oven is the whole kitchen range
    "palm": "tree-merged",
    "kitchen island": "counter",
    "computer": None,
    "swivel chair": "chair",
    "boat": "boat",
    "bar": None,
    "arcade machine": None,
    "hovel": None,
    "bus": "bus",
    "towel": "towel",
    "light": "light",
    "truck": "truck",
    "tower": "building-other-merged",
    "chandelier": "light",
    "awning": None,
    "streetlight": "light",
    "booth": None,
    "television receiver": "tv",
    "airplane": "airplane",
    "dirt track": "dirt-merged",
    "apparel": None,
    "pole": None,
    "land": "dirt-merged",
    "bannister": "fence-merged",
    "escalator": None,
    "ottoman": None,
    "bottle": "bottle",
    "buffet": "cabinet-merged",
    "poster": None,
    "stage": "platform",
    "van": "car",
    "ship": "boat",
    "fountain": None,
    "conveyer belt": None,
    "canopy": None,
    "washer": None,
    "plaything": None,
    "swimming pool": "water-other",
    "stool": "chair",
    "barrel": None,
    "basket": _OPEN_VESSEL,  # as in LIBERO
    "waterfall": "water-other",
    "tent": "tent",
    "bag": "handbag",
    "minibike": "motorcycle",
    "cradle": None,
    "oven": "oven",
    "ball": "sports ball",
    "food": "food-other-merged",
    "step": "stairs",
    "tank": None,
    "trade name": None,
    "microwave": "microwave",
    "pot": None,  # flower pots and cooking pots alike
    "animal": None,
    "bicycle": "bicycle",
    "lake": "water-other",
    "dishwasher": None,
    "screen": "tv",
    "blanket": "blanket",
    "sculpture": None,
    "hood": None,
    "sconce": "light",
    "vase": "vase",
    "traffic light": "traffic light",
    "tray": _OPEN_VESSEL,  # as in LIBERO
    "ashcan": None,
    "fan": None,
    "pier": None,
    "crt screen": "tv",
    "plate": _OPEN_VESSEL,  # as in LIBERO
    "monitor": "tv",
    "bulletin board": None,
    "shower": None,
    "radiator": None,
    "glass": "cup",
    "clock": "clock",
    "flag": None,
}
