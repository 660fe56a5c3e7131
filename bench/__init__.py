"""The benchmark: this package beside its peers, in turns, as ratios within one run. `python -m bench` runs it all."""
