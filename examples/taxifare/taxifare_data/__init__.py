"""RIDES TO LEARN FROM: python -m taxifare_data --help.

Three ways to a taxi-train.csv: rides.py invents rides, by city.py (places, water) and meter.py (fares); copies.py makes
a small file large; records.py takes rides from the city's public trip records. Needs NumPy, and only for URLs fsspec,
only for Parquet pyarrow.
"""
