//! Shards: whether they are the limit, how long more of them would take, and splitting them.

use std::time::Duration;

use anyhow::Context as _;
use indicatif::HumanDuration;

use crate::commands::output::bytes;
use crate::pipeline::guard::pace::quota::SHARD_BYTES;
use crate::pipeline::guard::pace::quotas::Limit;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::sls::pull::Shard;

/// SLS knows of a split everywhere after seconds; one that takes longer has failed.
const SPLIT_WITHIN: Duration = Duration::from_secs(120);

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Says that a run waits for its shards. `rest_s`: how long the rest takes at the pace so far.
pub fn limit_text(table: Table, limit: &Limit, rest_s: Option<u64>) -> String {
    let Limit { shards, bytes_per_s } = *limit;
    let twice = 2 * shards;
    let rest = rest_s.filter(|rest_s| *rest_s > 0).map_or(String::new(), |rest_s| {
        format!(
            "; the rest takes about {}, with {twice} shards about {}",
            HumanDuration(Duration::from_secs(rest_s)),
            HumanDuration(Duration::from_secs(rest_s.div_ceil(2)))
        )
    });
    format!(
        "{table}: its shards are the limit: {shards} take {}/s together{rest}\n\
         hint: {}",
        bytes(bytes_per_s as u64),
        how(twice)
    )
}

/// What the documents promise of so many shards, and how to get more.
pub fn promise(shards: usize) -> (String, String) {
    let per_s = SHARD_BYTES * shards as f64;
    let found = format!(
        "{shards} take writes, about {}/s together: 100 GB take {}, with {} shards {}",
        bytes(per_s as u64),
        HumanDuration(Duration::from_secs_f64(1e11 / per_s)),
        2 * shards,
        HumanDuration(Duration::from_secs_f64(5e10 / per_s)),
    );
    (found, how(2 * shards))
}

/// What to type to get so many shards.
pub fn command(shards: u64) -> String {
    format!("dify-sls-backfill run --split-shards {shards}")
}

fn how(shards: usize) -> String {
    format!(
        "`{}` splits them, also while another run is active; each is paid for as long as it is \
         there, and nothing merges them by itself",
        command(shards as u64)
    )
}

/// Splits the widest shards of the logstore until `wanted` take writes; those that do are never
/// merged.
pub async fn split(
    client: &Client,
    logstore: &str,
    wanted: u32,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let wanted = wanted as usize;
    let begun = tokio::time::Instant::now();
    let (mut last, mut splits) = (None, 0);
    while !shutdown.is_asked() {
        let shards = with_retries(|| client.shards(logstore)).await;
        let mut shards = shards.with_context(|| format!("list the shards of {logstore}"))?;
        shards.retain(Shard::is_writable);
        if shards.len() >= wanted {
            if splits > 0 {
                tracing::info!("{logstore}: {} shards take writes now", shards.len());
            }
            return Ok(());
        }
        let (shard, key) = widest(&shards).with_context(|| format!("split {logstore}"))?;
        // It is asked once: a list may be older than the last split.
        if last != Some(shard) {
            let halved = client.split_shard(logstore, shard, &key).await;
            halved.with_context(|| {
                format!(
                    "split shard {shard} of {logstore}; {} of {wanted} take writes, and nothing is \
                     lost\nhint: the access key needs log:SplitShard, and the project's quota of \
                     shards may be reached",
                    shards.len()
                )
            })?;
            (last, splits) = (Some(shard), splits + 1);
            continue;
        }
        anyhow::ensure!(
            begun.elapsed() < SPLIT_WITHIN,
            "{logstore}: shard {shard} was split and still takes writes\nhint: run again"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// The shard with most keys, and the key in its middle.
fn widest(shards: &[Shard]) -> anyhow::Result<(u32, String)> {
    let mut widest: Option<(u128, u32, u128)> = None;
    for shard in shards {
        let bound = |key: &str| {
            u128::from_str_radix(key, 16)
                .with_context(|| format!("read the key range of shard {}", shard.id))
        };
        let (begin, end) = (bound(&shard.begin_key)?, bound(&shard.end_key)?);
        let width = end.saturating_sub(begin);
        if widest.is_none_or(|(most, ..)| width > most) {
            widest = Some((width, shard.id, begin + width / 2));
        }
    }
    let (_, id, middle) = widest.context("no shard takes writes")?;
    Ok((id, format!("{middle:032x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_shard_is_split_in_its_middle() {
        let shard = |id, begin: &str, end: &str| Shard {
            id,
            status: "readwrite".to_owned(),
            begin_key: format!("{begin}{}", "0".repeat(31)),
            end_key: format!("{end}{}", "0".repeat(31)),
        };
        let shards = [shard(0, "0", "4"), shard(3, "4", "c"), shard(4, "c", "f")];
        assert_eq!(widest(&shards).unwrap(), (3, format!("8{}", "0".repeat(31))));
        assert!(widest(&[]).is_err());
    }

    #[test]
    fn twice_as_many_shards_take_half_the_time() {
        let limit = Limit { shards: 2, bytes_per_s: 10_485_760.0 };
        let text = limit_text(Table::Runs, &limit, Some(7200));
        assert_eq!(
            text.lines().next().unwrap(),
            "workflow_runs: its shards are the limit: 2 take 10.00 MiB/s together; the rest takes \
             about 2 hours, with 4 shards about 60 minutes"
        );
        assert!(text.contains("--split-shards 4"), "{text}");
        let (found, _) = promise(2);
        assert!(found.ends_with("100 GB take 3 hours, with 4 shards 83 minutes"), "{found}");
    }
}
