"""An application that decides who connects: its sessions are cookies, and clients need no token.

POST /centrifugo/connect comes from the node for each new connection, with the headers that the
configuration names. The answer is the user, or a disconnect.
"""

import json
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A session store: session id to user.
SESSIONS = {"s-ada": {"id": "1", "name": "Ada"}, "s-grace": {"id": "2", "name": "Grace"}}

# A code from 4500 on makes the SDK give up; below it would reconnect.
NOT_SIGNED_IN = {"disconnect": {"code": 4501, "reason": "not signed in"}}


class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.connect(request) if self.path == "/centrifugo/connect" else {}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def connect(self, request):
        cookies = SimpleCookie(self.headers.get("Cookie", ""))
        session = cookies.get("session")
        user = SESSIONS.get(session.value) if session else None
        print(f"client {request['client']} over {request['transport']}: {user or 'nobody'}", flush=True)
        if user is None:
            return NOT_SIGNED_IN
        return {"result": {"user": user["id"], "info": {"name": user["name"]},
                           "channels": [f"personal:{user['id']}"]}}

    def log_message(self, *args):
        pass


print("the application is at http://127.0.0.1:3000", flush=True)
ThreadingHTTPServer(("127.0.0.1", 3000), App).serve_forever()
