"""The evaluation suite: one YAML says which faces, which damage, which restorers and which judges; out come tables.

`config` YAML -> objects; `sources` faces; `rows` everything that turns thumbnails into faces; `judges` embedders;
`measures` the table of measures; `numbers` intervals and groups; `recognition` protocols; `run` all of it; `tables`,
`plots`, `report` output.
"""
