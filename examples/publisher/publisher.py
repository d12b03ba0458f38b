"""Publishing from an application: batches, retries with backoff, and idempotency keys."""

import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
import uuid

URL = os.environ.get("ROOST_API", "http://127.0.0.1:8000/api")
KEY = os.environ["ROOST_API_KEY"]
ATTEMPTS = 5


class Refused(Exception):
    """The node has refused a command: to repeat it is of no use."""


def call(method, body):
    """One call. A timeout, a refused connection, 429 and 5xx are repeated, longer waits each time."""
    request = urllib.request.Request(f"{URL}/{method}", json.dumps(body).encode(), {"X-API-Key": KEY})
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                reply = json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 429 and error.code < 500:
                raise Refused(f"{error.code}: {error.read().decode()}") from error
        except OSError:
            pass
        else:
            if "error" not in reply:
                return reply
            # 100: internal, 111: too many requests. All others stay what they are.
            if reply["error"]["code"] not in (100, 111):
                raise Refused(reply["error"])
        time.sleep(min(5, 0.2 * 2 ** attempt) * random.uniform(0.5, 1))
    raise TimeoutError(f"{method}: no success after {ATTEMPTS} attempts")


def publish(channel, data):
    """A repeated call with the same idempotency key is not published twice (for five minutes)."""
    key = str(uuid.uuid4())
    return call("publish", {"channel": channel, "data": data, "idempotency_key": key})["result"]


def publish_all(messages):
    """Many publications in one request; each has a reply of its own."""
    commands = [{"publish": {"channel": channel, "data": data, "idempotency_key": str(uuid.uuid4())}}
                for channel, data in messages]
    return call("batch", {"commands": commands, "parallel": False})["replies"]


if __name__ == "__main__":
    print("offset", publish("news:world", {"text": "hello"})["offset"])
    replies = publish_all(("news:sport", {"goal": number}) for number in range(1, 4))
    print("offsets", [reply["publish"]["offset"] for reply in replies])
    try:
        publish("nowhere:channel", {})
    except Refused as refused:
        print("refused", refused)
        sys.exit(0)
    sys.exit("a namespace that doesn't exist was accepted")
