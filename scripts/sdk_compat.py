"""The vendor's Python SDK against the local SLS: what the SDK sends must be served, and what it
reads must be what was sent. Started by sdk_compat.sh; exits non-zero on the first difference.

Client and simulator of this project share their signatures, compression and protobuf code, so only
a foreign client can tell whether those are right."""

import os
import time
import uuid

from aliyun.log import IndexConfig, IndexKeyConfig, LogClient, LogException, LogItem, PutLogsRequest

ENDPOINT = os.environ["SIM_ENDPOINT"].rstrip("/")
KEY_ID = os.environ["ALIYUN_SLS_ACCESS_KEY_ID"]
KEY_SECRET = os.environ["ALIYUN_SLS_ACCESS_KEY_SECRET"]
REGION = "cn-hangzhou"

# A new project each time, so that the script can be run again on the same server.
PROJECT = "sdk-" + uuid.uuid4().hex[:12]
STORE = "workflow_execution"
HASH_KEYS = ["0" * 32, "5" + "F" * 31, "F" * 32]
NOW_S = int(time.time())
TEXT = "你好 \n\"x\" 𝄞"


def client(version, secret=KEY_SECRET, key_id=KEY_ID):
    made = LogClient(
        ENDPOINT, key_id, secret, source="127.0.0.9", auth_version=version, region=REGION
    )
    # The SDK knows a bare address only without scheme and port; else it would look up
    # "project.127.0.0.1".
    made._isRowIp = True
    return made


def equal(what, got, wanted):
    if got != wanted:
        raise SystemExit(f"{what}: got {got!r}, wanted {wanted!r}")
    print(f"ok  {what}")


def refused(what, status, code, call):
    try:
        call()
    except LogException as error:
        equal(what, (error.resp_status, error.get_error_code()), (status, code))
        if not error.get_request_id():
            raise SystemExit(f"{what}: no request id")
    else:
        raise SystemExit(f"{what}: was not refused")


def set_up(v1, v4):
    refused("missing project", 404, "ProjectNotExist", lambda: v1.get_project(PROJECT))
    v1.create_project(PROJECT, "made by sdk_compat.py")
    refused("project twice", 400, "ProjectAlreadyExist", lambda: v4.create_project(PROJECT, ""))
    equal("project", v4.get_project(PROJECT).get_body()["projectName"], PROJECT)

    refused("missing logstore", 404, "LogStoreNotExist", lambda: v4.get_logstore(PROJECT, STORE))
    v4.create_logstore(PROJECT, STORE, ttl=3650, shard_count=4)
    refused("logstore twice", 400, "LogStoreAlreadyExist",
            lambda: v1.create_logstore(PROJECT, STORE))
    settings = v1.get_logstore(PROJECT, STORE)
    equal("logstore", (settings.get_ttl(), settings.get_shard_count()), (3650, 4))
    v1.update_logstore(PROJECT, STORE, ttl=365)
    equal("updated logstore", v1.get_logstore(PROJECT, STORE).get_ttl(), 365)

    refused("missing index", 400, "IndexConfigNotExist",
            lambda: v1.get_index_config(PROJECT, STORE))
    keys = {
        "id": IndexKeyConfig([" ", ","], doc_value=True),
        "n": IndexKeyConfig(index_type="long"),
    }
    v4.create_index(PROJECT, STORE, IndexConfig(key_config_list=keys))
    got = v1.get_index_config(PROJECT, STORE).get_index_config()
    equal("index", got.to_json()["keys"], IndexConfig(key_config_list=keys).to_json()["keys"])

    shards = v1.list_shards(PROJECT, STORE).get_shards_info()
    equal("shards", [shard["shardID"] for shard in shards], [0, 1, 2, 3])
    equal("first key", shards[1]["inclusiveBeginKey"], "4" + "0" * 31)
    equal("status", {shard["status"] for shard in shards}, {"readwrite"})


def put_all(clients):
    """Puts one group each way; gives the groups as they must come back."""
    put = []
    for client_ in clients:
        for compress in (True, False):
            for hash_key in (None, *HASH_KEYS):
                number = len(put)
                time_s = NOW_S - number
                contents = [
                    ("id", f"run-{number}"), ("n", str(number)), ("text", TEXT), ("empty", ""),
                ]
                tags = [("__batch__", f"7/{number}")]
                request = PutLogsRequest(
                    PROJECT, STORE, topic="", source="10.0.0.1", hashKey=hash_key,
                    logitems=[LogItem(timestamp=time_s, contents=contents)],
                    compress=compress, logtags=tags,
                )
                client_.put_logs(request)
                put.append((time_s, contents, "10.0.0.1", tags, hash_key))
    return put


def pull_all(client_, compress):
    """All groups of all shards, two at a time, with the shard of each."""
    groups = []
    for shard in client_.list_shards(PROJECT, STORE).get_shards_info():
        shard_id = shard["shardID"]
        cursor = client_.get_begin_cursor(PROJECT, STORE, shard_id).get_cursor()
        end = client_.get_end_cursor(PROJECT, STORE, shard_id).get_cursor()
        while cursor != end:
            answer = client_.pull_logs(PROJECT, STORE, shard_id, cursor, 2, end, compress=compress)
            if answer.get_loggroup_count() == 0:
                raise SystemExit(f"shard {shard_id}: nothing between {cursor} and {end}")
            received = client_.get_cursor_time(PROJECT, STORE, shard_id, cursor).get_cursor_time()
            if not NOW_S - 1 <= received <= time.time() + 1:
                raise SystemExit(f"shard {shard_id}: received at {received}")
            for group in answer.get_loggroup_list().LogGroups:
                (log,) = group.Logs
                contents = [(content.Key, content.Value) for content in log.Contents]
                tags = [(tag.Key, tag.Value) for tag in group.LogTags]
                groups.append((shard_id, (log.Time, contents, group.Source, tags)))
            cursor = answer.get_next_cursor()
        answer = client_.pull_logs(PROJECT, STORE, shard_id, end, 1000, compress=compress)
        if (answer.get_loggroup_count(), answer.get_next_cursor()) != (0, end):
            raise SystemExit(f"shard {shard_id}: something after the end")
    return groups


def write_and_read(v1, v4):
    put = put_all([v1, v4])
    wanted = sorted(group[:4] for group in put)
    for name, client_ in (("V1", v1), ("V4", v4)):
        for compress in (True, False):
            got = pull_all(client_, compress)
            equal(f"pulled, {name}, compress={compress}", sorted(group for _, group in got), wanted)
    owners = dict(zip(HASH_KEYS, (0, 1, 3)))
    shard_of = {group[0]: shard for shard, group in got}
    for time_s, _, _, _, hash_key in put:
        if hash_key is not None:
            equal(f"shard of {hash_key[:4]}…", shard_of[time_s], owners[hash_key])
    return put


def search(v1, v4, put):
    start, end = NOW_S - 1000, NOW_S + 1
    for name, client_ in (("V1", v1), ("V4", v4)):
        for new in (True, False):
            client_._get_logs_v2_enabled = new
            got = client_.get_log(PROJECT, STORE, start, end, query="*")
            what = f"search, {name}, version {2 if new else 1}"
            equal(what, (got.get_count(), got.is_completed()), (len(put), True))
            times = [log.get_time() for log in got.get_logs()]
            equal(f"{what}, order", times, sorted(group[0] for group in put))
            got = client_.get_log(PROJECT, STORE, start, end, query='id: "run-3" and n: 3')
            found = [(log.get_time(), log.get_contents()["text"]) for log in got.get_logs()]
            equal(f"{what}, one", found, [(NOW_S - 3, TEXT)])
            equal(f"{what}, source", got.get_logs()[0].get_source(), "10.0.0.1")
            got = client_.get_log(PROJECT, STORE, start, end, query='__tag__:__batch__: "7/5"')
            equal(f"{what}, by tag", [log.get_time() for log in got.get_logs()], [NOW_S - 5])
            got = client_.get_log(
                PROJECT, STORE, start, end, query="*", size=2, offset=1, reverse=True
            )
            page = [log.get_time() for log in got.get_logs()]
            equal(f"{what}, page", page, [NOW_S - 1, NOW_S - 2])


def refusals(v1):
    for version in ("v1", "v4"):
        wrong = client(version, secret="wrong")
        refused(f"wrong secret, {version}", 401, "SignatureNotMatch",
                lambda: wrong.list_shards(PROJECT, STORE))
        unknown = client(version, key_id="nobody")
        refused(f"unknown key, {version}", 401, "InvalidAccessKeyId",
                lambda: unknown.list_shards(PROJECT, STORE))
    item = LogItem(timestamp=NOW_S, contents=[("a", "b")])
    bad = PutLogsRequest(PROJECT, "missing-store", topic="", source="x", logitems=[item])
    refused("write to a missing logstore", 404, "LogStoreNotExist", lambda: v1.put_logs(bad))
    bad = PutLogsRequest(PROJECT, STORE, topic="", source="x", logitems=[item], hashKey="5F")
    refused("short hash key", 400, "ParameterInvalid", lambda: v1.put_logs(bad))
    twice = LogItem(timestamp=NOW_S, contents=[("a", "b"), ("a", "c")])
    bad = PutLogsRequest(PROJECT, STORE, topic="", source="x", logitems=[twice])
    refused("a key twice", 400, "InvalidKey", lambda: v1.put_logs(bad))
    refused("missing shard", 400, "ShardNotExist",
            lambda: v1.get_begin_cursor(PROJECT, STORE, 99))
    refused("bad cursor", 400, "InvalidCursor",
            lambda: v1.pull_logs(PROJECT, STORE, 0, "bm9uZQ==", 1))
    v1.delete_index(PROJECT, STORE)
    refused("search without index", 400, "IndexConfigNotExist",
            lambda: v1.get_log(PROJECT, STORE, NOW_S - 1, NOW_S, query="*"))
    v1.delete_logstore(PROJECT, STORE)
    refused("deleted logstore", 404, "LogStoreNotExist", lambda: v1.list_shards(PROJECT, STORE))


def main():
    v1, v4 = client("v1"), client("v4")
    set_up(v1, v4)
    put = write_and_read(v1, v4)
    search(v1, v4, put)
    refusals(v1)
    print(f"the SDK and the local SLS at {ENDPOINT} agree")


if __name__ == "__main__":
    main()
