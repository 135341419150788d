"""Moves node executions to SLS with the vendor's SDK in a loop, as one would write it by hand.

Prints the seconds it took for as many rows as its argument says. It is given every advantage: rows
in the order they lie in the table, a cursor on the server, 500 logs a request, lz4, and no
conversion of the JSON columns, which Dify's own writer would spell in another way.
"""

import os
import sys
import time
from datetime import timezone

import psycopg2
from aliyun.log import LogClient, LogItem, PutLogsRequest

LOGS_PER_REQUEST = 500


def main():
    rows_max = int(sys.argv[1])
    project = os.environ["ALIYUN_SLS_PROJECT_NAME"]
    client = LogClient(
        os.environ["ALIYUN_SLS_ENDPOINT"],
        os.environ["ALIYUN_SLS_ACCESS_KEY_ID"],
        os.environ["ALIYUN_SLS_ACCESS_KEY_SECRET"],
    )
    # Else the SDK puts the project before the host name, which no IP address survives.
    client._isRowIp = True
    connection = psycopg2.connect(
        host=os.environ["DB_HOST"],
        port=os.environ["DB_PORT"],
        user=os.environ["DB_USERNAME"],
        password=os.environ["DB_PASSWORD"],
        dbname=os.environ["DB_DATABASE"],
    )
    begin = time.monotonic()
    rows_sent = 0
    with connection.cursor(name="rows") as cursor:
        cursor.itersize = LOGS_PER_REQUEST
        cursor.execute("SELECT * FROM workflow_node_executions LIMIT %s", (rows_max,))
        while rows := cursor.fetchmany(LOGS_PER_REQUEST):
            names = [column.name for column in cursor.description]
            logs = [log_of(dict(zip(names, row))) for row in rows]
            # A source of our own keeps the SDK from looking for our IP address.
            request = PutLogsRequest(
                project, "workflow_node_execution", "", "sdk-loop", logs, compress=True
            )
            client.put_logs(request)
            rows_sent += len(rows)
    if rows_sent == 0:
        sys.exit("there are no rows")
    print(f"{time.monotonic() - begin:.3f}")


def log_of(row):
    ended = (row["finished_at"] or row["created_at"]).replace(tzinfo=timezone.utc)
    contents = [(name, "" if value is None else str(value)) for name, value in row.items()]
    return LogItem(timestamp=int(ended.timestamp()), contents=contents)


if __name__ == "__main__":
    main()
