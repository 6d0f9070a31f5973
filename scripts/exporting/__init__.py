"""scripts/export: a run as other tools read it. ShiViz and TSViz draw its clocks, Perfetto its time."""
