"""Measures what the pipeline makes, as a user would run it. Imports anything but `training`; nothing imports it."""
