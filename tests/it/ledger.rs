//! The ledger's layout is a decision: whoever changes it sees the change in a golden file.

use crate::harness::fixture::Fixture;
use crate::harness::golden;

/// What Postgres itself keeps of the schema, a line for each part. Columns are in their order;
/// Postgres 18 lists NOT NULL among the constraints, which a column's line has said.
const LAYOUT: &str = "\
    WITH ours AS (SELECT c.oid, c.relname, c.reloptions FROM pg_class c \
      WHERE c.relnamespace = 'sls_backfill'::regnamespace AND c.relkind NOT IN ('i', 'S', 't')), \
    lines AS ( \
      SELECT relname, 0 AS part, '' AS at, relname || coalesce(' WITH ' || reloptions::text, '') AS line \
      FROM ours \
      UNION ALL SELECT relname, 1, to_char(attnum, '000'), '  ' || attname || ' ' \
        || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END \
        || CASE attidentity WHEN 'a' THEN ' IDENTITY' WHEN 'd' THEN ' IDENTITY BY DEFAULT' ELSE '' END \
        || CASE attstorage WHEN 'e' THEN ' STORAGE EXTERNAL' ELSE '' END \
        || CASE attgenerated WHEN '' THEN '' ELSE ' GENERATED' END \
        || coalesce(' DEFAULT ' || pg_get_expr(adbin, adrelid), '') \
      FROM ours JOIN pg_attribute ON attrelid = oid AND attnum > 0 AND NOT attisdropped \
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum \
      UNION ALL SELECT relname, 2, conname, '  ' || conname || ' ' || pg_get_constraintdef(c.oid) \
      FROM ours JOIN pg_constraint c ON conrelid = ours.oid AND contype <> 'n' \
      UNION ALL SELECT relname, 3, indexrelid::regclass::text, '  ' || pg_get_indexdef(indexrelid) \
      FROM ours JOIN pg_index ON indrelid = oid \
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid) \
      UNION ALL SELECT relname, 4, tgname, '  ' || pg_get_triggerdef(t.oid) \
      FROM ours JOIN pg_trigger t ON tgrelid = ours.oid AND NOT tgisinternal \
      UNION ALL SELECT '~', 5, proname, oid::regprocedure || ' RETURNS ' || pg_get_function_result(oid) \
      FROM pg_proc WHERE pronamespace = 'sls_backfill'::regnamespace) \
    SELECT line FROM lines ORDER BY relname COLLATE \"C\", part, at COLLATE \"C\"";

/// Tables, columns and functions that nobody has explained. The list of migrations is in sqlx's form.
const UNEXPLAINED: &str = "\
    SELECT relname || coalesce('.' || attname, '') FROM pg_class c \
    LEFT JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped \
    WHERE relnamespace = 'sls_backfill'::regnamespace AND relkind NOT IN ('i', 'S', 't') \
    AND relname <> '_sqlx_migrations' \
    AND (col_description(c.oid, attnum) IS NULL OR obj_description(c.oid, 'pg_class') IS NULL) \
    UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'sls_backfill'::regnamespace \
    AND obj_description(oid, 'pg_proc') IS NULL ORDER BY 1";

#[test]
fn the_ledgers_layout_is_the_one_that_was_decided() {
    let fixture = Fixture::new("dify-1.12");
    golden::check("ledger.txt", &format!("{}\n", fixture.database.psql(LAYOUT)));
}

#[test]
fn every_table_and_column_of_the_ledger_is_explained() {
    let fixture = Fixture::new("dify-1.12");
    assert_eq!(fixture.database.psql(UNEXPLAINED), "");
    fixture.database.psql(
        "ALTER TABLE sls_backfill.batch ADD COLUMN x integer; \
         CREATE TABLE sls_backfill.y (); \
         COMMENT ON FUNCTION sls_backfill.ids IS NULL",
    );
    assert_eq!(fixture.database.psql(UNEXPLAINED), "batch.x\nids\ny");
}

/// What asks what was done, and never makes a ledger.
const QUESTIONS: [&str; 8] = [
    "status",
    "report",
    "verify --level counts",
    "verify --level content",
    "verify --level parity",
    "repair",
    "purge --older-than 0h",
    "restore --since 2000-01-01",
];

#[test]
fn a_question_makes_no_ledger_and_upgrades_none() {
    let fixture = Fixture::new("dify-1.12");
    fixture.database.psql("DELETE FROM sls_backfill._sqlx_migrations");
    for question in QUESTIONS {
        let outcome = fixture.tool(question).run().exits(3);
        outcome.tells("an older version of this program").tells("hint: `dify-sls-backfill init`");
    }
    let migrations = "SELECT count(*) FROM sls_backfill._sqlx_migrations";
    assert_eq!(fixture.database.psql(migrations).trim(), "0");
    fixture.database.psql("DROP SCHEMA sls_backfill CASCADE");
    for question in QUESTIONS {
        let outcome = fixture.tool(question).run().exits(3);
        outcome
            .tells("there is no ledger at")
            .tells("hint: `dify-sls-backfill run` migrates first");
    }
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'sls_backfill'";
    assert_eq!(fixture.database.psql(schemas).trim(), "0");
    // A plan needs none.
    fixture.tool("plan").run().exits(0);
    assert_eq!(fixture.database.psql(schemas).trim(), "0");
}
