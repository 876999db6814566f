#!/usr/bin/env python3
"""Holds what the door announces against Home Assistant's own schemas.

usage: ha_schema.py discovery.json

Needs the packages that the README beside this file names.
"""
import importlib
import json
import sys

found = json.load(open(sys.argv[1]))
for topic, payload in sorted(found.items()):
    component = topic.split("/")[1]
    module = importlib.import_module(f"homeassistant.components.mqtt.{component}")
    module.DISCOVERY_SCHEMA(payload)
    print("valid", component, payload["unique_id"])
