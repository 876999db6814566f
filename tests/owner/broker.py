#!/usr/bin/env python3
"""The door and a real broker (mosquitto, with TLS and passwords), as Home Assistant would meet them;
and its page with the owner's certificate.

usage: broker.py PAWLATCH MODELS_DIR OUT_DIR

Needs Debian's mosquitto, mosquitto-clients and openssl. OUT_DIR gets what was announced
(discovery.json), which ha_schema.py holds against Home Assistant's own schemas.
"""
import http.client
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

pawlatch, models, out = sys.argv[1:4]
work = pathlib.Path(tempfile.mkdtemp(prefix="broker-"))
out = pathlib.Path(out)
out.mkdir(parents=True, exist_ok=True)
TOPIC = "home/door"
PATIENCE = 240
PASSWORD = "a good long one"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def sh(*command):
    subprocess.run(command, check=True, cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def certificates():
    sh("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "ca.key",
       "-out", "ca.pem", "-subj", "/CN=test authority")
    sh("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "broker.key", "-out", "broker.csr",
       "-subj", "/CN=localhost")
    (work / "ext").write_text("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
    sh("openssl", "x509", "-req", "-in", "broker.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
       "-days", "2", "-out", "broker.pem", "-extfile", "ext")


port, page = free_port(), free_port()
certificates()
(work / "passwords").write_text("")
sh("mosquitto_passwd", "-b", "passwords", "door", "the door's password")
sh("mosquitto_passwd", "-b", "passwords", "hub", "the hub's password")
(work / "mosquitto.conf").write_text(f"""
listener {port} 127.0.0.1
cafile {work}/ca.pem
certfile {work}/broker.pem
keyfile {work}/broker.key
password_file {work}/passwords
allow_anonymous false
persistence true
persistence_location {work}/
user root
""")


def start_broker():
    process = subprocess.Popen(["mosquitto", "-c", work / "mosquitto.conf"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    until = time.time() + 20
    while time.time() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(0.1)
    raise SystemExit("mosquitto does not start")


hub = ["-h", "localhost", "-p", str(port), "--cafile", str(work / "ca.pem"), "-u", "hub", "-P", "the hub's password",
       "-q", "1"]


class Listener:
    """Everything that is said, with whether it was retained when it came."""

    def __init__(self):
        self.heard = []
        self.process = subprocess.Popen(
            ["mosquitto_sub", *hub, "-t", "#", "-F", '{"t":"%t","r":%r,"x":"%x"}'],
            stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            m = json.loads(line)
            self.heard.append((m["t"], bytes.fromhex(m["x"]), bool(m["r"])))

    def wait(self, topic, wanted, since=0):
        until = time.time() + PATIENCE
        while time.time() < until:
            for t, payload, _ in self.heard[since:]:
                if t == topic and wanted(payload):
                    return payload
            time.sleep(0.05)
        said = [(t, p[:80]) for t, p, _ in self.heard[since:] if t.startswith(TOPIC)]
        raise SystemExit(f"{topic} never said what was wanted; heard {said[-30:]}")

    def stop(self):
        self.process.terminate()


def say(topic, payload, *options):
    subprocess.run(["mosquitto_pub", *hub, "-t", topic, "-m", payload, *options], check=True)


def state(name):
    return lambda payload: payload and json.loads(payload)["state"] == name


(work / "password").write_text("the door's password\n")
environment = {
    **os.environ,
    "PAWLATCH__CAMERA__SOURCE": "demo:",
    "PAWLATCH__JOURNAL__DIR": str(work / "journal"),
    "PAWLATCH__PAGE__LISTEN": f"127.0.0.1:{page}",
    "PAWLATCH__PAGE__CERTIFICATE_PATH": str(work / "broker.pem"),
    "PAWLATCH__PAGE__KEY_PATH": str(work / "broker.key"),
    "PAWLATCH__MQTT__BROKER": f"mqtts://localhost:{port}",
    "PAWLATCH__MQTT__CA_PATH": str(work / "ca.pem"),
    "PAWLATCH__MQTT__USERNAME": "door",
    "PAWLATCH__MQTT__PASSWORD_PATH": str(work / "password"),
    "PAWLATCH__MQTT__TOPIC": TOPIC,
    # A loaded machine is slow, which is not what is tested here.
    "PAWLATCH__DOOR__FRESH_FOR_MS": "5000",
    "PAWLATCH__DOOR__CAMERA_LOST_AFTER_MS": "20000",
}


def start_door():
    log = open(work / "door.log", "a")
    return subprocess.Popen([pawlatch, "--models-dir", models, "run"], env=environment, stdout=log, stderr=log)


def page_is_encrypted():
    def ask(method, path, body=None, **headers):
        trusted = ssl.create_default_context(cafile=work / "ca.pem")
        there = http.client.HTTPSConnection("localhost", page, timeout=20, context=trusted)
        there.request(method, path, body, headers)
        answer = there.getresponse()
        return answer, answer.read().decode()

    form = urllib.parse.urlencode({"password": PASSWORD, "again": PASSWORD})
    answer, _ = ask("POST", "/setup", form, **{"Content-Type": "application/x-www-form-urlencoded",
                                               "Origin": f"https://localhost:{page}"})
    assert answer.status == 303, answer.status
    cookie = answer.headers["Set-Cookie"]
    assert "; Secure" in cookie and "; HttpOnly" in cookie and "; SameSite=Strict" in cookie, cookie
    answer, text = ask("GET", "/", Cookie=cookie.split(";")[0])
    assert answer.status == 200 and "Let in once" in text, answer.status
    # Whoever comes without encryption gets nothing.
    with socket.create_connection(("127.0.0.1", page), 5) as plain:
        plain.settimeout(20)
        try:
            plain.sendall(b"GET /login HTTP/1.1\r\nHost: localhost\r\n\r\n")
            said = plain.recv(1000)
        except OSError:
            said = b""
    assert b"HTTP/1.1 200" not in said and b"Pawlatch" not in said, said


broker = start_broker()
# What the broker kept from before must not open the door.
say(f"{TOPIC}/order", "hold_open", "-r")
say(f"{TOPIC}/latch/set", "OPEN", "-r")
door = start_door()
listener = Listener()
try:
    listener.wait(f"{TOPIC}/available", lambda p: p == b"online")
    listener.wait(f"{TOPIC}/latch", lambda p: p == b"LOCKED")
    print("announced and available; the latch is seen locked")
    page_is_encrypted()
    print("the page speaks TLS with the owner's certificate, and nothing else")

    say(f"{TOPIC}/order", "hold_locked")
    listener.wait(f"{TOPIC}/state", state("held_locked"))
    say(f"{TOPIC}/order", "hold_open")
    listener.wait(f"{TOPIC}/state", state("held_open"))
    listener.wait(f"{TOPIC}/latch", lambda p: p == b"UNLOCKED")
    mark = len(listener.heard)
    say(f"{TOPIC}/latch/set", "LOCK")
    listener.wait(f"{TOPIC}/state", state("held_locked"), mark)
    listener.wait(f"{TOPIC}/latch", lambda p: p == b"LOCKED", mark)
    for nonsense in ["lock it", "x" * 5_000, "HOLD_OPEN", "{}"]:
        say(f"{TOPIC}/order", nonsense)
    mark = len(listener.heard)
    say(f"{TOPIC}/latch/set", "UNLOCK")
    listener.wait(f"{TOPIC}/state", lambda p: json.loads(p)["state"] != "held_locked", mark)
    print("orders are obeyed, and what is told is what was seen")

    visit = json.loads(listener.wait(f"{TOPIC}/visit", lambda p: bool(p)))
    assert visit["event_type"] in ("let_in", "kept_shut", "nobody", "overruled"), visit
    words = listener.wait(f"{TOPIC}/visit/last", lambda p: bool(p)).decode()
    assert words == visit["words"], (words, visit)
    picture = listener.wait(f"{TOPIC}/visit/picture", lambda p: bool(p))
    assert picture[:2] == b"\xff\xd8" and picture[-2:] == b"\xff\xd9", "a JPEG"
    print("a visit was told:", words)

    mark = len(listener.heard)
    broker.terminate()
    broker.wait()
    time.sleep(3)
    assert door.poll() is None, "the door runs without a broker"
    broker = start_broker()
    listener.stop()
    listener = Listener()
    listener.wait(f"{TOPIC}/available", lambda p: p == b"online")
    listener.wait(f"{TOPIC}/latch", lambda p: p in (b"LOCKED", b"UNLOCKED"))
    time.sleep(2)
    print("the broker was away; the door came back to it")

    # Killed, the broker says so in the door's place.
    mark = len(listener.heard)
    door.send_signal(signal.SIGKILL)
    listener.wait(f"{TOPIC}/available", lambda p: p == b"offline", mark)
    print("the door was killed; the broker says that it is away")

    discovered = {t: json.loads(p) for t, p, _ in listener.heard if t.startswith("homeassistant/") and p}
    assert len(discovered) >= 13, sorted(discovered)
    (out / "discovery.json").write_text(json.dumps(discovered, indent=1))
    subprocess.run([pawlatch, "events", "list", "--all", "--limit", "500"], env=environment, check=True,
                   stdout=open(out / "events.txt", "w"))
    events = (out / "events.txt").read_text()
    opened_before_asked = events.split("held locked by the owner")[0]
    assert "held open" not in opened_before_asked and "unlocked by the owner" not in events, "a kept command was obeyed"
    log = (work / "door.log").read_text()
    assert not any(secret in log for secret in ("the door's password", PASSWORD)), "a secret in the log"
    print("what the broker had kept was not obeyed;", len(discovered), "entities announced")
finally:
    listener.stop()
    for process in (door, broker):
        if process.poll() is None:
            process.kill()
