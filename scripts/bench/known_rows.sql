-- Measures structures by which the ledger could find the live batch of a row by the row's id alone:
-- bytes a row, milliseconds a page of 4,096 ids that are new or known, and what a batch of 300 rows
-- costs. ids are random, as Dify's are. In an empty database, with shared_buffers that hold it all:
--
--     psql -X -v rows=10000000 -f scripts/bench/known_rows.sql
--
-- 10 M rows take about ten minutes and 4 GB.
\set ON_ERROR_STOP on
\set QUIET on
\pset footer off
CREATE EXTENSION IF NOT EXISTS pg_prewarm;
SET synchronous_commit = off;
SET jit = off;
SET enable_seqscan = off;

CREATE UNLOGGED TABLE rows AS
SELECT gen_random_uuid() AS id, (n - 1) / 300 AS batch FROM generate_series(1, :rows) n;
CREATE UNLOGGED TABLE batches AS
SELECT batch, string_agg(uuid_send(id), '' ORDER BY id) AS row_ids FROM rows GROUP BY batch;

-- btree: an entry a row, which is unique.
CREATE TABLE btree (row_id uuid PRIMARY KEY, batch_id uuid NOT NULL);

-- gin: the first eight bytes of each id; candidates are read and compared.
CREATE FUNCTION first8(bytea) RETURNS bigint[] IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS $$
  SELECT array_agg(('x' || encode(substring($1 FROM 16 * n + 1 FOR 8), 'hex'))::bit(64)::bigint)
  FROM generate_series(0, octet_length($1) / 16 - 1) n
$$;
CREATE TABLE gin (batch integer PRIMARY KEY, row_ids bytea NOT NULL);
ALTER TABLE gin ALTER COLUMN row_ids SET STORAGE EXTERNAL;
CREATE INDEX gin_keys ON gin USING gin (first8(row_ids)) WITH (fastupdate = off);

-- short: two hashes of 20 bits of each id, so that keys are shared and posting lists are long.
CREATE FUNCTION short2(bytea) RETURNS integer[] IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS $$
  SELECT array_agg(key) FROM generate_series(0, octet_length($1) / 16 - 1) n,
    LATERAL (SELECT uuid_hash_extended(
      encode(substring($1 FROM 16 * n + 1 FOR 16), 'hex')::uuid, 0) AS hash OFFSET 0) h,
    LATERAL (VALUES ((hash & 1048575)::integer), (1048576 | (hash >> 20 & 1048575)::integer)) k(key)
$$;
CREATE TABLE short (batch integer PRIMARY KEY, row_ids bytea NOT NULL);
ALTER TABLE short ALTER COLUMN row_ids SET STORAGE EXTERNAL;
CREATE INDEX short_keys ON short USING gin (short2(row_ids)) WITH (fastupdate = off);

-- Filled batch by batch, as a run does it: an index that is built at once would be denser.
INSERT INTO btree SELECT id, md5(batch::text)::uuid FROM rows;
INSERT INTO gin SELECT * FROM batches ORDER BY batch;
INSERT INTO short SELECT * FROM batches ORDER BY batch;
VACUUM ANALYZE btree;
VACUUM ANALYZE gin;
VACUUM ANALYZE short;
SELECT 'btree' AS structure,
  round((pg_relation_size('btree') + pg_relation_size('btree_pkey'))::numeric / :rows, 1) AS bytes_a_row
UNION ALL SELECT 'gin', round(pg_relation_size('gin_keys')::numeric / :rows, 1)
UNION ALL SELECT 'short', round(pg_relation_size('short_keys')::numeric / :rows, 1)
UNION ALL SELECT 'row_ids alone', round((pg_table_size('gin') + pg_relation_size('gin_pkey'))::numeric / :rows, 1);

-- Ten pages each, the first one to warm up, with the index in memory; in milliseconds.
CREATE PROCEDURE look(what text, ids text, sql text) LANGUAGE plpgsql AS $$
DECLARE page uuid[]; ms float8[]; found bigint; begun timestamptz;
BEGIN
  FOR nth IN 0..9 LOOP
    EXECUTE 'SELECT array_agg(id) FROM (' || ids || ') s' INTO page USING nth;
    begun := clock_timestamp();
    EXECUTE sql INTO found USING page;
    ms := ms || extract(epoch FROM clock_timestamp() - begun)::float8 * 1000;
  END LOOP;
  RAISE NOTICE '%: % ms a page, % found in the last', what,
    round((SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY m) FROM unnest(ms[2:]) m)::numeric, 1), found;
END $$;
\set new 'SELECT gen_random_uuid() AS id FROM generate_series(1, 4096 + $1 * 0)'
\set near 'SELECT id FROM rows WHERE batch >= 1000 + $1 * 20 AND batch < 1014 + $1 * 20 LIMIT 4096'
\set far 'SELECT row_id AS id FROM (SELECT row_id FROM btree ORDER BY row_id OFFSET $1 * 5000 LIMIT 4096) f'
\set btree 'SELECT count(*) FROM btree WHERE row_id = ANY(ARRAY(SELECT unnest($1)))'
\set gin 'SELECT count(octet_length(row_ids || '''')) FROM gin WHERE first8(row_ids) && first8((SELECT string_agg(uuid_send(id), '''') FROM unnest($1) id))'
\set short 'SELECT count(*) FROM unnest($1) id, LATERAL (SELECT row_ids FROM short WHERE short2(row_ids) @> short2(uuid_send(id)) OFFSET 0) s'
CREATE INDEX ON rows (batch);
SELECT pg_prewarm('btree_pkey') \g /dev/null
CALL look('btree, new', :'new', :'btree');
CALL look('btree, known, of few batches', :'near', :'btree');
CALL look('btree, known, each of another batch', :'far', :'btree');
SELECT pg_prewarm('gin_keys') \g /dev/null
CALL look('gin, new', :'new', :'gin');
CALL look('gin, known, of few batches', :'near', :'gin');
CALL look('gin, known, each of another batch', :'far', :'gin');
SELECT pg_prewarm('short_keys') \g /dev/null
CALL look('short, new', :'new', :'short');
CALL look('short, known, of few batches', :'near', :'short');
CALL look('short, known, each of another batch', :'far', :'short');

-- A hundred batches each, right after a checkpoint (each page goes into the WAL whole at its first
-- change) and once more; in milliseconds, and bytes of WAL a row.
CREATE PROCEDURE add(what text, sql text) LANGUAGE plpgsql AS $$
DECLARE ids uuid[]; ms float8 := 0; wal numeric := 0; begun timestamptz; lsn pg_lsn;
BEGIN
  FOR nth IN 1..100 LOOP
    ids := ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 300));
    begun := clock_timestamp();
    lsn := pg_current_wal_insert_lsn();
    EXECUTE sql USING ids, nth;
    ms := ms + extract(epoch FROM clock_timestamp() - begun)::float8 * 1000;
    wal := wal + (pg_current_wal_insert_lsn() - lsn);
    COMMIT;
  END LOOP;
  RAISE NOTICE '%: % ms a batch, % bytes of WAL a row', what, round((ms / 100)::numeric, 2), round(wal / 30000);
END $$;
\set btree 'INSERT INTO btree SELECT id, md5($2::text)::uuid FROM unnest($1) id ORDER BY id'
\set gin 'INSERT INTO gin SELECT -$2 - :x, string_agg(uuid_send(id), '''') FROM unnest($1) id'
\set short 'INSERT INTO short SELECT -$2 - :x, string_agg(uuid_send(id), '''') FROM unnest($1) id'
CHECKPOINT;
CALL add('btree, after a checkpoint', :'btree');
CALL add('btree, later', :'btree');
CHECKPOINT;
CALL add('gin, after a checkpoint', replace(:'gin', ':x', '0'));
CALL add('gin, later', replace(:'gin', ':x', '1000'));
CHECKPOINT;
CALL add('short, after a checkpoint', replace(:'short', ':x', '0'));
CALL add('short, later', replace(:'short', ':x', '1000'));
