//! Epochs: whether this ledger alone knows what goes to SLS.
//!
//! Every process that may send takes the next number in the ledger, and a random stamp with it,
//! committed; then it makes a consumer group in each logstore it will write to. The group's name is
//! ledger, number and logstore, which SLS makes once; its timeout is the stamp. Then it lists the
//! groups, reads which numbers and stamps the ledger knows, and deletes its ledger's lower ones.
//! A group that the ledger does not know stops it.
//!
//! Why that finds whoever else may have sent:
//!
//! 1. A number is committed before its group is made, and the ledger is read after the groups were
//!    listed. So a group that the ledger does not know was not made by this ledger as it is now: by
//!    another ledger, by a copy, or by this one before it went back in time.
//! 2. A copy of the ledger counts on from the same number. If it is behind, it meets our higher
//!    group and does not know it. If it takes a number that we have taken, SLS has the name: a
//!    refusal without a try of ours before it is a copy for certain. Our highest group is always
//!    there: lower ones are deleted only when a higher one was listed. Another ledger's audit leaves
//!    it, too, and remembers it; so should that ledger be dropped, the group still vouches for what
//!    this one has sent.
//! 3. A ledger that went back in time does not know the groups of the processes that came later. If
//!    it went back within the life of one process, there is none; then the batches tell: the tail
//!    reader goes on from an old cursor and meets tags of this ledger that it lacks, and the page that
//!    shows one stops the ledger (`ledger::sighting`). And another timeline, database or table tells
//!    that the ledger was restored at all (`pg::identity`), the timeline also in mid-run, in every
//!    statement that authorises a request (`ledger::continuity`).
//! 4. A lost answer: the group may be made or not, and a repetition is refused. The stamp in the
//!    list tells whose it is; a copy that has taken the same number has another one (but one time
//!    in 3,600, and only if its answer or ours was lost).
//! 5. `kill -9` after the commit: no group, and the number is known. After the group was made: the
//!    next process knows it, and deletes it. After a conflict was seen and before the stop is in
//!    the ledger: the next process sees the same groups, with the same stamps.
//! 6. Processes that share the work: their numbers differ, and all are in the ledger. The higher may
//!    delete the lower's group before the lower has listed it, so nobody asks for its own.
//! 7. Two copies that begin at once: both make a group before they list, so at least one sees the
//!    other; if only one does, it stops before it has sent. Whoever is at work looks again all the
//!    time ([`Epoch::watch`]), so one that was missed ends what was begun before.
//! 8. Who was stopped, or cannot look, dates no signature any more: [`crate::pipeline::guard::signing_lease`].

use std::sync::Arc;

use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::process::Process;
use crate::ledger::stop::{KnownGroups, Stopped};
use crate::pipeline::guard::pace::backoff;
use crate::pipeline::guard::signing_lease::SigningLease;
use crate::pipeline::recover::rules::Timings;
use crate::pipeline::retry::with_retries;
use crate::record::table::Table;
use crate::sls::answer::{Failure, NextAction};
use crate::sls::client::Client;
use crate::sls::groups::{GROUPS_MAX, Group, GroupName};

/// After so many failures in a row, about a minute, no group is made.
const ATTEMPTS_MAX: u32 = 12;

/// After so many failures in a row, each of them with retries, a process ends that cannot look.
const LOOKS_FAILED_MAX: u32 = 3;

/// A process and the logstores it will write to.
#[derive(Clone)]
pub struct Epoch {
    pub client: Client,
    pub ledger: Ledger,
    pub process: Process,
    pub tables: Vec<Table>,
    /// Hears of every look that has found nobody else.
    pub signing_lease: Arc<SigningLease>,
}

/// The groups that no process of ledger `ledger_id` has made, and no audit has looked into.
pub fn others<'a>(
    ledger_id: Uuid,
    groups: &'a [Group],
    known: &KnownGroups,
) -> Vec<(&'a Group, GroupName)> {
    let named =
        groups.iter().filter_map(|group| GroupName::parse(&group.name).map(|name| (group, name)));
    named
        .filter(|(group, name)| {
            let timeout = match name.ledger_id == ledger_id {
                true => known.stamps.get(&name.number),
                false => known.audited.get(&group.name),
            };
            timeout != Some(&group.timeout)
        })
        .collect()
}

/// What a group that the ledger does not know means.
fn describe(ledger_id: Uuid, other: &GroupName) -> String {
    let logstore = other.table.logstore();
    if other.ledger_id != ledger_id {
        let id = other.ledger_id;
        return format!(
            "another ledger ({id}) has moved rows into logstore {logstore}: SLS has the consumer \
             group {other}"
        );
    }
    format!(
        "a copy of this ledger has been at work, or this ledger went back in time: logstore \
         {logstore} has the consumer group {other}, which this ledger has not made"
    )
}

impl Epoch {
    /// Makes the process's groups, and fails with [`crate::ledger::stop::Stopped`], which is in
    /// the ledger then, if anybody else was at work.
    pub async fn claim(&self) -> anyhow::Result<()> {
        for table in &self.tables {
            self.make_group(*table).await?;
        }
        let looked_at = self.client.now();
        let mut lower = Vec::new();
        for table in &self.tables {
            let (groups, others) = self.look(*table).await?;
            if let Some(other) = others.first() {
                return Err(self.ledger.stop(&describe(self.ledger.id, other)).await?.into());
            }
            let own = groups.into_iter().filter(|group| {
                let name = GroupName::parse(&group.name);
                name.is_some_and(|name| {
                    name.ledger_id == self.ledger.id && name.number < self.process.epoch
                })
            });
            lower.extend(own.map(|group| (*table, group.name)));
        }
        self.ledger.check_stop().await?;
        self.note(looked_at);
        for (table, name) in lower {
            let deleted = with_retries(|| self.client.delete_group(table.logstore(), &name)).await;
            if let Err(failure) = deleted {
                tracing::warn!("consumer group {name} is not deleted: {failure}");
            }
        }
        Ok(())
    }

    /// Makes the process's group in a table's logstore, unless a lost answer had made it.
    pub async fn make_group(&self, table: Table) -> anyhow::Result<()> {
        let (ledger_id, number) = (self.ledger.id, self.process.epoch);
        let name = GroupName { ledger_id, number, table };
        let group = Group { name: name.to_string(), timeout: self.process.stamp };
        let (mut attempt, mut was_lost) = (0, false);
        loop {
            let made = self.client.create_group(table.logstore(), &group).await;
            let Err(failure) = made else { return Ok(()) };
            attempt += 1;
            if failure.is("ConsumerGroupAlreadyExist") {
                // Whose it is, its stamp tells.
                if was_lost {
                    return Ok(());
                }
                return Err(self.ledger.stop(&describe(ledger_id, &name)).await?.into());
            }
            let repeat = matches!(
                failure.next,
                NextAction::Later | NextAction::SignAnew | NextAction::Unknown
            );
            if !repeat || attempt == ATTEMPTS_MAX {
                return Err(self.not_made(table, &group.name, &failure).await);
            }
            if failure.next == NextAction::Unknown {
                was_lost = true;
                tracing::warn!("consumer group {}: {failure}; trying again", group.name);
            }
            tokio::time::sleep(backoff(attempt, rand::random())).await;
        }
    }

    /// Whose groups are in a table's logstore: all of them, and those that the ledger does not know.
    pub async fn look(&self, table: Table) -> anyhow::Result<(Vec<Group>, Vec<GroupName>)> {
        let logstore = table.logstore();
        let groups = with_retries(|| self.client.groups(logstore)).await.map_err(|failure| {
            let is_refused = failure.next == NextAction::Stop;
            let error = anyhow::Error::from(failure)
                .context(format!("list the consumer groups of {logstore}"));
            if is_refused { anyhow::anyhow!("{error:#}\nhint: {RIGHTS}") } else { error }
        })?;
        let numbers = groups.iter().filter_map(|group| GroupName::parse(&group.name));
        // After the list: what is in the ledger by now was there before its group was made.
        let numbers = numbers.map(|name| name.number).collect();
        let known = self.ledger.known_groups(numbers).await?;
        let others = others(self.ledger.id, &groups, &known);
        let others = others.into_iter().map(|(_, name)| name).collect();
        Ok((groups, others))
    }

    async fn not_made(&self, table: Table, name: &str, failure: &Failure) -> anyhow::Error {
        let logstore = table.logstore();
        let is_full =
            self.client.groups(logstore).await.is_ok_and(|groups| groups.len() >= GROUPS_MAX);
        let hint = match is_full {
            true => "the logstore has as many consumer groups as SLS allows: delete one",
            false => RIGHTS,
        };
        anyhow::anyhow!(
            "make consumer group {name} in logstore {logstore}, which keeps copies of this ledger \
             from sending: {failure}\nnothing was sent\nhint: {hint}"
        )
    }

    /// Ends with an error when somebody else has come, the ledger was stopped, or nobody can look.
    pub async fn watch(&self, timings: Timings) -> anyhow::Error {
        let mut failed = 0;
        loop {
            tokio::time::sleep(timings.look_every()).await;
            failed += 1;
            match self.look_again().await {
                Ok(()) => failed = 0,
                Err(error) if error.is::<Stopped>() => return error,
                Err(error) if failed == LOOKS_FAILED_MAX => {
                    return error.context("nobody knows whether others are at work");
                }
                Err(error) => {
                    // Soon nothing is signed any more; without the ledger the heartbeat ends the run.
                    tracing::warn!("nobody knows whether others are at work: {error:#}");
                }
            }
        }
    }

    async fn look_again(&self) -> anyhow::Result<()> {
        let looked_at = self.client.now();
        self.ledger.check_stop().await?;
        for table in &self.tables {
            let (_, others) = self.look(*table).await?;
            if let Some(other) = others.first() {
                return Err(self.ledger.stop(&describe(self.ledger.id, other)).await?.into());
            }
        }
        self.note(looked_at);
        Ok(())
    }

    /// Renews the signing lease after a look that began at `looked_at`.
    fn note(&self, looked_at: i64) {
        // An answer since may have corrected the clock.
        self.signing_lease.renew(looked_at.min(self.client.now()));
    }
}

const RIGHTS: &str = "the access key needs the rights log:CreateConsumerGroup, \
     log:ListConsumerGroup and log:DeleteConsumerGroup on this project";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn group(ledger_id: Uuid, number: i64, stamp: u32) -> Group {
        let name = GroupName { ledger_id, number, table: Table::Runs };
        Group { name: name.to_string(), timeout: stamp }
    }

    #[test]
    fn a_group_is_ours_if_the_ledger_knows_its_number_and_stamp() {
        let (own, foreign) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let audited = group(foreign, 9, 900);
        let known = KnownGroups {
            stamps: BTreeMap::from([(3, 300), (4, 400)]),
            audited: BTreeMap::from([(audited.name.clone(), audited.timeout)]),
        };
        let numbers = |groups: &[Group]| -> Vec<i64> {
            others(own, groups, &known).iter().map(|(_, name)| name.number).collect()
        };
        assert_eq!(numbers(&[group(own, 3, 300), group(own, 4, 400)]), [0; 0]);
        assert_eq!(numbers(&[group(own, 5, 300)]), [5], "a number that the ledger never gave");
        assert_eq!(numbers(&[group(own, 4, 401)]), [4], "a copy has given it");
        assert_eq!(numbers(&[group(foreign, 4, 400)]), [4], "another ledger");
        assert_eq!(numbers(&[audited]), [0; 0], "an audit has looked into it");
        assert_eq!(numbers(&[group(foreign, 9, 901)]), [9], "another one of that name");
        let else_s = Group { name: "somebody-else-s".to_owned(), timeout: 300 };
        assert_eq!(numbers(&[else_s]), [0; 0]);
    }
}
