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
  first_seen_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (logstore, number)
);
COMMENT ON TABLE  sls_backfill.generation IS 'Each creation of a logstore. The highest number is the logstore as it is now; what was sent to, seen or proved in an earlier one is gone with it.';
COMMENT ON COLUMN sls_backfill.generation.logstore IS 'The logstore.';
COMMENT ON COLUMN sls_backfill.generation.number IS 'From 1.';
COMMENT ON COLUMN sls_backfill.generation.created_at_s IS 'When SLS says that it was made (createTime of GetLogstore, Unix s); NULL: it does not say.';
COMMENT ON COLUMN sls_backfill.generation.ttl_days IS 'How many days it keeps logs, as last seen; 3650: for ever; NULL: SLS does not say.';
COMMENT ON COLUMN sls_backfill.generation.others_since_s IS 'The oldest log time (Unix s) in log groups of another writer that were read in it; NULL: none was.';
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
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  table_name text NOT NULL,
  body       jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (table_name, body)
);
COMMENT ON TABLE  sls_backfill.conversion IS 'What decides the bytes of a log; every batch names its own.';
COMMENT ON COLUMN sls_backfill.conversion.id IS 'Its number.';
COMMENT ON COLUMN sls_backfill.conversion.table_name IS 'The source table it is for.';
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
COMMENT ON COLUMN sls_backfill.pass.opened_at IS 'When it was opened.';
COMMENT ON COLUMN sls_backfill.pass.closed_at IS 'When its last range was done.';

CREATE TABLE sls_backfill.range (
  id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  pass_id       bigint NOT NULL REFERENCES sls_backfill.pass,
  kind          text NOT NULL CHECK (kind IN ('time', 'by-run', 'walk', 'rest', 'holds')),
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
  rows_counted  bigint,
  opened_at     timestamptz NOT NULL DEFAULT now(),
  closed_at     timestamptz
);
CREATE INDEX range_open ON sls_backfill.range (pass_id) WHERE state = 'open';
COMMENT ON TABLE  sls_backfill.range IS 'A slice of a pass''s key space, or its open holds, that one worker owns at a time.';
COMMENT ON COLUMN sls_backfill.range.id IS 'Its number.';
COMMENT ON COLUMN sls_backfill.range.pass_id IS 'Its pass.';
COMMENT ON COLUMN sls_backfill.range.kind IS 'The key order it is read in, or holds.';
COMMENT ON COLUMN sls_backfill.range.after IS 'It begins behind this key.';
COMMENT ON COLUMN sls_backfill.range.upto IS 'It ends with this key; NULL: with the last one.';
COMMENT ON COLUMN sls_backfill.range.position IS 'Every row up to this key is in a batch, held, already there or gone.';
COMMENT ON COLUMN sls_backfill.range.state IS 'open or done.';
COMMENT ON COLUMN sls_backfill.range.owner IS 'The process that works on it.';
COMMENT ON COLUMN sls_backfill.range.lease_until IS 'Owned until then, on the ledger''s clock.';
COMMENT ON COLUMN sls_backfill.range.token IS 'Fencing token: grows with every owner, and every write names it.';
COMMENT ON COLUMN sls_backfill.range.rows_seen IS 'Rows read by it; 0 for holds, whose rows were counted before.';
COMMENT ON COLUMN sls_backfill.range.rows_already IS 'Of these, rows that a live batch or an open hold had already.';
COMMENT ON COLUMN sls_backfill.range.rows_gone IS 'Of these, rows that were deleted before they were read whole.';
COMMENT ON COLUMN sls_backfill.range.rows_counted IS 'Rows in it by one count of Postgres after it was done; NULL: not counted.';
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
  row_ids        bytea NOT NULL,
  digest         bytea,
  not_json       integer NOT NULL,
  conversion_id  bigint REFERENCES sls_backfill.conversion,
  owner          uuid REFERENCES sls_backfill.process,
  lane_id        bigint REFERENCES sls_backfill.lane,
  number         bigint,
  signed_at      timestamptz,
  attempts       integer NOT NULL DEFAULT 0,
  unknowns       integer NOT NULL DEFAULT 0,
  all_refused    boolean NOT NULL DEFAULT false,
  refusal        text,
  number_used_at timestamptz,
  cursors        jsonb NOT NULL,
  ingest_time    bigint NOT NULL,
  parent_id      uuid REFERENCES sls_backfill.batch,
  created_span   tsrange NOT NULL,
  id_span        int8range NOT NULL,
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
ALTER TABLE sls_backfill.batch ALTER COLUMN row_ids SET STORAGE EXTERNAL;
CREATE INDEX batch_spans ON sls_backfill.batch USING gist (created_span, id_span)
  WHERE state NOT IN ('split', 'abandoned');
CREATE INDEX batch_unproved ON sls_backfill.batch (table_name)
  WHERE state IN ('intent', 'stored');
CREATE INDEX batch_lost ON sls_backfill.batch (table_name, id) WHERE state = 'lost';
CREATE INDEX batch_pass ON sls_backfill.batch (pass_id);
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
COMMENT ON COLUMN sls_backfill.batch.row_ids IS 'The ids of its rows, 16 bytes each.';
COMMENT ON COLUMN sls_backfill.batch.digest IS 'Sum of its logs'' digests, 32 bytes; NULL: not known, for its tags cannot be read, so nothing proves it.';
COMMENT ON COLUMN sls_backfill.batch.not_json IS 'JSON columns in it whose text is not JSON and went through unchanged.';
COMMENT ON COLUMN sls_backfill.batch.conversion_id IS 'The conversion that made its bytes; NULL: not known.';
COMMENT ON COLUMN sls_backfill.batch.owner IS 'The process that alone may send it while it is an intent; NULL: nobody, it waits to be settled.';
COMMENT ON COLUMN sls_backfill.batch.lane_id IS 'The lane it was last sent on; NULL: not sent yet.';
COMMENT ON COLUMN sls_backfill.batch.number IS 'Its seqid on that lane.';
COMMENT ON COLUMN sls_backfill.batch.signed_at IS 'Date of its last signature, SLS''s clock; no request of it is signed later.';
COMMENT ON COLUMN sls_backfill.batch.attempts IS 'How often it was signed; 0: nothing of it was ever on the wire.';
COMMENT ON COLUMN sls_backfill.batch.unknowns IS 'Attempts without an answer that its senders told of.';
COMMENT ON COLUMN sls_backfill.batch.all_refused IS 'Every attempt was refused by SLS, so nothing of it is there; false: not known.';
COMMENT ON COLUMN sls_backfill.batch.refusal IS 'Why SLS will not take its content.';
COMMENT ON COLUMN sls_backfill.batch.number_used_at IS 'When SLS said that its number is used up (SLS''s clock).';
COMMENT ON COLUMN sls_backfill.batch.cursors IS 'A cursor in front of it for each shard that owned its key: {"shard": "cursor"}.';
COMMENT ON COLUMN sls_backfill.batch.ingest_time IS 'Log time (Unix s) where the conversion takes the time of sending.';
COMMENT ON COLUMN sls_backfill.batch.parent_id IS 'The batch it was halved from.';
COMMENT ON COLUMN sls_backfill.batch.created_span IS 'From the first to the last created_at of its rows.';
COMMENT ON COLUMN sls_backfill.batch.id_span IS 'From the first to the last of its rows'' ids, as their first 8 bytes less 2^63.';
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
COMMENT ON COLUMN sls_backfill.batch.doubled_rows IS 'Rows of it that another live batch had, too, when it was adopted.';
COMMENT ON COLUMN sls_backfill.batch.ledger_id IS 'First half of its __batch__ tag where another ledger has sent it; NULL: this one.';

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
  asked         boolean NOT NULL DEFAULT false,
  first_held_at timestamptz NOT NULL DEFAULT now(),
  last_held_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (table_name, row_id)
);
CREATE INDEX hold_to_try ON sls_backfill.hold (pass_id, row_id)
  WHERE state = 'open' AND (asked OR reason NOT IN ('control row', 'live', 'refused'));
COMMENT ON TABLE  sls_backfill.hold IS 'Rows deliberately not stored, with their reason.';
COMMENT ON COLUMN sls_backfill.hold.table_name IS 'The source table.';
COMMENT ON COLUMN sls_backfill.hold.row_id IS 'The row.';
COMMENT ON COLUMN sls_backfill.hold.pass_id IS 'The pass that first saw it.';
COMMENT ON COLUMN sls_backfill.hold.reason IS 'running, no finish time, control row, offloaded, live, live?, expired, lost, too large, invalid or refused.';
COMMENT ON COLUMN sls_backfill.hold.detail IS 'More for a person; never content of the row.';
COMMENT ON COLUMN sls_backfill.hold.created_at IS 'The row''s created_at (UTC).';
COMMENT ON COLUMN sls_backfill.hold.finished_at IS 'The row''s finished_at (UTC) when it was held; NULL: it had none.';
COMMENT ON COLUMN sls_backfill.hold.state IS 'open; or how it ended: stored (see batch_id), already (another batch had it), gone.';
COMMENT ON COLUMN sls_backfill.hold.batch_id IS 'The batch that took the row.';
COMMENT ON COLUMN sls_backfill.hold.tries IS 'How often the row was looked at.';
COMMENT ON COLUMN sls_backfill.hold.asked IS 'Whether a person wants it tried again, whatever the reason.';
COMMENT ON COLUMN sls_backfill.hold.first_held_at IS 'When it was first held.';
COMMENT ON COLUMN sls_backfill.hold.last_held_at IS 'When it was last held.';

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
