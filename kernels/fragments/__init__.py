"""Fragments: the lines by which the models of one kernel differ, each a .h for devices and a .py twin."""
