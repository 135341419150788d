//! The doctor's checks of SLS: project, logstores, indexes, clocks, consumer groups.

use serde_json::Value;

use crate::commands::doctor::check::Check;
use crate::commands::setup::{self, SlsSettings, own_now};
use crate::commands::shards::promise;
use crate::dify::conversion::LogTime;
use crate::dify::fields::Fields;
use crate::dify::index::index;
use crate::dify::index::merge::{Change, merge};
use crate::ledger::generation::{LogstoreFacts, made_anew, other_service};
use crate::ledger::inspection::Standing;
use crate::pipeline::read::window::Clocks;
use crate::pipeline::retry::with_retries;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::sls::answer::Failure;
use crate::sls::client::Client;
use crate::sls::groups::{GROUPS_MAX, Group, GroupName};
use crate::source::catalog::Shape;

const INIT: &str = "`dify-sls-backfill init` creates project, logstores and indexes";

/// Checks SLS. `postgres_now`: the source's clock.
pub async fn check_sls(
    settings: &SlsSettings,
    shapes: &[Shape],
    standing: Option<&Standing>,
    postgres_now: Option<Timestamp>,
    checks: &mut Vec<Check>,
) {
    let client = match setup::client(settings) {
        Ok(client) => client,
        Err(error) => return checks.push(Check::error("project", &error)),
    };
    let project = &settings.project;
    match with_retries(|| client.has_project()).await {
        Ok(true) => checks.push(check_way(settings)),
        Ok(false) => {
            let found = format!("there is no project {project}");
            return checks.push(Check::fail("project", found, INIT));
        }
        Err(failure) => return checks.push(unreachable(&failure)),
    }
    checks.push(check_project(settings, standing));
    checks.push(check_clocks(&client, postgres_now));
    for table in Table::ALL {
        let shape = shapes.iter().find(|shape| shape.table == table);
        check_logstore(&client, table, shape, standing, checks).await;
    }
}

fn check_way(settings: &SlsSettings) -> Check {
    match settings.endpoint.is_in_clear() {
        false => Check::ok("project", settings.place()),
        true => Check::warn(
            "project",
            format!("{}; logs and their signatures travel unencrypted", settings.place()),
            "leave http:// out of ALIYUN_SLS_ENDPOINT, or say https://",
        ),
    }
}

fn unreachable(failure: &Failure) -> Check {
    Check::fail(
        "project",
        failure.to_string(),
        "check ALIYUN_SLS_ENDPOINT, ALIYUN_SLS_REGION, ALIYUN_SLS_PROJECT_NAME, \
         ALIYUN_SLS_ACCESS_KEY_ID and ALIYUN_SLS_ACCESS_KEY_SECRET, and whether a proxy stands in \
         between",
    )
}

fn check_project(settings: &SlsSettings, standing: Option<&Standing>) -> Check {
    let (name, project) = ("ledger's project", settings.project.as_str());
    let service = &settings.endpoint.service;
    let bound = standing.and_then(|standing| standing.service.as_deref());
    if let Some(bound) = bound.filter(|bound| bound != service) {
        return Check::fail(
            name,
            other_service(bound, service),
            "name that SLS in ALIYUN_SLS_ENDPOINT, or use another ledger (--ledger-url) for \
             another SLS; if the project has moved, `dify-sls-backfill audit` looks into it",
        );
    }
    match standing.and_then(|standing| standing.project.as_deref()) {
        Some(bound) if bound != project => Check::fail(
            name,
            format!("its rows went to {bound}, not to {project}"),
            "name that project, or use another ledger (--ledger-url) for another project",
        ),
        Some(bound) => Check::ok(name, bound),
        None => Check::ok(name, "none yet"),
    }
}

fn check_clocks(client: &Client, postgres_now: Option<Timestamp>) -> Check {
    let own = own_now();
    let postgres = postgres_now.and_then(Timestamp::unix_s).unwrap_or(own);
    let clocks = Clocks { own, postgres, sls: Some(client.now()) };
    match clocks.skew() {
        Some(skew) => Check::warn("clocks", skew, "set the clock; nothing is lost meanwhile"),
        None => Check::ok("clocks", "ours, Postgres's and SLS's agree"),
    }
}

async fn check_logstore(
    client: &Client,
    table: Table,
    shape: Option<&Shape>,
    standing: Option<&Standing>,
    checks: &mut Vec<Check>,
) {
    let logstore = table.logstore();
    let name = format!("logstore {logstore}");
    match with_retries(|| client.logstore(logstore)).await {
        Ok(Some(found)) => {
            checks.push(check_settings(&name, &found));
            checks.extend(check_creation(&name, &setup::facts(table, &found), standing));
        }
        Ok(None) => return checks.push(Check::fail(&name, "is not there", INIT)),
        Err(failure) => return checks.push(Check::fail(&name, failure.to_string(), RIGHTS)),
    }
    checks.push(check_shards(client, table).await);
    checks.push(check_index(client, table, shape).await);
    checks.push(check_groups(client, table, standing).await);
}

const RIGHTS: &str = "does the access key have the rights on this project? see docs/rights.md";

/// Whether it is the logstore that the ledger's rows went to, if any did.
fn check_creation(name: &str, facts: &LogstoreFacts, standing: Option<&Standing>) -> Option<Check> {
    let then = standing?.created.get(facts.logstore)?;
    let now = facts.created_at_s?;
    (now != *then).then(|| {
        Check::fail(
            name,
            made_anew(facts.logstore),
            "`dify-sls-backfill audit` finds out what is not there any more",
        )
    })
}

fn check_settings(name: &str, found: &Value) -> Check {
    if found["mode"].as_str() == Some("query") {
        let hint = "recreate it in the mode `standard`: Dify queries it with SQL";
        return Check::fail(name, "its mode is `query`, which has no SQL", hint);
    }
    match found["ttl"].as_u64() {
        Some(3650) => Check::ok(name, "keeps logs for ever"),
        Some(days) => Check::warn(
            name,
            format!("keeps logs for {days} days"),
            "search does not find logs of rows that finished before that: raise its TTL before older \
             rows are sent",
        ),
        None => Check::warn(name, "does not say how long it keeps logs", RIGHTS),
    }
}

/// How fast its shards can take logs.
async fn check_shards(client: &Client, table: Table) -> Check {
    let name = format!("shards {}", table.logstore());
    match with_retries(|| client.shards(table.logstore())).await {
        Ok(shards) => {
            let (found, how) = promise(shards.iter().filter(|shard| shard.is_writable()).count());
            Check { hint: Some(format!("if that is too long: {how}")), ..Check::ok(&name, found) }
        }
        Err(failure) => Check::fail(&name, failure.to_string(), RIGHTS),
    }
}

/// Whether Dify's queries would find what they ask for.
async fn check_index(client: &Client, table: Table, shape: Option<&Shape>) -> Check {
    let name = format!("index {}", table.logstore());
    let found = match with_retries(|| client.index(table.logstore())).await {
        Ok(Some(found)) => found,
        Ok(None) => return Check::fail(&name, "is not there", INIT),
        Err(failure) => return Check::fail(&name, failure.to_string(), RIGHTS),
    };
    let Some(shape) = shape else {
        return Check::ok(&name, "is there; which keys it needs is not known without the table");
    };
    let fields = match Fields::of(&setup::conversion(shape, true, LogTime::FinishedAt)) {
        Ok(fields) => fields,
        Err(unfit) => return Check::fail(&name, unfit.to_string(), "is it Dify's database?"),
    };
    let merged = merge(&found, &index(&shape.columns, &fields));
    let changes: Vec<_> = merged.changes.iter().map(Change::to_string).collect();
    match changes.is_empty() {
        true => Check::ok(&name, "has all keys that Dify needs"),
        false => Check::warn(
            &name,
            format!("needs {}", changes.join(", ")),
            "`dify-sls-backfill init` completes it, and so does Dify when it starts with LogStore \
             switched on; logs that were written before are found only after the index is rebuilt",
        ),
    }
}

/// Whether others have sent to the logstore, as far as the groups' names say.
async fn check_groups(client: &Client, table: Table, standing: Option<&Standing>) -> Check {
    let name = format!("groups {}", table.logstore());
    let groups = match with_retries(|| client.groups(table.logstore())).await {
        Ok(groups) => groups,
        Err(failure) => return Check::fail(&name, failure.to_string(), RIGHTS),
    };
    let ours = standing.map(|standing| (standing.id, standing.epoch));
    let audited = |group: &Group| {
        let timeout = standing.and_then(|standing| standing.audited_groups.get(&group.name));
        timeout == Some(&group.timeout)
    };
    let other = groups
        .iter()
        .filter(|group| !audited(group))
        .filter_map(|group| GroupName::parse(&group.name))
        .find(|name| ours.is_none_or(|(id, epoch)| name.ledger_id != id || name.number > epoch));
    match other {
        Some(other) => Check::fail(
            &name,
            format!("another ledger, or a copy of this one, has sent logs here: {other}"),
            "`dify-sls-backfill audit` reads SLS and records what is there",
        ),
        None if groups.len() >= GROUPS_MAX => Check::fail(
            &name,
            format!("{} of {GROUPS_MAX}: there is no room for ours", groups.len()),
            "delete a consumer group",
        ),
        None => Check::ok(&name, format!("{} of {GROUPS_MAX}, none of others", groups.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::check::State;
    use serde_json::json;

    #[test]
    fn a_logstore_must_know_sql_and_should_keep_what_it_gets() {
        let state = |found: Value| check_settings("", &found).state;
        assert_eq!(state(json!({"ttl": 3650, "mode": "standard"})), State::Ok);
        assert_eq!(state(json!({"ttl": 365, "mode": "standard"})), State::Warn);
        assert_eq!(state(json!({"ttl": 3650, "mode": "query"})), State::Fail);
    }
}
