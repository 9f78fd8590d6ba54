"""Which network of a grid to take: figures of the cells beside their base, gates, and a choice with an interval."""
