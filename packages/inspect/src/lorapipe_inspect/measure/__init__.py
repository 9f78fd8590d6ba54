"""What is measured of a file: counts, norms, deaths, differences."""
