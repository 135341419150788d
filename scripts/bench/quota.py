"""Runs a command against the local SLS for a while; prints which part of the shards' quotas it used, and
which part of its requests was refused.

The arguments: how many shards take writes, the bytes that each takes in a second, after how many
seconds to stop the command, then the command. Counted is from the tenth second after its first stored
request to the last but five: until then it learns what the shards take.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

LEARNS_S = 10
ENDS_S = 5
LEAST_S = 5


def sample():
    with urllib.request.urlopen(os.environ["ALIYUN_SLS_ENDPOINT"] + "/_sim/stats") as answer:
        told = json.load(answer)
    refused = told["errors"].get("ShardWriteQuotaExceed", 0)
    return time.monotonic(), told["raw_bytes"], told["put_ok"], refused


def main():
    shards, bytes_per_s, length_s = (int(argument) for argument in sys.argv[1:4])
    _, _, stored_before, _ = sample()
    process = subprocess.Popen(sys.argv[4:], stdout=subprocess.DEVNULL)
    samples = []
    while process.poll() is None:
        now = sample()
        if now[2] > stored_before:
            samples.append(now)
        if samples and now[0] > samples[0][0] + length_s:
            break
        time.sleep(0.1)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    code = process.wait()
    if code not in (0, 75):
        sys.exit(f"{sys.argv[4]} ended with {code}")
    begin = next((s for s in samples if s[0] >= samples[0][0] + LEARNS_S), None)
    end = next((s for s in reversed(samples) if s[0] <= samples[-1][0] - ENDS_S), None)
    if begin is None or end is None or end[0] - begin[0] < LEAST_S:
        sys.exit("it ended too soon to tell: more ROWS")
    seconds, raw_bytes, stored, refused = (late - early for late, early in zip(end, begin))
    used = raw_bytes / seconds / (shards * bytes_per_s)
    print(f"{used:.4f} {refused / (stored + refused):.4f}")


if __name__ == "__main__":
    main()
