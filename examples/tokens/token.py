"""A token for a user, or for one channel of a user: python3 token.py USER [CHANNEL]

The key is in SECRET: the same text as client.token.hmac_secret_key.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def token(claims, secret):
    header = {"alg": "HS256", "typ": "JWT"}
    signed = b".".join(encode(json.dumps(part).encode()) for part in (header, claims))
    signature = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + encode(signature)).decode()


if __name__ == "__main__":
    claims = {"sub": sys.argv[1], "exp": int(time.time()) + 3600}
    if len(sys.argv) > 2:
        claims["channel"] = sys.argv[2]
    print(token(claims, os.environ["SECRET"]))
