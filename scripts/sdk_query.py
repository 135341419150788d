"""Searches and SQL through the vendor's Python SDK against the local SLS: the statements of Dify's
readers, and what is known of SLS's answers. Started by sdk_compat.sh behind sdk_compat.py; exits
non-zero on the first difference."""

import time

from aliyun.log import (
    GetHistogramsRequest, GetLogsRequest, IndexConfig, IndexKeyConfig, IndexLineConfig, LogItem,
    PutLogsRequest,
)
from aliyun.log.deletelogsrequest import DeleteLogsRequest
from aliyun.log.getdeletelogsstatusrequest import GetDeleteLogsStatusRequest
from aliyun.log.listdeletelogsstasksrequest import ListDeleteLogsTasksRequest
from aliyun.log.util import is_stats_query

from sdk_compat import NOW_S, PROJECT, client, equal, refused

STORE = "workflow_execution"
TENANT, APP = "tenant-1", "app-1"
TOKENS = list(', ";=()[]{}?@&<>/:\n\t')
TEXT = "你好 \"x\" 𝄞"
RUNS = 30
# Ten runs a day, the last of them yesterday; each has a log of its begin and one of its end.
DAY_S = 86_400
FIRST_S = NOW_S // DAY_S * DAY_S - 3 * DAY_S


def index():
    """The index as Dify's extension makes it."""
    def text():
        return IndexKeyConfig(
            index_type="text", case_sensitive=False, doc_value=True, token_list=TOKENS, chinese=True
        )
    keys = {name: text() for name in (
        "id", "tenant_id", "app_id", "triggered_from", "status", "outputs", "error", "created_at",
        "created_by", "started_at", "finished_at",
    )}
    for name in ("total_tokens", "log_version"):
        keys[name] = IndexKeyConfig(index_type="long", doc_value=True)
    keys["elapsed_time"] = IndexKeyConfig(index_type="double", doc_value=True)
    line = IndexLineConfig(token_list=TOKENS, case_sensitive=False, chinese=True)
    return IndexConfig(line_config=line, key_config_list=keys, scan_index=True)


def iso(time_s):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_s))


def logs_of_run(number):
    """The log of a run's begin and, for most, that of its end, as Dify writes them."""
    begin_s = FIRST_S + number // 10 * DAY_S + number % 10 * 3600
    common = [
        ("id", f"run-{number}"), ("tenant_id", TENANT), ("app_id", APP),
        ("triggered_from", "app-run"), ("created_by", f"user-{number % 3}"),
        ("started_at", iso(begin_s)), ("error", ""),
    ]
    running = [
        ("log_version", str(begin_s * 10**9)), ("status", "running"), ("finished_at", ""),
        ("outputs", "{}"), ("total_tokens", "0"),
    ]
    yield begin_s, common + running
    if number % 10 != 9:
        end_s = begin_s + 60
        ended = [
            ("log_version", str(end_s * 10**9)), ("finished_at", iso(end_s)),
            ("status", "failed" if number % 4 == 0 else "succeeded"),
            ("outputs", TEXT + "x" * 3000), ("total_tokens", str(number)),
        ]
        yield end_s, common + ended


def dicts(answer):
    return [log.get_contents() for log in answer.get_logs()]


def ask(client_, query, first_s=0, last_s=None, **options):
    """get_log in both versions, and get_logs as Dify calls it: they must agree."""
    last_s = last_s or int(time.time()) + 1
    answers = []
    for is_new in (False, True):
        client_._get_logs_v2_enabled = is_new
        answer = client_.get_log(PROJECT, STORE, first_s, last_s, query=query, **options)
        if not answer.is_completed():
            raise SystemExit(f"{query}: incomplete")
        if answer.get_has_sql() != is_stats_query(query):
            raise SystemExit(f"{query}: has SQL: {answer.get_has_sql()}")
        answers.append(dicts(answer))
    if not options:
        request = GetLogsRequest(PROJECT, STORE, first_s, last_s, query=query)
        answers.append(dicts(client_.get_logs(request)))
    for other in answers[1:]:
        if other != answers[0]:
            raise SystemExit(f"{query}: the versions differ: {answers[0]!r} and {other!r}")
    return answers[0]


def windowed(condition):
    return (
        "SELECT * FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) "
        f"AS rn FROM {STORE} WHERE {condition}) t WHERE rn = 1"
    )


def statements(client_, runs):
    """The statements of Dify's readers, against what was put."""
    of_app = f"tenant_id='{TENANT}' AND app_id='{APP}' AND (triggered_from='app-run')"
    got = ask(client_, f"* | {windowed(of_app)} ORDER BY created_at DESC LIMIT 1000")
    newest = {logs[-1]["id"]: logs[-1] for logs in runs}
    equal("list", {row["id"]: row["status"] for row in got},
          {id_: log["status"] for id_, log in newest.items()})
    row = next(row for row in got if row["id"] == "run-1")
    equal("a field that is missing", row["created_at"], "null")
    equal("a text that is empty", row["error"], "")
    equal("a text that is long", row["outputs"].encode(),
          newest["run-1"]["outputs"].encode()[:2048])

    got = ask(client_, f'id:"run-1" and tenant_id:"{TENANT}" and app_id:"{APP}"', reverse=False)
    equal("by id, searched", [(log["status"], log["outputs"]) for log in got],
          [(log["status"], log["outputs"]) for log in runs[1]])
    sql = windowed("id = 'run-1' AND __time__ > 0").replace(STORE, f'"{STORE}"')
    equal("by id, SQL", [row["status"] for row in ask(client_, f"* | {sql} LIMIT 100")],
          ["succeeded"])

    ended = [logs[-1] for logs in runs if len(logs) == 2]
    sql = f"SELECT COUNT(DISTINCT id) as count FROM {STORE} WHERE {of_app} AND status='failed'"
    equal("count of a status", ask(client_, f"* | {sql} AND finished_at IS NOT NULL"),
          [{"count": str(sum(log["status"] == "failed" for log in ended))}])
    running = windowed(f"{of_app} AND status='running'").replace("SELECT * FROM (", "", 1)
    sql = f"SELECT COUNT(*) as count FROM ({running}"
    equal("count of running", ask(client_, f"* | {sql}"), [{"count": str(RUNS)}])

    days = sorted({log["finished_at"][:10] for log in ended})
    finished = f"{of_app} AND status != 'running'"
    sql = (
        f"SELECT DATE(from_unixtime(__time__)) as date, SUM(total_tokens) as token_count, "
        f"COUNT(DISTINCT created_by) as terminal_count, approx_distinct(id) as runs FROM {STORE} "
        f"WHERE {finished} AND __time__ >= to_unixtime(from_iso8601_timestamp('{iso(FIRST_S)}')) "
        "GROUP BY date ORDER BY date"
    )
    wanted = []
    for day in days:
        of_day = [log for log in ended if log["finished_at"].startswith(day)]
        wanted.append({
            "date": day, "token_count": str(sum(int(log["total_tokens"]) for log in of_day)),
            "terminal_count": str(len({log["created_by"] for log in of_day})),
            "runs": str(len(of_day)),
        })
    equal("daily", ask(client_, f"* | {sql}"), wanted)
    sql = (
        "SELECT AVG(sub.interactions) AS interactions, sub.date FROM (SELECT "
        f"DATE(from_unixtime(__time__)) AS date, created_by, COUNT(DISTINCT id) AS interactions "
        f"FROM {STORE} WHERE {finished} GROUP BY date, created_by) sub GROUP BY sub.date"
    )
    got = {row["date"]: float(row["interactions"]) for row in ask(client_, f"* | {sql}")}
    equal("average", got,
          {row["date"]: int(row["runs"]) / int(row["terminal_count"]) for row in wanted})

    created = "to_unixtime(from_iso8601_timestamp(COALESCE(NULLIF(created_at, ''), started_at)))"
    sql = (
        f"SELECT id FROM ({windowed('__time__ > 0')}) runs ORDER BY {created} DESC, id DESC "
        "LIMIT 20, 5"
    )
    equal("a page of the newest readers", [row["id"] for row in ask(client_, f"* | {sql}")],
          [f"run-{number}" for number in (9, 8, 7, 6, 5)])


def traps(client_):
    """What one does not expect."""
    equal("100 rows without a limit", len(ask(client_, "* | SELECT a.id FROM log a, log b")), 100)
    rows = ask(client_, f"status: failed | SELECT elapsed_time, id FROM {STORE} ORDER BY 1, 2 LIMIT 1")
    equal("NULL", rows, [{"elapsed_time": "null", "id": "run-0"}])
    got = ask(client_, "total_tokens in [1 3] and not status: running", size=2, reverse=True)
    equal("a page of a range", [log["id"] for log in got], ["run-3", "run-2"])
    for query in (
        f"* | SELECT id FROM {STORE} LIMIT 10 OFFSET 20", "* | SELECT nowhere FROM log",
        "* | SELEC id", "nowhere: 1",
    ):
        refused(query, 400, "ParameterInvalid", lambda q=query: ask(client_, q))


def histograms_and_deletion(client_, count):
    def counted():
        request = GetHistogramsRequest(PROJECT, STORE, 0, NOW_S, query="*")
        answer = client_.get_histograms(request)
        equal("histogram is complete", answer.is_completed(), True)
        return answer.get_total_count()
    equal("histogram", counted(), count)
    request = DeleteLogsRequest(PROJECT, STORE, 0, NOW_S, query="status: failed")
    task = client_.delete_logs(request).get_taskid()
    status = client_.get_delete_logs_status(GetDeleteLogsStatusRequest(PROJECT, STORE, task))
    equal("deletion is done", status.is_completed(), True)
    tasks = client_.list_delete_logs_tasks(ListDeleteLogsTasksRequest(PROJECT, STORE))
    equal("deletions", (tasks.get_total(), tasks.is_completed()), (1, True))
    gone = sum(number % 4 == 0 and number % 10 != 9 for number in range(RUNS))
    equal("histogram after the deletion", counted(), count - gone)
    equal("SQL after the deletion",
          ask(client_, "* | SELECT COUNT(*) AS c"), [{"c": str(count - gone)}])
    cursor = client_.get_begin_cursor(PROJECT, STORE, 0).get_cursor()
    pulled = client_.pull_logs(PROJECT, STORE, 0, cursor, 1000)
    equal("pulled after the deletion", pulled.get_loggroup_count(), count)


def main():
    v1, v4 = client("v1"), client("v4")
    v4.create_project(PROJECT, "made by sdk_query.py")
    v4.create_logstore(PROJECT, STORE, ttl=3650, shard_count=1)
    v4.create_index(PROJECT, STORE, index())
    runs = []
    for number in range(RUNS):
        runs.append([])
        for time_s, contents in logs_of_run(number):
            item = LogItem(timestamp=time_s, contents=contents)
            v4.put_logs(PutLogsRequest(PROJECT, STORE, topic="", source="10.0.0.1", logitems=[item]))
            runs[-1].append(dict(contents))
    for client_ in (v1, v4):
        statements(client_, runs)
        traps(client_)
    histograms_and_deletion(v4, sum(map(len, runs)))
    v4.delete_logstore(PROJECT, STORE)
    print("the SDK's searches and SQL are answered as they should be")


if __name__ == "__main__":
    main()
