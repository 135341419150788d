#!/usr/bin/env bash
# Measures the ledger's layout in a throw-away cluster: megabytes by table and index, and how long it
# takes to look up a page of ids. Arguments: with how many million rows; 1 and 10 take three minutes.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_packages postgres

dir=$(mktemp -d)
trap 'stop_postgres "$dir"' EXIT
port=$(start_postgres "$dir" fsync=off shared_buffers=2GB max_wal_size=8GB autovacuum_naptime=5s)
use_postgres "$port" postgres
ask() { "$(find_pg_bin)/psql" -X -q -v ON_ERROR_STOP=1 -P footer=off "$@"; }

ask -c "CREATE SCHEMA sls_backfill"
for file in "$ROOT"/migrations/*.sql; do ask -f "$file"; done
ask <<'SQL'
-- Batches as a run writes them: intended, stored, proved, a thousand at a time.
CREATE PROCEDURE fill(batches int, upto int) LANGUAGE plpgsql AS $$
BEGIN
  FOR b IN batches..upto - 1 BY 1000 LOOP
    CREATE TEMP TABLE r AS SELECT n AS nth, n / 300 AS batch, gen_random_uuid() AS id,
      timestamp '2024-01-01' + n * interval '0.5 s' AS at
      FROM generate_series(b * 300, least(b + 1000, upto) * 300 - 1) n;
    -- The ids of batches begin with their time.
    CREATE TEMP TABLE g AS SELECT batch, min(at) AS first, max(at) AS last,
      (lpad(to_hex(batch), 12, '0') || substr(md5(batch::text), 13))::uuid AS id,
      sha256(batch::text::bytea) AS digest, string_agg(uuid_send(id), '' ORDER BY nth) AS ids
      FROM r GROUP BY batch ORDER BY batch;
    INSERT INTO sls_backfill.batch (id, pass_id, range_id, table_name, logstore, state, rows,
      raw_bytes, digest, not_json, conversion_id, lane_id, number, sendings, signed_at, cursors,
      owner, attempts, ingest_time, created_first, finished_first, finished_last)
    SELECT id, 1, 1 + batch / 300, 'workflow_runs', 'workflow_execution', 'intent', 300, 4000000,
      digest, 0, 1, 1 + batch % 16, batch, 1, now(),
      jsonb_build_object((batch % 4)::text, 'MTU4NDg4NjY2OTQ5NjQ4NTk1Mg=='), id, 1, 0, first,
      first, last FROM g;
    INSERT INTO sls_backfill.batch_rows (batch_id, row_ids, finished_days, day_rows)
    SELECT id, ids, ARRAY[first::date], ARRAY[300] FROM g;
    INSERT INTO sls_backfill.live_workflow_runs
    SELECT r.id, g.id FROM r JOIN g USING (batch) ORDER BY batch, r.id;
    UPDATE sls_backfill.batch SET state = 'stored', stored_at = now(), owner = NULL,
      request_id = substr(md5(id::text), 1, 24) WHERE state = 'intent';
    COMMIT;
    INSERT INTO sls_backfill.sighting (batch_id, logstore, shard, rows, digest, groups,
      first_cursor, last_cursor) SELECT id, 'workflow_execution', batch % 4, 300, digest, 1,
      'MTU4NDg4NjY2OTQ5NjQ4NTk1Mg==', 'MTU4NDg4NjY2OTQ5NjQ4NTk1Mg==' FROM g;
    UPDATE sls_backfill.batch SET state = 'proved', proved_at = now() WHERE state = 'stored';
    DROP TABLE r, g;
    COMMIT;
  END LOOP;
END $$;
-- Milliseconds a page, the median of 20 pages of 4,096 ids that are new, or known and strewn.
CREATE PROCEDURE look(is_new boolean) LANGUAGE plpgsql AS $$
DECLARE page uuid[]; ms float8[]; begun timestamptz;
BEGIN
  FOR nth IN 1..21 LOOP
    SELECT array_agg(CASE WHEN is_new THEN gen_random_uuid() ELSE row_id END) INTO page FROM
      (SELECT row_id FROM sls_backfill.live_workflow_runs TABLESAMPLE BERNOULLI (10) LIMIT 4096) s;
    begun := clock_timestamp();
    PERFORM count(row_id) FROM sls_backfill.live_workflow_runs
      WHERE row_id = ANY(ARRAY(SELECT unnest(page)));
    ms := ms || extract(epoch FROM clock_timestamp() - begun)::float8 * 1000;
  END LOOP;
  RAISE NOTICE '% ids: % ms a page', CASE WHEN is_new THEN 'new' ELSE 'known' END, round((SELECT
    percentile_cont(0.5) WITHIN GROUP (ORDER BY m) FROM unnest(ms[2:]) m)::numeric, 1);
END $$;
SQL
batches=0
(($# > 0)) || set -- 1 10
for millions in "$@"; do
    upto=$((millions * 1000000 / 300))
    printf '== %s million rows\n' "$millions"
    # Without the passes, ranges and lanes that batches refer to.
    ask -c "SET session_replication_role = replica" -c "CALL fill($batches, $upto)" \
        -c "VACUUM ANALYZE"
    batches=$upto
    ask -c "SELECT relname AS part, round(s / 1e6 / $millions, 1) AS mb_a_million FROM pg_class,
        LATERAL (SELECT CASE relkind WHEN 'r' THEN pg_table_size(oid) ELSE pg_relation_size(oid)
          END) size(s) WHERE relnamespace = 'sls_backfill'::regnamespace AND relkind IN ('r', 'i')
        AND s > 100000 * $millions ORDER BY s DESC"
    ask -c "SET jit = off" -c "CALL look(true)" -c "CALL look(false)"
done
