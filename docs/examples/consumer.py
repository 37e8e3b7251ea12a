"""Acts on each signal exactly once: python consumer.py redis://127.0.0.1:6379/0 acted.db THIS_CONSUMER SYMBOL…"""

import sqlite3
import sys
import time

from redis import Redis, ResponseError

url, file, me, *symbols = sys.argv[1:]
GROUP, IDLE_MS = "traders", 10_000  # what someone took and did not finish in this time is taken over
streams = [f"sig:champion:{symbol}" for symbol in symbols]
server = Redis.from_url(url, decode_responses=True)
table = sqlite3.connect(file, timeout=60, isolation_level=None)  # of all consumers of the group
table.execute("CREATE TABLE IF NOT EXISTS acted (id TEXT PRIMARY KEY, symbol TEXT, side INT, T INT, in_time INT)")


def act(stream, entries):
    for entry, signal in entries:
        in_time = time.time() * 1000 <= int(signal["valid_until"])
        row = (signal["id"], signal["sym"], signal["side"], signal["T"], in_time)
        table.execute("INSERT OR IGNORE INTO acted VALUES (?, ?, ?, ?, ?)", row)  # the effect: once for an id
        server.xack(stream, GROUP, entry)  # only now: who dies before will be given it again


for stream in streams:
    try:
        server.xgroup_create(stream, GROUP, id="0", mkstream=True)
    except ResponseError:
        pass  # the group is there already
while True:
    for stream in streams:
        act(stream, server.xautoclaim(stream, GROUP, me, min_idle_time=IDLE_MS)[1])
    for stream, entries in server.xreadgroup(GROUP, me, dict.fromkeys(streams, ">"), count=100, block=1000):
        act(stream, entries)
