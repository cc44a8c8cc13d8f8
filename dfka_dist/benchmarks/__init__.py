"""Tables that show what the parts of the method are worth; `jobs/benchmark.py` makes them."""
