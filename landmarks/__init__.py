"""Face geometry: point schemes, alignment, heatmaps and detector back ends. No restoration happens here.

Everywhere in this project "left" and "right" are the subject's own, points are (x, y) in pixels with pixel centres at
integer coordinates, and sizes are (height, width).
"""
