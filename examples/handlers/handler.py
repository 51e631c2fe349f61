#!/usr/bin/env python3
# taskq work --persistent -- examples/handlers/handler.py
# One JSON object per line in, one answer per line out; everything for people goes to stderr.
import base64, json, sys

for line in sys.stdin:
    task = json.loads(line)
    body = task["body"] if "body" in task else base64.b64decode(task["body_base64"])
    print("working on", body, file=sys.stderr, flush=True)
    if task["attempt"] == 1 and body[:5] == "later":
        answer = "RETRY not yet"
    else:
        answer = "DEAD makes no sense" if body[:5] == "never" else "OK"
    print(answer, flush=True)
