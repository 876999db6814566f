#!/usr/bin/env python3
"""What a model that looks on costs the door: how long it takes from a frame to the decision, and each
stage of perception, with the candidate and without, in turns.

usage: shadow.py PAWLATCH MODELS_DIR CANDIDATE [SECONDS]
"""
import http.cookiejar
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

pawlatch, models, candidate = sys.argv[1:4]
seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 120
PASSWORD = "a long enough password"
CONFIG = """
[camera]
source = "demo:"
[journal]
dir = "{work}/journal"
[page]
listen = "127.0.0.1:{port}"
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Door:
    def __init__(self, work, shadowed):
        self.work, self.port = work, free_port()
        shutil.copytree(models, work / "models")
        config = work / "pawlatch.toml"
        config.write_text(CONFIG.format(work=work, port=self.port))
        self.command = [pawlatch, "--models-dir", work / "models", "--config", config]
        if shadowed:
            subprocess.run([*self.command, "model", "shadow", candidate], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*self.command, "password"], input=PASSWORD + "\n", text=True, check=True, stderr=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL)
        self.log = open(work / "door.log", "w")
        self.process = subprocess.Popen([*self.command, "run"], stderr=self.log)
        self.web = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def ask(self, path, form=None, token=None):
        data = urllib.parse.urlencode(form).encode() if form is not None else None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        return self.web.open(request, timeout=20).read().decode()

    def log_in(self):
        until = time.time() + 60
        while True:
            try:
                self.ask("/login", {"password": PASSWORD})
                break
            except OSError:
                if time.time() > until:
                    raise
                time.sleep(0.5)
        ticket = json.loads(self.ask("/ticket", {}))["ticket"]
        page = self.ask("/settings/tokens", {"ticket": ticket, "name": "measuring", "scope": "read"})
        self.token = re.search(r'id="token"[^>]*>([\w-]+)<', page).group(1)

    def counted(self):
        """Sum and number of what the histograms have seen."""
        found = {}
        for line in self.ask("/metrics", token=self.token).splitlines():
            match = re.match(r'pawlatch_(stage|decision)_seconds_(sum|count|bucket)(?:\{(.*)\})? (\S+)', line)
            if match:
                kind, what, labels, value = match.groups()
                found[(kind, what, labels or "")] = float(value)
        return found

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.log.close()


def measured(shadowed):
    with tempfile.TemporaryDirectory(prefix="shadow-") as work:
        door = Door(pathlib.Path(work), shadowed)
        try:
            door.log_in()
            time.sleep(10)
            before = door.counted()
            time.sleep(seconds)
            after = door.counted()
        finally:
            door.end()
        kept = door.work / "journal" / "shadow.json"
        looked = json.loads(kept.read_text()) if kept.is_file() else {}
        return {key: value - before.get(key, 0) for key, value in after.items()}, looked


def told(shadowed, found, looked):
    name = "with the candidate" if shadowed else "without"
    print(f"{name}:")
    for (kind, what, labels), total in sorted(found.items()):
        if what == "sum" and found[(kind, "count", labels)]:
            count = found[(kind, "count", labels)]
            print(f"  {kind} {labels}: {1e3 * total / count:.2f} ms on average of {count:.0f}")
    count = found[("decision", "count", "")]
    for bound in ("0.05", "0.1", "0.2"):
        below = found[("decision", "bucket", f'le="{bound}"')]
        print(f"  decided within {1e3 * float(bound):.0f} ms: {100 * below / count:.2f} %")
    if looked:
        print("  looked on:", {k: v for k, v in looked.items() if isinstance(v, int)})
    sys.stdout.flush()


for turn in range(2):
    for shadowed in (False, True):
        told(shadowed, *measured(shadowed))
