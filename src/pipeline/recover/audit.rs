//! The audit: reads all of SLS and writes down the batches that the ledger lacks.
//!
//! 1. Fence. A number above all that SLS knows, and a consumer group with it: whoever else begins
//!    to send from now on, or is at work and looks, finds a group that it does not know and stops.
//! 2. Wait until nobody can date a signature any more who has not looked since (see
//!    [`crate::pipeline::guard::signing_lease`]), and until every signature of before is over and what it brought
//!    is visible. Meanwhile reading has begun.
//! 3. Read every shard, read-only ones too, from the first group that SLS keeps to the end, and
//!    adopt what the ledger lacks, page by page.
//! 4. An intent that is not there now never will be. If its rows came in another batch meanwhile, it
//!    must not be sent again: it is given up, and its rows are looked at anew. A batch that was given
//!    up and is there lives again.
//! 5. A batch that SLS was known to hold and that is not there is lost, unless the TTL tells why: it
//!    counts no more, and its rows are sent again only if somebody says so.
//! 6. Look at the groups again. One that was not there at the fence belongs to somebody who came
//!    meanwhile and may have sent: begin anew. Else delete the groups of copies, remember those of
//!    other ledgers, and lift the stop.
//!
//! The fence is in the ledger with its time, so an audit that was killed goes on where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::adopt::{AuditedPage, Find, Findings};
use crate::ledger::stop::Audit;
use crate::pg::identity::Identity;
use crate::pipeline::guard::epoch::Epoch;
use crate::pipeline::recover::rules::Timings;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::record::seal::Seal;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::sls::find_batches::{FoundBatch, FoundPage, find};
use crate::sls::groups::{Group, GroupName};

/// Pages are sized to come near it.
const PAGE_BYTES: usize = 4 << 20;

/// How an audit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audited {
    /// Everything is in the ledger, and the stop is lifted.
    Done(Findings),
    /// Asked to stop; the next audit goes on.
    Halted,
    /// Somebody else came meanwhile; the next audit begins anew.
    Disturbed(String),
}

/// The highest number that a process of ledger `ledger_id` has given a consumer group.
pub async fn highest_number(
    client: &Client,
    ledger_id: Uuid,
    tables: &[Table],
) -> anyhow::Result<i64> {
    let mut highest = 0;
    for table in tables {
        let groups = with_retries(|| client.groups(table.logstore()))
            .await
            .with_context(|| format!("list the consumer groups of {}", table.logstore()))?;
        let numbers = groups.iter().filter_map(|group| GroupName::parse(&group.name));
        let own = numbers.filter(|name| name.ledger_id == ledger_id);
        highest = own.map(|name| name.number).fold(highest, i64::max);
    }
    Ok(highest)
}

/// What an audit is about.
pub struct Subject<'a> {
    /// Its process, which must be the only one, and the tables whose logstores are there.
    pub epoch: &'a Epoch,
    /// Tables whose logstores are not there, so that nothing is in them.
    pub missing: &'a [Table],
    /// The name of the SLS that it looks into.
    pub service: &'a str,
    pub source: &'a Identity,
    pub timings: Timings,
}

/// Audits.
pub async fn audit(subject: &Subject<'_>, shutdown: &mut Shutdown) -> anyhow::Result<Audited> {
    let Subject { epoch, missing, service, source, timings } = *subject;
    let audit = fence(epoch, service).await?;
    let signed_s = timings.look_life_s();
    // Three clocks in whole seconds: the look's, the fence's and ours; `look_after_s` knows two.
    let over_at = audit.fenced_at + signed_s + timings.storable_s() + timings.look_after_s() + 2;
    let mut passed_over = PassedOver::default();
    let mut is_told = false;
    loop {
        // Whatever is stored by now is read by what follows.
        let left_s = over_at - epoch.client.now();
        for table in &epoch.tables {
            let reading =
                Reading { epoch, audit: &audit, table: *table, signed_before: over_at, shutdown };
            if !reading.read(&mut passed_over).await? {
                return Ok(Audited::Halted);
            }
        }
        if left_s <= 0 {
            break;
        }
        if !is_told {
            tracing::info!(
                "waiting {left_s} s, until no request that was signed before can arrive any more"
            );
            is_told = true;
        }
        let nap = Duration::from_secs(u64::try_from(left_s.clamp(1, 10)).unwrap_or(1));
        if shutdown.or(tokio::time::sleep(nap)).await.is_none() {
            return Ok(Audited::Halted);
        }
    }
    for table in epoch.tables.iter().chain(missing) {
        epoch.ledger.conclude_audit(audit.number, *table, epoch.client.now()).await?;
    }
    let audited = match clear(epoch, &audit).await? {
        Cleared::Kept(audited) => audited,
        Cleared::Disturbed(name) => {
            epoch.ledger.drop_audit().await?;
            return Ok(Audited::Disturbed(name));
        }
    };
    let mut findings = epoch.ledger.findings(audit.number).await?;
    findings.passed_over_groups = passed_over.groups;
    findings.passed_over_rows = passed_over.rows;
    epoch.ledger.finish_audit(source, &audited).await?;
    Ok(Audited::Done(findings))
}

/// Keeps others out; gives the audit that was begun before if it still does.
async fn fence(epoch: &Epoch, service: &str) -> anyhow::Result<Audit> {
    for table in &epoch.tables {
        epoch.make_group(*table).await?;
    }
    let open = epoch.ledger.open_audit().await?;
    let (mut groups, mut is_fenced) = (BTreeMap::new(), true);
    for table in &epoch.tables {
        let (all, others) = epoch.look(*table).await?;
        // The group that has kept others out since.
        is_fenced &= all.iter().filter_map(|group| GroupName::parse(&group.name)).any(|name| {
            name.ledger_id == epoch.ledger.id
                && open.as_ref().is_some_and(|open| open.number == name.number)
        });
        let names: Vec<_> = others.iter().map(ToString::to_string).collect();
        groups.insert(table.logstore().to_owned(), names);
    }
    if let Some(open) = open.filter(|_| is_fenced) {
        let is_known = |logstore: &String, name: &String| {
            open.groups.get(logstore).is_some_and(|known| known.contains(name))
        };
        let is_same = open.groups.keys().eq(groups.keys())
            && groups.iter().all(|(at, names)| names.iter().all(|name| is_known(at, name)));
        if is_same {
            tracing::info!("going on with the audit that was begun before");
            return Ok(open);
        }
    }
    let audit = Audit { number: epoch.process.epoch, fenced_at: epoch.client.now(), groups };
    epoch.ledger.begin_audit(&audit, service).await?;
    Ok(audit)
}

/// Log groups under a ledger's tags that nobody vouches for.
#[derive(Debug, Clone, Copy, Default)]
struct PassedOver {
    groups: u64,
    rows: u64,
}

/// The reading of one logstore.
struct Reading<'a> {
    epoch: &'a Epoch,
    audit: &'a Audit,
    table: Table,
    signed_before: i64,
    shutdown: &'a Shutdown,
}

impl Reading<'_> {
    /// Reads the logstore on to its end; `false` when asked to stop.
    async fn read(&self, passed_over: &mut PassedOver) -> anyhow::Result<bool> {
        let Self { epoch, table, .. } = *self;
        let (ledger, logstore) = (&epoch.ledger, table.logstore());
        let generation = ledger.generation(logstore).await?;
        let mut positions = ledger.read_positions(logstore, generation).await?;
        let mut reader = Reader { client: &epoch.client, seal: ledger.seal, table, groups_max: 1 };
        for shard in reader.shards().await? {
            let mut cursor = match positions.remove(&shard) {
                Some(cursor) => cursor,
                None => {
                    let cursor = reader.beginning(shard).await?;
                    ledger.begin_reading(logstore, generation, shard, &cursor).await?;
                    cursor
                }
            };
            loop {
                if self.shutdown.is_asked() {
                    return Ok(false);
                }
                let Some((found, next_cursor)) = reader.page(shard, &cursor).await? else { break };
                let others_since = found.others_since;
                let Vouched { finds, lacks } = self.vouched(found, passed_over).await?;
                let received_at = if lacks { reader.received_at(shard, &cursor).await? } else { 0 };
                let page = AuditedPage {
                    audit: self.audit.number,
                    table,
                    generation,
                    shard,
                    cursor: &cursor,
                    next_cursor: &next_cursor,
                    signed_before: self.signed_before,
                    received_at,
                    finds: &finds,
                    others_since,
                };
                ledger.adopt_page(&page).await?;
                cursor = next_cursor;
            }
        }
        Ok(true)
    }

    /// Takes from a page what the ledger may believe: batches that bear its seal, those of another
    /// ledger that has left a consumer group, as only few may, and what an earlier audit has
    /// written down. Any tag can be written by anybody who may write a log.
    async fn vouched(
        &self,
        found: FoundPage,
        passed_over: &mut PassedOver,
    ) -> anyhow::Result<Vouched> {
        let ledger = &self.epoch.ledger;
        let groups = self.audit.groups.get(self.table.logstore());
        let vouching: BTreeSet<Uuid> = groups
            .into_iter()
            .flatten()
            .filter_map(|name| GroupName::parse(name).map(|name| name.ledger_id))
            .chain([ledger.id])
            .collect();
        let owners = ledger.owners(found.batches.keys().map(|(_, id)| *id).collect()).await?;
        passed_over.groups += found.unsealed_groups;
        let mut vouched = Vouched { finds: BTreeMap::new(), lacks: false };
        for ((ledger_id, batch_id), batch) in found.batches {
            let owner = owners.get(&batch_id);
            let is_vouched =
                owner.map_or(vouching.contains(&ledger_id), |owner| *owner == ledger_id);
            if is_vouched && !vouched.finds.contains_key(&batch_id) {
                vouched.lacks |= owner.is_none();
                vouched.finds.insert(batch_id, as_find(ledger_id, batch));
            } else {
                passed_over.groups += u64::from(batch.sum.groups);
                passed_over.rows += batch.sum.rows;
            }
        }
        Ok(vouched)
    }
}

/// What a ledger may believe of a page.
struct Vouched {
    finds: BTreeMap<Uuid, Find>,
    /// Whether the book lacks one of them.
    lacks: bool,
}

/// What became of the consumer groups of others.
enum Cleared {
    /// These stay, with their timeouts.
    Kept(BTreeMap<String, u32>),
    /// One has come that was not there at the fence.
    Disturbed(String),
}

/// Deletes the groups of copies that were there at the fence, and this ledger's lower ones. Of each
/// other ledger the highest stays: it vouches for what that one has sent.
async fn clear(epoch: &Epoch, audit: &Audit) -> anyhow::Result<Cleared> {
    let (mut doomed, mut kept) = (Vec::new(), BTreeMap::new());
    for table in &epoch.tables {
        let logstore = table.logstore();
        let known = audit.groups.get(logstore);
        let (groups, others) = epoch.look(*table).await?;
        let mut highest: BTreeMap<Uuid, i64> = BTreeMap::new();
        for other in others.iter().filter(|other| other.ledger_id != epoch.ledger.id) {
            let number = highest.entry(other.ledger_id).or_insert(other.number);
            *number = other.number.max(*number);
        }
        for other in others {
            let name = other.to_string();
            if !known.is_some_and(|known| known.contains(&name)) {
                return Ok(Cleared::Disturbed(name));
            }
            let timeout = groups.iter().find(|group| group.name == name).map(|group| group.timeout);
            match timeout.filter(|_| highest.get(&other.ledger_id) == Some(&other.number)) {
                Some(timeout) => drop(kept.insert(name, timeout)),
                None => doomed.push((logstore, name)),
            }
        }
        let lower = |group: &Group| {
            let name = GroupName::parse(&group.name)?;
            let is_lower = name.ledger_id == epoch.ledger.id && name.number < epoch.process.epoch;
            is_lower.then(|| group.name.clone())
        };
        doomed.extend(groups.iter().filter_map(lower).map(|name| (logstore, name)));
    }
    for (logstore, name) in doomed {
        with_retries(|| epoch.client.delete_group(logstore, &name))
            .await
            .with_context(|| format!("delete consumer group {name} of {logstore}"))?;
    }
    Ok(Cleared::Kept(kept))
}

/// What an audit would find, without a fence, a wait, or a word in the ledger: batches of ours in
/// SLS, and of these such as the ledger lacks.
pub async fn preview(preview: &Preview<'_>) -> anyhow::Result<BTreeMap<Uuid, Findings>> {
    let Preview { client, ledger, tables } = preview;
    let mut by_ledger: BTreeMap<Uuid, Findings> = BTreeMap::new();
    for table in *tables {
        let mut reader = Reader { client, seal: ledger.seal, table: *table, groups_max: 1 };
        for shard in reader.shards().await? {
            let mut cursor = reader.beginning(shard).await?;
            while let Some((found, next_cursor)) = reader.page(shard, &cursor).await? {
                let ids = found.batches.keys().map(|(_, id)| *id).collect();
                let known = ledger.known_batches(ids).await?;
                for ((ledger_id, batch_id), found) in found.batches {
                    let findings = by_ledger.entry(ledger_id).or_default();
                    findings.batches += u64::from(found.sum.groups);
                    findings.rows += found.sum.rows;
                    if !known.contains(&batch_id) {
                        findings.adopted += u64::from(found.sum.groups);
                        findings.adopted_rows += found.sum.rows;
                    }
                }
                cursor = next_cursor;
            }
        }
    }
    Ok(by_ledger)
}

/// What a preview reads.
pub struct Preview<'a> {
    pub client: &'a Client,
    pub ledger: &'a Ledger,
    pub tables: &'a [Table],
}

/// Pulls the shards of one logstore.
struct Reader<'a> {
    client: &'a Client,
    seal: Seal,
    table: Table,
    groups_max: u32,
}

impl Reader<'_> {
    async fn shards(&self) -> anyhow::Result<Vec<u32>> {
        let logstore = self.table.logstore();
        let shards = with_retries(|| self.client.shards(logstore)).await;
        let shards = shards.with_context(|| format!("list the shards of {logstore}"))?;
        Ok(shards.iter().map(|shard| shard.id).collect())
    }

    async fn beginning(&self, shard: u32) -> anyhow::Result<String> {
        with_retries(|| self.client.cursor(self.table.logstore(), shard, "begin"))
            .await
            .with_context(|| format!("find the beginning of shard {shard}"))
    }

    /// When SLS received what begins at `cursor`, Unix seconds.
    async fn received_at(&self, shard: u32, cursor: &str) -> anyhow::Result<i64> {
        with_retries(|| self.client.cursor_time(self.table.logstore(), shard, cursor))
            .await
            .with_context(|| format!("look when SLS received what is in shard {shard}"))
    }

    /// The batches of the next page, and where it ends; `None` at the end of the shard.
    async fn page(
        &mut self,
        shard: u32,
        cursor: &str,
    ) -> anyhow::Result<Option<(FoundPage, String)>> {
        let logstore = self.table.logstore();
        let pulled = with_retries(|| self.client.pull(logstore, shard, cursor, self.groups_max))
            .await
            .with_context(|| format!("pull shard {shard} of {logstore}"))?;
        if pulled.next_cursor == cursor {
            return Ok(None);
        }
        let fit = PAGE_BYTES / (pulled.raw.len() / pulled.groups.max(1) as usize).max(1);
        let fit = u32::try_from(fit).unwrap_or(u32::MAX);
        self.groups_max = fit.clamp(1, (self.groups_max * 2).min(1000));
        let found = find(&pulled.raw, self.table, &self.seal)
            .with_context(|| format!("read shard {shard} of {logstore} at {cursor}"))?;
        if found.odd_groups > 0 {
            tracing::warn!(
                "shard {shard} of {logstore}: {} log groups of others cannot be read; they are \
                 passed over",
                found.odd_groups
            );
        }
        Ok(Some((found, pulled.next_cursor)))
    }
}

fn as_find(ledger_id: Uuid, found: FoundBatch) -> Find {
    Find {
        ledger_id,
        tagged: found.tagged,
        conversion: found.conversion,
        sum: found.sum,
        raw_bytes: found.raw_bytes,
        rows: found.rows.iter().map(|row| (row.id, row.created_at, row.finished_at)).collect(),
        log_time: found.log_time,
    }
}
