//! What the ledger may believe: not that a logstore which is gone holds what was sent, not what
//! anybody may write into SLS, and not functions that anybody may make in Postgres.

use crate::faults::SHORT;
use crate::harness::fixture::Fixture;

const AUDIT: &str = "audit --signature-life-s 3 --late-s 1 --visible-s 1";

#[test]
fn functions_that_somebody_made_in_public_are_not_called() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 5);
    // Each of them fits better than Postgres's own, which is polymorphic, or comes before it.
    fixture.database.psql(
        "CREATE FUNCTION public.octet_length(text) RETURNS integer LANGUAGE plpgsql AS \
           $$ BEGIN RAISE EXCEPTION 'shadowed octet_length'; END $$; \
         CREATE FUNCTION public.unnest(uuid[]) RETURNS SETOF uuid LANGUAGE plpgsql AS \
           $$ BEGIN RAISE EXCEPTION 'shadowed unnest'; END $$; \
         CREATE FUNCTION public.cardinality(text[]) RETURNS integer LANGUAGE plpgsql AS \
           $$ BEGIN RAISE EXCEPTION 'shadowed cardinality'; END $$; \
         CREATE FUNCTION public.is_equal(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS \
           $$ BEGIN RAISE EXCEPTION 'shadowed ='; END $$; \
         CREATE OPERATOR public.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = public.is_equal)",
    );
    fixture.tool("doctor").run().exits(0);
    fixture.tool("run --dry-run").run().exits(0);
    fixture.tool(SHORT).run().exits(0);
    fixture.tool(AUDIT).run().exits(0);
    fixture.tool("status").run().exits(0);
    fixture.database.psql("DROP OPERATOR public.= (uuid, uuid)");
    fixture.holds_every_finished_row_once();
}
