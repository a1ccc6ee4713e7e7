"""Ask a deployed model for fares, with nothing but Google's own client library.

    eval "$(taxiway env)"          # GOOGLE_APPLICATION_CREDENTIALS, API_ENDPOINT_OVERRIDE and the rest
    python ask.py --project taxiway --model taxifare test.json

Needs: pip install google-api-python-client google-auth
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from googleapiclient import discovery, errors


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask a deployed taxi-fare model for fares.")
    parser.add_argument("--project", default=os.environ.get("GOOGLE_CLOUD_PROJECT"), help="the project's id")
    parser.add_argument("--model", default="taxifare")
    parser.add_argument("--version", help="a version of the model (its default one, if left out)")
    parser.add_argument("instances", type=Path, help="a file with one JSON object a line: a ride")
    args = parser.parse_args()

    server = os.environ.get("API_ENDPOINT_OVERRIDE", "https://ml.googleapis.com")
    ml = discovery.build("ml", "v1", discoveryServiceUrl=f"{server}/$discovery/rest?version=v1", cache_discovery=False)
    name = f"projects/{args.project}/models/{args.model}"
    if args.version:
        name += f"/versions/{args.version}"
    rides = [json.loads(line) for line in args.instances.read_text().splitlines()]
    try:
        answer = ml.projects().predict(name=name, body={"instances": rides}).execute()
    except errors.HttpError as error:
        print(f"{name} did not answer: {error}", file=sys.stderr)
        return 1
    for ride, prediction in zip(rides, answer["predictions"], strict=True):
        (fare,) = prediction["predictions"]
        print(f"${fare:.2f} for {ride}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
