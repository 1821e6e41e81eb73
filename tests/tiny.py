"""The smallest restorer that has every part."""

TINY = {
    "widths": (16, 16, 16),
    "blocks": (1, 0, 0),
    "dilations": ((1,), (1,), (1,)),
    "landmark_width": 16,
    "landmark_dilations": ((1,), (1,), (1,)),
    "attention_width": 16,
    "heads": 2,
    "detail_width": 16,
}
