-- The ledger: the durable book of what was read, sent, proved and purged.
-- Every table lives in the schema sls_backfill, beside Dify's own and touching none of them.

CREATE TABLE sls_backfill.ledger (
  singleton       boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  id              uuid NOT NULL,
  seal_key        bytea NOT NULL,
  created_at      timestamptz NOT NULL DEFAULT now(),
  project         text,
  endpoint        text,
  epoch           bigint NOT NULL DEFAULT 0,
  own_identity    jsonb,
  source_identity jsonb,
  stopped_because text,
  audit           jsonb,
  audited_groups  jsonb NOT NULL DEFAULT '{}',
  seqid_proven    boolean,
  seqid_probed_at timestamptz,
  seqid_of        text
);
COMMENT ON TABLE  sls_backfill.ledger IS 'One row: who this ledger is and where it sends.';
COMMENT ON COLUMN sls_backfill.ledger.singleton IS 'Always true: there is one row.';
COMMENT ON COLUMN sls_backfill.ledger.id IS 'Random; first half of every __batch__ tag in SLS.';
COMMENT ON COLUMN sls_backfill.ledger.seal_key IS '32 random bytes; with them it makes the __seal__ tag, by which it knows its own batches in SLS.';
COMMENT ON COLUMN sls_backfill.ledger.created_at IS 'When the ledger was made.';
COMMENT ON COLUMN sls_backfill.ledger.project IS 'The SLS project that the batches went to; NULL before the first run. Another one is refused.';
COMMENT ON COLUMN sls_backfill.ledger.endpoint IS 'The SLS that the project is in: host (and port, if it is not the usual one) without -intranet or -share; NULL before the first run. Another one is refused until an audit has looked into it.';
COMMENT ON COLUMN sls_backfill.ledger.epoch IS 'Number of the last process that might send; each takes the next.';
COMMENT ON COLUMN sls_backfill.ledger.own_identity IS 'The Postgres and the table that hold this ledger, as last seen: system identifier, timeline, object ids; another one may be a copy, or a state of the past.';
COMMENT ON COLUMN sls_backfill.ledger.source_identity IS 'The source as last seen: system identifier, timeline, database.';
COMMENT ON COLUMN sls_backfill.ledger.stopped_because IS 'Why nothing may be sent before an audit; NULL: nothing stands against it.';
COMMENT ON COLUMN sls_backfill.ledger.audit IS 'An audit that is not finished: its number, when it began to keep others out (Unix s, SLS''s clock), the consumer groups of others it found; NULL: none.';
COMMENT ON COLUMN sls_backfill.ledger.audited_groups IS 'Consumer groups of other ledgers, with their timeouts, whose batches an audit has written down: they stay in SLS, to vouch for these batches should this ledger be dropped, too.';
COMMENT ON COLUMN sls_backfill.ledger.seqid_proven IS 'Whether a probe saw SLS refuse a repeated number; NULL: not probed.';
COMMENT ON COLUMN sls_backfill.ledger.seqid_probed_at IS 'When that probe was made.';
COMMENT ON COLUMN sls_backfill.ledger.seqid_of IS 'The project and endpoint that it was made on; it tells nothing about any other.';

CREATE TABLE sls_backfill.generation (
  logstore       text NOT NULL,
  number         integer NOT NULL,
  created_at_s   bigint,
  ttl_days       integer,
  others_since_s bigint,
  audited        boolean NOT NULL,
  first_seen_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (logstore, number)
);
COMMENT ON TABLE  sls_backfill.generation IS 'Each creation of a logstore. The highest number is the logstore as it is now; what was sent to, seen or proved in an earlier one is gone with it.';
COMMENT ON COLUMN sls_backfill.generation.logstore IS 'The logstore.';
COMMENT ON COLUMN sls_backfill.generation.number IS 'From 1.';
COMMENT ON COLUMN sls_backfill.generation.created_at_s IS 'When SLS says that it was made (createTime of GetLogstore, Unix s); NULL: it does not say.';
COMMENT ON COLUMN sls_backfill.generation.ttl_days IS 'How many days it keeps logs, as last seen; 3650: for ever; NULL: SLS does not say.';
COMMENT ON COLUMN sls_backfill.generation.others_since_s IS 'The oldest log time (Unix s) in log groups of another writer that were read in it; NULL: none was.';
COMMENT ON COLUMN sls_backfill.generation.audited IS 'Whether nothing was to be lost when it was first met, or an audit has looked since what of it is left.';
COMMENT ON COLUMN sls_backfill.generation.first_seen_at IS 'When the ledger first met it.';

CREATE TABLE sls_backfill.process (
  id          uuid PRIMARY KEY,
  epoch       bigint NOT NULL UNIQUE,
  stamp       integer NOT NULL,
  host        text NOT NULL,
  boot_id     text NOT NULL,
  pid         bigint NOT NULL,
  pid_started bigint NOT NULL,
  joined      boolean NOT NULL,
  version     text NOT NULL,
  started_at  timestamptz NOT NULL DEFAULT now(),
  lease_until timestamptz NOT NULL,
  ended_at    timestamptz
);
COMMENT ON TABLE  sls_backfill.process IS 'Every process that might send, with its lease.';
COMMENT ON COLUMN sls_backfill.process.id IS 'Random.';
COMMENT ON COLUMN sls_backfill.process.epoch IS 'Its number from ledger.epoch; its consumer groups in SLS bear it.';
COMMENT ON COLUMN sls_backfill.process.stamp IS 'Random; the timeout (s) of these consumer groups, by which they are told from those of a copy with the same number.';
COMMENT ON COLUMN sls_backfill.process.host IS 'Host name; with boot_id, pid and pid_started it tells whether a process on the same machine is dead.';
COMMENT ON COLUMN sls_backfill.process.boot_id IS 'The kernel''s boot id and the process''s pid namespace.';
COMMENT ON COLUMN sls_backfill.process.pid IS 'Process id.';
COMMENT ON COLUMN sls_backfill.process.pid_started IS 'Start time of that pid in clock ticks since boot, 0 where unknown.';
COMMENT ON COLUMN sls_backfill.process.joined IS 'Whether it was started with --join; at most one living process was not.';
COMMENT ON COLUMN sls_backfill.process.version IS 'Version of the tool.';
COMMENT ON COLUMN sls_backfill.process.started_at IS 'When it entered the ledger.';
COMMENT ON COLUMN sls_backfill.process.lease_until IS 'Alive until then, on the ledger''s clock; renewed every few seconds.';
COMMENT ON COLUMN sls_backfill.process.ended_at IS 'When it left, or was found dead.';

CREATE TABLE sls_backfill.conversion (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  table_name  text NOT NULL,
  fingerprint text NOT NULL,
  body        jsonb NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  UNIQUE (table_name, fingerprint)
);
COMMENT ON TABLE  sls_backfill.conversion IS 'What decides the bytes of a log; every batch names its own.';
COMMENT ON COLUMN sls_backfill.conversion.id IS 'Its number.';
COMMENT ON COLUMN sls_backfill.conversion.table_name IS 'The source table it is for.';
COMMENT ON COLUMN sls_backfill.conversion.fingerprint IS 'The tag __conversion__ of its batches in SLS: the first 16 hex digits of BLAKE3 over body with sorted keys and no spaces.';
COMMENT ON COLUMN sls_backfill.conversion.body IS 'Version of the rules, columns and their types, graph flag, log time.';
COMMENT ON COLUMN sls_backfill.conversion.created_at IS 'When it was first used.';

CREATE TABLE sls_backfill.pass (
  id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  table_name    text NOT NULL,
  logstore      text NOT NULL,
  since         timestamp,
  until         timestamp NOT NULL,
  tenant_id     uuid,
  app_id        uuid,
  key_order     text NOT NULL,
  conversion_id bigint NOT NULL REFERENCES sls_backfill.conversion,
  state         text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done')),
  cut_order     text NOT NULL,
  cut_after     jsonb NOT NULL,
  cut_done      boolean NOT NULL DEFAULT false,
  holds_cut     boolean NOT NULL DEFAULT false,
  opened_at     timestamptz NOT NULL DEFAULT now(),
  closed_at     timestamptz
);
CREATE UNIQUE INDEX pass_one_open ON sls_backfill.pass (table_name) WHERE state = 'open';
COMMENT ON TABLE  sls_backfill.pass IS 'One table, one window on created_at, one filter; one open pass a table.';
COMMENT ON COLUMN sls_backfill.pass.id IS 'Its number.';
COMMENT ON COLUMN sls_backfill.pass.table_name IS 'The source table.';
COMMENT ON COLUMN sls_backfill.pass.logstore IS 'The logstore its logs go to.';
COMMENT ON COLUMN sls_backfill.pass.since IS 'Rows created before it are left out (UTC); NULL: no lower bound.';
COMMENT ON COLUMN sls_backfill.pass.until IS 'Rows created at it or later are left out (UTC).';
COMMENT ON COLUMN sls_backfill.pass.tenant_id IS 'Only rows of this tenant; NULL: all.';
COMMENT ON COLUMN sls_backfill.pass.app_id IS 'Only rows of this app; NULL: all.';
COMMENT ON COLUMN sls_backfill.pass.key_order IS 'time, by-run or walk: the order in which rows are read.';
COMMENT ON COLUMN sls_backfill.pass.conversion_id IS 'The conversion of its batches to come.';
COMMENT ON COLUMN sls_backfill.pass.state IS 'open or done.';
COMMENT ON COLUMN sls_backfill.pass.cut_order IS 'The order now being cut: key_order, then rest after by-run.';
COMMENT ON COLUMN sls_backfill.pass.cut_after IS 'The key behind which the next range begins (at: µs since 2000).';
COMMENT ON COLUMN sls_backfill.pass.cut_done IS 'Whether the whole key space is cut into ranges.';
COMMENT ON COLUMN sls_backfill.pass.holds_cut IS 'Whether the open holds of its table that a run looks at again are cut into ranges of it.';
COMMENT ON COLUMN sls_backfill.pass.opened_at IS 'When it was opened first.';
COMMENT ON COLUMN sls_backfill.pass.closed_at IS 'When its last range was done; open again with it, a pass whose ranges are read again.';

CREATE TABLE sls_backfill.range (
  id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  pass_id       bigint NOT NULL REFERENCES sls_backfill.pass,
  kind          text NOT NULL CHECK (kind IN
    ('time', 'by-run', 'walk', 'rest', 'holds', 'holds in turn')),
  after         jsonb NOT NULL,
  upto          jsonb,
  position      jsonb NOT NULL,
  state         text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done')),
  owner         uuid REFERENCES sls_backfill.process,
  lease_until   timestamptz,
  token         bigint NOT NULL DEFAULT 0,
  rows_seen     bigint NOT NULL DEFAULT 0,
  rows_already  bigint NOT NULL DEFAULT 0,
  rows_gone     bigint NOT NULL DEFAULT 0,
  rows_expired  bigint NOT NULL DEFAULT 0,
  expired_before timestamp,
  readings      integer NOT NULL DEFAULT 1,
  rows_read     bigint NOT NULL DEFAULT 0,
  rows_counted  bigint,
  opened_at     timestamptz NOT NULL DEFAULT now(),
  closed_at     timestamptz
);
CREATE INDEX range_open ON sls_backfill.range (pass_id) WHERE state = 'open';
CREATE INDEX range_unread ON sls_backfill.range (pass_id)
  WHERE state = 'done' AND rows_counted > rows_read;
COMMENT ON TABLE  sls_backfill.range IS 'A slice of a pass''s key space, or of its table''s open holds, that one worker owns at a time.';
COMMENT ON COLUMN sls_backfill.range.id IS 'Its number.';
COMMENT ON COLUMN sls_backfill.range.pass_id IS 'Its pass.';
COMMENT ON COLUMN sls_backfill.range.kind IS 'The key order it is read in; or holds, which every run looks at, or holds in turn, in the order in which they were last held.';
COMMENT ON COLUMN sls_backfill.range.after IS 'It begins behind this key.';
COMMENT ON COLUMN sls_backfill.range.upto IS 'It ends with this key; NULL: with the last one.';
COMMENT ON COLUMN sls_backfill.range.position IS 'Every row up to this key is in a batch, held, counted as expired, already there or gone.';
COMMENT ON COLUMN sls_backfill.range.state IS 'open or done.';
COMMENT ON COLUMN sls_backfill.range.owner IS 'The process that works on it.';
COMMENT ON COLUMN sls_backfill.range.lease_until IS 'Owned until then, on the ledger''s clock.';
COMMENT ON COLUMN sls_backfill.range.token IS 'Fencing token: grows with every owner, and every write names it.';
COMMENT ON COLUMN sls_backfill.range.rows_seen IS 'Rows of it, each once however often it was read; 0 for holds, whose rows were counted before.';
COMMENT ON COLUMN sls_backfill.range.rows_already IS 'Of these, rows that a live batch or an open hold had already. For holds: rows that a batch had meanwhile.';
COMMENT ON COLUMN sls_backfill.range.rows_gone IS 'Held rows that have not been in the table for two days.';
COMMENT ON COLUMN sls_backfill.range.rows_expired IS 'Of the rows seen, those that were older than the logstore keeps logs; they have no hold, and are read again when it keeps them.';
COMMENT ON COLUMN sls_backfill.range.expired_before IS 'All of these finished before it (UTC); NULL: there are none.';
COMMENT ON COLUMN sls_backfill.range.readings IS 'How often it was begun to be read.';
COMMENT ON COLUMN sls_backfill.range.rows_read IS 'Rows that were there in its last reading.';
COMMENT ON COLUMN sls_backfill.range.rows_counted IS 'Rows in it by one count of Postgres after that reading; NULL: not counted. More than were read: it is read again.';
COMMENT ON COLUMN sls_backfill.range.opened_at IS 'When it was cut.';
COMMENT ON COLUMN sls_backfill.range.closed_at IS 'When it was done.';

CREATE TABLE sls_backfill.lane (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  process_id  uuid NOT NULL REFERENCES sls_backfill.process,
  logstore    text NOT NULL,
  hash_key    text NOT NULL UNIQUE,
  last_number bigint NOT NULL DEFAULT 0,
  opened_at   timestamptz NOT NULL DEFAULT now(),
  closed_at   timestamptz
);
COMMENT ON TABLE  sls_backfill.lane IS 'A random hash key with numbers from 1; born and gone with a worker; one request in flight.';
COMMENT ON COLUMN sls_backfill.lane.id IS 'Its number.';
COMMENT ON COLUMN sls_backfill.lane.process_id IS 'The process whose worker sends on it.';
COMMENT ON COLUMN sls_backfill.lane.logstore IS 'The logstore it sends to.';
COMMENT ON COLUMN sls_backfill.lane.hash_key IS 'The key parameter of PutLogs: 32 hex digits.';
COMMENT ON COLUMN sls_backfill.lane.last_number IS 'The last seqid given to a batch; 0: none.';
COMMENT ON COLUMN sls_backfill.lane.opened_at IS 'When it was made.';
COMMENT ON COLUMN sls_backfill.lane.closed_at IS 'When its worker ended.';

CREATE TABLE sls_backfill.batch (
  id             uuid PRIMARY KEY,
  pass_id        bigint REFERENCES sls_backfill.pass,
  range_id       bigint REFERENCES sls_backfill.range,
  table_name     text NOT NULL,
  logstore       text NOT NULL,
  state          text NOT NULL CHECK (state IN
    ('intent', 'stored', 'proved', 'lost', 'split', 'abandoned', 'purging', 'purged')),
  generation     integer NOT NULL,
  rows           integer NOT NULL,
  raw_bytes      bigint NOT NULL,
  digest         bytea,
  not_json       integer NOT NULL,
  conversion_id  bigint REFERENCES sls_backfill.conversion,
  owner          uuid REFERENCES sls_backfill.process,
  lane_id        bigint REFERENCES sls_backfill.lane,
  number         bigint,
  sendings       integer NOT NULL DEFAULT 0,
  signed_at      timestamptz,
  attempts       integer NOT NULL DEFAULT 0,
  unknowns       integer NOT NULL DEFAULT 0,
  all_refused    boolean NOT NULL DEFAULT false,
  refusal        text,
  number_used_at timestamptz,
  cursors        jsonb NOT NULL,
  ingest_time    bigint NOT NULL,
  parent_id      uuid REFERENCES sls_backfill.batch,
  created_first  timestamp NOT NULL,
  finished_first timestamp NOT NULL,
  finished_last  timestamp NOT NULL,
  request_id     text,
  intended_at    timestamptz NOT NULL DEFAULT now(),
  stored_at      timestamptz,
  proved_at      timestamptz,
  purged_at      timestamptz,
  purged_rows    integer,
  purged_gone    integer,
  purged_changed integer,
  adopted_by     bigint,
  adopted_rows   integer NOT NULL DEFAULT 0,
  doubled_rows   integer NOT NULL DEFAULT 0,
  ledger_id      uuid,
  UNIQUE (lane_id, number),
  CHECK (adopted_by IS NOT NULL OR
    num_nulls(pass_id, range_id, conversion_id, digest) = 0)
);
CREATE INDEX batch_unproved ON sls_backfill.batch (table_name)
  WHERE state IN ('intent', 'stored');
CREATE INDEX batch_lost ON sls_backfill.batch (table_name, id) WHERE state = 'lost';
CREATE INDEX batch_pass ON sls_backfill.batch (pass_id);
CREATE INDEX batch_doubled ON sls_backfill.batch (table_name) WHERE doubled_rows > 0;
CREATE INDEX batch_to_purge ON sls_backfill.batch (table_name, finished_last)
  WHERE state = 'proved';
COMMENT ON TABLE  sls_backfill.batch IS 'Logs sent in one PutLogs call: unit of intent, proof and purge.';
COMMENT ON COLUMN sls_backfill.batch.id IS 'Second half of its __batch__ tag in SLS.';
COMMENT ON COLUMN sls_backfill.batch.pass_id IS 'Its pass; NULL where an audit has found it in SLS, as for all that SLS does not tell.';
COMMENT ON COLUMN sls_backfill.batch.range_id IS 'The range it was read from.';
COMMENT ON COLUMN sls_backfill.batch.table_name IS 'The source table.';
COMMENT ON COLUMN sls_backfill.batch.logstore IS 'The logstore it was sent to.';
COMMENT ON COLUMN sls_backfill.batch.state IS 'intent: may be in SLS; stored: SLS said so, or it was seen there; proved: pulled back and equal; lost: it was in SLS, an audit did not find it, and the TTL does not tell why (its rows are not sent again but by an explicit word); split, abandoned: not in SLS; purging, purged: its rows left Postgres.';
COMMENT ON COLUMN sls_backfill.batch.generation IS 'The creation of the logstore that it was last sent to, or last seen in.';
COMMENT ON COLUMN sls_backfill.batch.rows IS 'Number of logs.';
COMMENT ON COLUMN sls_backfill.batch.raw_bytes IS 'Bytes of the LogGroup before compression.';
COMMENT ON COLUMN sls_backfill.batch.digest IS 'Sum of its logs'' digests, 32 bytes; NULL: not known, for its tags cannot be read, so nothing proves it.';
COMMENT ON COLUMN sls_backfill.batch.not_json IS 'JSON columns in it whose text is not JSON and went through unchanged.';
COMMENT ON COLUMN sls_backfill.batch.conversion_id IS 'The conversion that made its bytes; NULL: not known.';
COMMENT ON COLUMN sls_backfill.batch.owner IS 'The process that alone may send it while it is an intent; NULL: nobody, it waits to be settled.';
COMMENT ON COLUMN sls_backfill.batch.lane_id IS 'The lane it was last sent on; NULL: not sent yet.';
COMMENT ON COLUMN sls_backfill.batch.number IS 'Its seqid on that lane.';
COMMENT ON COLUMN sls_backfill.batch.sendings IS 'On how many different numbers it was sent; the tag __attempt__ of its copies in SLS says on which of them, from 1. A number that is repeated is one sending.';
COMMENT ON COLUMN sls_backfill.batch.signed_at IS 'Date of its last signature, SLS''s clock; no request of it is signed later.';
COMMENT ON COLUMN sls_backfill.batch.attempts IS 'How often it was signed; 0: nothing of it was ever on the wire.';
COMMENT ON COLUMN sls_backfill.batch.unknowns IS 'Attempts without an answer that its senders told of.';
COMMENT ON COLUMN sls_backfill.batch.all_refused IS 'Every attempt was refused by SLS, so nothing of it is there; false: not known.';
COMMENT ON COLUMN sls_backfill.batch.refusal IS 'Why SLS will not take its content.';
COMMENT ON COLUMN sls_backfill.batch.number_used_at IS 'When SLS said that its number is used up (SLS''s clock).';
COMMENT ON COLUMN sls_backfill.batch.cursors IS 'A cursor in front of it for each shard that owned its key: {"shard": "cursor"}.';
COMMENT ON COLUMN sls_backfill.batch.ingest_time IS 'Log time (Unix s) where the conversion takes the time of sending.';
COMMENT ON COLUMN sls_backfill.batch.parent_id IS 'The batch it was halved from.';
COMMENT ON COLUMN sls_backfill.batch.created_first IS 'The earliest created_at of its rows (UTC), as they were when it was made.';
COMMENT ON COLUMN sls_backfill.batch.finished_first IS 'The earliest finished_at of its rows (UTC).';
COMMENT ON COLUMN sls_backfill.batch.finished_last IS 'The latest finished_at of its rows (UTC).';
COMMENT ON COLUMN sls_backfill.batch.request_id IS 'x-log-requestid of the answer that stored it.';
COMMENT ON COLUMN sls_backfill.batch.intended_at IS 'When the intent was written.';
COMMENT ON COLUMN sls_backfill.batch.stored_at IS 'When it was known to be stored; where an audit has found it, when SLS received it.';
COMMENT ON COLUMN sls_backfill.batch.proved_at IS 'When what SLS gave back was last equal.';
COMMENT ON COLUMN sls_backfill.batch.purged_at IS 'When its rows were deleted from Postgres.';
COMMENT ON COLUMN sls_backfill.batch.purged_rows IS 'How many of its rows were deleted.';
COMMENT ON COLUMN sls_backfill.batch.purged_gone IS 'How many were not there any more.';
COMMENT ON COLUMN sls_backfill.batch.purged_changed IS 'How many differed from their log and stayed.';
COMMENT ON COLUMN sls_backfill.batch.adopted_by IS 'Number of the audit that found it in SLS, where the ledger lacked it or had given it up; NULL: none.';
COMMENT ON COLUMN sls_backfill.batch.adopted_rows IS 'Rows of it that no range has seen; an account adds them to the rows seen.';
COMMENT ON COLUMN sls_backfill.batch.doubled_rows IS 'Rows of it that another live batch had already when an audit found it: SLS holds them twice.';
COMMENT ON COLUMN sls_backfill.batch.ledger_id IS 'First half of its __batch__ tag where another ledger has sent it; NULL: this one.';

CREATE TABLE sls_backfill.batch_rows (
  batch_id      uuid PRIMARY KEY REFERENCES sls_backfill.batch,
  row_ids       bytea NOT NULL,
  finished_days date[] NOT NULL,
  day_rows      integer[] NOT NULL,
  purged        bytea,
  gone          bytea,
  changed       bytea,
  CHECK (cardinality(finished_days) = cardinality(day_rows))
);
ALTER TABLE sls_backfill.batch_rows ALTER COLUMN row_ids SET STORAGE EXTERNAL;
COMMENT ON TABLE  sls_backfill.batch_rows IS 'What a batch''s state does not change, apart from the tuple that it does: which rows it has, and what a purge made of each.';
COMMENT ON COLUMN sls_backfill.batch_rows.batch_id IS 'The batch.';
COMMENT ON COLUMN sls_backfill.batch_rows.row_ids IS 'The ids of its rows, 16 bytes each.';
COMMENT ON COLUMN sls_backfill.batch_rows.finished_days IS 'The days (UTC) on which rows of it finished, in order.';
COMMENT ON COLUMN sls_backfill.batch_rows.day_rows IS 'How many did on each of them.';
COMMENT ON COLUMN sls_backfill.batch_rows.purged IS 'A bit for each row, in the order of row_ids, the highest of a byte first: deleted by a purge. NULL: none.';
COMMENT ON COLUMN sls_backfill.batch_rows.gone IS 'The same: not there any more when a purge looked.';
COMMENT ON COLUMN sls_backfill.batch_rows.changed IS 'The same: differed from its log, and stayed.';

CREATE FUNCTION sls_backfill.ids(row_ids bytea) RETURNS TABLE (nth integer, row_id uuid)
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
  SELECT n, encode(substring(row_ids FROM 16 * n + 1 FOR 16), 'hex')::uuid
  FROM generate_series(0, octet_length(row_ids) / 16 - 1) AS n
$$;
COMMENT ON FUNCTION sls_backfill.ids IS 'The rows of batch_rows.row_ids, from number 0.';

CREATE TABLE sls_backfill.live_workflow_runs (
  row_id   uuid PRIMARY KEY,
  batch_id uuid NOT NULL
);
COMMENT ON TABLE  sls_backfill.live_workflow_runs IS 'The rows of workflow_runs in live batches, those that are not split or abandoned. Its key keeps a row from being sent in two.';
COMMENT ON COLUMN sls_backfill.live_workflow_runs.row_id IS 'The row.';
COMMENT ON COLUMN sls_backfill.live_workflow_runs.batch_id IS 'The live batch that has it; without a foreign key, which would be asked for every row.';

CREATE TABLE sls_backfill.live_workflow_node_executions (
  row_id   uuid PRIMARY KEY,
  batch_id uuid NOT NULL
);
COMMENT ON TABLE  sls_backfill.live_workflow_node_executions IS 'The same for workflow_node_executions.';
COMMENT ON COLUMN sls_backfill.live_workflow_node_executions.row_id IS 'The row.';
COMMENT ON COLUMN sls_backfill.live_workflow_node_executions.batch_id IS 'The live batch that has it.';

CREATE TABLE sls_backfill.hold (
  table_name    text NOT NULL,
  row_id        uuid NOT NULL,
  pass_id       bigint NOT NULL REFERENCES sls_backfill.pass,
  reason        text NOT NULL,
  detail        text NOT NULL,
  created_at    timestamp NOT NULL,
  finished_at   timestamp,
  state         text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'stored', 'already', 'gone')),
  batch_id      uuid REFERENCES sls_backfill.batch,
  tries         integer NOT NULL DEFAULT 1,
  look_again    text NOT NULL DEFAULT 'every run'
    CHECK (look_again IN ('every run', 'in turn', 'if kept', 'if asked')),
  first_held_at timestamptz NOT NULL DEFAULT now(),
  last_held_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (table_name, row_id)
);
CREATE INDEX hold_to_try ON sls_backfill.hold (table_name, look_again, last_held_at, row_id)
  WHERE state = 'open';
CREATE INDEX hold_if_kept ON sls_backfill.hold (table_name, finished_at)
  WHERE state = 'open' AND look_again = 'if kept';
COMMENT ON TABLE  sls_backfill.hold IS 'Rows deliberately not stored, with their reason.';
COMMENT ON COLUMN sls_backfill.hold.table_name IS 'The source table.';
COMMENT ON COLUMN sls_backfill.hold.row_id IS 'The row.';
COMMENT ON COLUMN sls_backfill.hold.pass_id IS 'The pass that first saw it.';
COMMENT ON COLUMN sls_backfill.hold.reason IS 'running, no finish time, control row, offloaded, live, live?, missing, expired, lost, too large, invalid, refused or late.';
COMMENT ON COLUMN sls_backfill.hold.detail IS 'More for a person; never content of the row.';
COMMENT ON COLUMN sls_backfill.hold.created_at IS 'The row''s created_at (UTC).';
COMMENT ON COLUMN sls_backfill.hold.finished_at IS 'The row''s finished_at (UTC) when it was held; NULL: it had none.';
COMMENT ON COLUMN sls_backfill.hold.state IS 'open; or how it ended: stored (see batch_id), already (another batch had it), gone.';
COMMENT ON COLUMN sls_backfill.hold.batch_id IS 'The batch that took the row.';
COMMENT ON COLUMN sls_backfill.hold.tries IS 'How often the row was looked at.';
COMMENT ON COLUMN sls_backfill.hold.look_again IS 'Who looks at it again: every run; a run whose turn it is, the longest held first; a run that finds that the logstore keeps logs of its age; or only one that is asked to.';
COMMENT ON COLUMN sls_backfill.hold.first_held_at IS 'When it was first held.';
COMMENT ON COLUMN sls_backfill.hold.last_held_at IS 'When it was last held; of a missing row, when it was first missed; of a lost one, when the run began that sends it again.';

CREATE TABLE sls_backfill.read_position (
  logstore   text NOT NULL,
  generation integer NOT NULL,
  shard      integer NOT NULL,
  cursor     text NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (logstore, generation, shard)
);
COMMENT ON TABLE  sls_backfill.read_position IS 'Up to where the tail reader has read each shard.';
COMMENT ON COLUMN sls_backfill.read_position.logstore IS 'The logstore.';
COMMENT ON COLUMN sls_backfill.read_position.generation IS 'Which creation of it.';
COMMENT ON COLUMN sls_backfill.read_position.shard IS 'The shard.';
COMMENT ON COLUMN sls_backfill.read_position.cursor IS 'Where it reads on; all before it is in sighting.';
COMMENT ON COLUMN sls_backfill.read_position.updated_at IS 'When it last moved.';

CREATE TABLE sls_backfill.sighting (
  batch_id   uuid NOT NULL,
  logstore   text NOT NULL,
  generation integer NOT NULL,
  shard      integer NOT NULL,
  rows       bigint NOT NULL,
  digest     bytea NOT NULL,
  groups     integer NOT NULL,
  first_cursor text NOT NULL,
  last_cursor  text NOT NULL,
  audit      bigint NOT NULL DEFAULT 0,
  seen_at    timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (batch_id, logstore, generation, shard)
);
COMMENT ON TABLE  sls_backfill.sighting IS 'What the tail reader has found in SLS under our tags, summed up by batch and shard.';
COMMENT ON COLUMN sls_backfill.sighting.batch_id IS 'The batch its tag names; it may be one that the ledger lacks.';
COMMENT ON COLUMN sls_backfill.sighting.logstore IS 'The logstore.';
COMMENT ON COLUMN sls_backfill.sighting.generation IS 'Which creation of it.';
COMMENT ON COLUMN sls_backfill.sighting.shard IS 'The shard.';
COMMENT ON COLUMN sls_backfill.sighting.rows IS 'Logs found.';
COMMENT ON COLUMN sls_backfill.sighting.digest IS 'Sum of their digests, 32 bytes.';
COMMENT ON COLUMN sls_backfill.sighting.groups IS 'Log groups found.';
COMMENT ON COLUMN sls_backfill.sighting.first_cursor IS 'Cursor of the page that held the first of them.';
COMMENT ON COLUMN sls_backfill.sighting.last_cursor IS 'Cursor of the page that held the last of them.';
COMMENT ON COLUMN sls_backfill.sighting.audit IS 'Number of the audit that last counted anew from the beginning of the shard; 0: none.';
COMMENT ON COLUMN sls_backfill.sighting.seen_at IS 'When the last of them was found.';

CREATE TABLE sls_backfill.proof (
  batch_id       uuid NOT NULL REFERENCES sls_backfill.batch,
  logstore       text NOT NULL,
  shard          integer NOT NULL,
  generation     integer NOT NULL,
  first_cursor   text NOT NULL,
  end_cursor     text NOT NULL,
  rows           bigint NOT NULL,
  received_first timestamptz NOT NULL,
  received_last  timestamptz NOT NULL,
  proved_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (batch_id, shard)
);
COMMENT ON TABLE  sls_backfill.proof IS 'Where and when a verification of the content last saw a batch whole; all shards of a batch bear the same proved_at.';
COMMENT ON COLUMN sls_backfill.proof.batch_id IS 'The batch.';
COMMENT ON COLUMN sls_backfill.proof.logstore IS 'The logstore.';
COMMENT ON COLUMN sls_backfill.proof.shard IS 'The shard.';
COMMENT ON COLUMN sls_backfill.proof.generation IS 'Which creation of it.';
COMMENT ON COLUMN sls_backfill.proof.first_cursor IS 'Cursor of the page that held the first of its logs there.';
COMMENT ON COLUMN sls_backfill.proof.end_cursor IS 'Cursor behind the page that held the last of them.';
COMMENT ON COLUMN sls_backfill.proof.rows IS 'Its logs in that shard.';
COMMENT ON COLUMN sls_backfill.proof.received_first IS 'When SLS received the first of them, at the earliest (GetCursorTime): its TTL counts from there.';
COMMENT ON COLUMN sls_backfill.proof.received_last IS 'When SLS received the last of them, at the latest.';
COMMENT ON COLUMN sls_backfill.proof.proved_at IS 'When they were seen.';

CREATE TABLE sls_backfill.proved_age (
  logstore   text NOT NULL,
  generation integer NOT NULL,
  since      timestamp NOT NULL,
  batch_id   uuid NOT NULL REFERENCES sls_backfill.batch,
  proved_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (logstore, generation)
);
COMMENT ON TABLE  sls_backfill.proved_age IS 'How old logs may be that a logstore has been seen to keep: canaries were pulled back and found by search.';
COMMENT ON COLUMN sls_backfill.proved_age.logstore IS 'The logstore.';
COMMENT ON COLUMN sls_backfill.proved_age.generation IS 'Which creation of it.';
COMMENT ON COLUMN sls_backfill.proved_age.since IS 'The oldest log time (UTC) of any canary that was proved.';
COMMENT ON COLUMN sls_backfill.proved_age.batch_id IS 'That canary.';
COMMENT ON COLUMN sls_backfill.proved_age.proved_at IS 'When it was proved.';

CREATE TABLE sls_backfill.unkept (
  batch_id   uuid PRIMARY KEY REFERENCES sls_backfill.batch,
  since      timestamp NOT NULL,
  noticed_at timestamptz NOT NULL DEFAULT now(),
  decided_at timestamptz
);
COMMENT ON TABLE  sls_backfill.unkept IS 'Canaries that SLS acknowledged and did not give back in time. While one is stored and not proved, nothing is sent before a person decides.';
COMMENT ON COLUMN sls_backfill.unkept.batch_id IS 'The canary.';
COMMENT ON COLUMN sls_backfill.unkept.since IS 'Its oldest log time (UTC).';
COMMENT ON COLUMN sls_backfill.unkept.noticed_at IS 'When it was waited for in vain.';
COMMENT ON COLUMN sls_backfill.unkept.decided_at IS 'When a person decided to go on without it; NULL: nobody has.';

CREATE TABLE sls_backfill.verification (
  id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  table_name     text NOT NULL,
  logstore       text NOT NULL,
  generation     integer NOT NULL,
  scope          jsonb NOT NULL,
  state          text NOT NULL DEFAULT 'reading' CHECK (state IN ('reading', 'done')),
  noted_at       timestamptz NOT NULL,
  ended_at       timestamptz NOT NULL,
  compared_after uuid NOT NULL,
  tally          jsonb NOT NULL,
  begun_at       timestamptz NOT NULL DEFAULT now(),
  done_at        timestamptz
);
CREATE UNIQUE INDEX verification_one ON sls_backfill.verification (table_name);
COMMENT ON TABLE  sls_backfill.verification IS 'The last verification of a table''s content: what it read, how far it is, what it found.';
COMMENT ON COLUMN sls_backfill.verification.id IS 'Its number.';
COMMENT ON COLUMN sls_backfill.verification.table_name IS 'The source table.';
COMMENT ON COLUMN sls_backfill.verification.logstore IS 'The logstore that was read.';
COMMENT ON COLUMN sls_backfill.verification.generation IS 'Which creation of it.';
COMMENT ON COLUMN sls_backfill.verification.scope IS 'Which batches it is about; one with another scope begins anew.';
COMMENT ON COLUMN sls_backfill.verification.state IS 'reading, or done.';
COMMENT ON COLUMN sls_backfill.verification.noted_at IS 'Batches that the ledger knew to be stored then must be found; the ledger''s clock.';
COMMENT ON COLUMN sls_backfill.verification.ended_at IS 'When the ends of the shards were taken, after noted_at; SLS''s clock.';
COMMENT ON COLUMN sls_backfill.verification.compared_after IS 'Batches up to this id were compared with Postgres.';
COMMENT ON COLUMN sls_backfill.verification.tally IS 'What was counted on the way.';
COMMENT ON COLUMN sls_backfill.verification.begun_at IS 'When it began.';
COMMENT ON COLUMN sls_backfill.verification.done_at IS 'When it was done.';

CREATE TABLE sls_backfill.verification_shard (
  verification_id bigint NOT NULL REFERENCES sls_backfill.verification ON DELETE CASCADE,
  shard           integer NOT NULL,
  cursor          text NOT NULL,
  end_cursor      text NOT NULL,
  PRIMARY KEY (verification_id, shard)
);
COMMENT ON TABLE  sls_backfill.verification_shard IS 'How far a verification has read each shard.';
COMMENT ON COLUMN sls_backfill.verification_shard.verification_id IS 'The verification.';
COMMENT ON COLUMN sls_backfill.verification_shard.shard IS 'The shard.';
COMMENT ON COLUMN sls_backfill.verification_shard.cursor IS 'Where it reads on; all before it is in verification_found.';
COMMENT ON COLUMN sls_backfill.verification_shard.end_cursor IS 'Up to where it reads.';

CREATE TABLE sls_backfill.verification_found (
  verification_id bigint NOT NULL REFERENCES sls_backfill.verification ON DELETE CASCADE,
  batch_id        uuid NOT NULL,
  ledger_id       uuid NOT NULL,
  shard           integer NOT NULL,
  first_cursor    text NOT NULL,
  end_cursor      text NOT NULL,
  rows            bigint NOT NULL,
  digest          bytea NOT NULL,
  groups          integer NOT NULL,
  received_first  timestamptz NOT NULL,
  received_last   timestamptz NOT NULL,
  seen_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
  nth             bigint GENERATED ALWAYS AS IDENTITY,
  PRIMARY KEY (verification_id, batch_id, ledger_id, shard, first_cursor)
);
COMMENT ON TABLE  sls_backfill.verification_found IS 'What a verification has found of each batch, page by page; forgotten when the next one begins.';
COMMENT ON COLUMN sls_backfill.verification_found.verification_id IS 'The verification.';
COMMENT ON COLUMN sls_backfill.verification_found.batch_id IS 'The batch that the tag names; it may be one that the ledger lacks.';
COMMENT ON COLUMN sls_backfill.verification_found.ledger_id IS 'The ledger that the tag names; all zeros: this one, but without its seal.';
COMMENT ON COLUMN sls_backfill.verification_found.shard IS 'The shard.';
COMMENT ON COLUMN sls_backfill.verification_found.first_cursor IS 'Where the page begins.';
COMMENT ON COLUMN sls_backfill.verification_found.end_cursor IS 'Where it ends.';
COMMENT ON COLUMN sls_backfill.verification_found.rows IS 'Logs of the batch in the page.';
COMMENT ON COLUMN sls_backfill.verification_found.digest IS 'Sum of their digests, 32 bytes.';
COMMENT ON COLUMN sls_backfill.verification_found.groups IS 'Log groups of the batch in the page.';
COMMENT ON COLUMN sls_backfill.verification_found.received_first IS 'When SLS received the first group of the page (GetCursorTime).';
COMMENT ON COLUMN sls_backfill.verification_found.received_last IS 'When it had received all of the page, at the latest.';
COMMENT ON COLUMN sls_backfill.verification_found.seen_at IS 'When the page was read.';
COMMENT ON COLUMN sls_backfill.verification_found.nth IS 'In the order in which a shard was read.';

CREATE TABLE sls_backfill.verification_finding (
  id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  verification_id bigint NOT NULL REFERENCES sls_backfill.verification ON DELETE CASCADE,
  kind            text NOT NULL,
  batch_id        uuid,
  ledger_id       uuid,
  rows            bigint NOT NULL,
  found           bigint NOT NULL,
  row_ids         bytea,
  provisional     boolean NOT NULL DEFAULT false,
  attempts        integer,
  detail          text NOT NULL DEFAULT ''
);
CREATE INDEX verification_finding_of ON sls_backfill.verification_finding (verification_id, kind);
COMMENT ON TABLE  sls_backfill.verification_finding IS 'What a verification found to be other than it should; repair works through it.';
COMMENT ON COLUMN sls_backfill.verification_finding.id IS 'Its number.';
COMMENT ON COLUMN sls_backfill.verification_finding.verification_id IS 'The verification.';
COMMENT ON COLUMN sls_backfill.verification_finding.kind IS 'About SLS: missing, doubled, changed, given_up, foreign, expired, lost; about Postgres: source_changed, source_gone, unaccounted, not_compared.';
COMMENT ON COLUMN sls_backfill.verification_finding.batch_id IS 'The batch; NULL for unaccounted rows.';
COMMENT ON COLUMN sls_backfill.verification_finding.ledger_id IS 'The ledger that the tag of a foreign batch names; all zeros: this one, but without its seal.';
COMMENT ON COLUMN sls_backfill.verification_finding.rows IS 'Rows that should be there; of a finding about Postgres, the rows it is about.';
COMMENT ON COLUMN sls_backfill.verification_finding.found IS 'Logs that are there.';
COMMENT ON COLUMN sls_backfill.verification_finding.row_ids IS 'The rows it is about, where they are known, 16 bytes each.';
COMMENT ON COLUMN sls_backfill.verification_finding.provisional IS 'Whether a late request could still change it.';
COMMENT ON COLUMN sls_backfill.verification_finding.attempts IS 'How often the batch had been signed when it was judged: another number means that it was sent since.';
COMMENT ON COLUMN sls_backfill.verification_finding.detail IS 'More for a person; never content of a row.';
