//! The tags by which a batch explains itself, and whose a log group is by them.

use uuid::Uuid;

use crate::record::digest::Digest;
use crate::record::seal::Seal;
use crate::wire::log_group::LogGroupView;

/// The source that all our groups name.
pub const LOG_SOURCE: &str = "dify-sls-backfill";

/// The tag that names ledger and batch: `{ledger id}/{batch id}`.
pub const BATCH_TAG: &str = "__batch__";

/// The tag that tells which sending of its batch a group is, from 1: each is on a number of its own.
pub const ATTEMPT_TAG: &str = "__attempt__";

/// The tag that names the conversion of a batch by its fingerprint.
pub const CONVERSION_TAG: &str = "__conversion__";

/// The tag that tells how many rows a batch has.
pub const ROWS_TAG: &str = "__rows__";

/// The tag that tells a batch's digest.
pub const DIGEST_TAG: &str = "__digest__";

/// The tag by which the ledger knows its own batches: [`Seal::of`].
pub const SEAL_TAG: &str = "__seal__";

/// More logs than any request to SLS holds: 10 MB of the shortest ones.
const ROWS_MAX: u32 = 10_000_000;

/// What the tags of a log group tell of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    pub ledger_id: Uuid,
    pub batch_id: Uuid,
    /// The rows and the digest of the whole batch; `None` when they cannot be read, or tell of more
    /// rows than a request to SLS holds.
    pub told: Option<(u32, Digest)>,
}

/// Whose a log group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The ledger's: it bears its seal.
    Own(Named),
    /// It names the ledger, and does not bear its seal: somebody else has written it.
    Unsealed(Named),
    /// Another ledger's, it says.
    Foreign(Named),
    /// It has no tag of any ledger.
    Nobody,
}

/// Whose `group` is, seen from the ledger of `seal`.
pub fn owner(group: &LogGroupView<'_>, seal: &Seal) -> Owner {
    let Some((ledger_id, batch_id)) = group.tag(BATCH_TAG).and_then(parse_batch) else {
        return Owner::Nobody;
    };
    let named = Named { ledger_id, batch_id, told: told(group) };
    if ledger_id != seal.ledger_id {
        return Owner::Foreign(named);
    }
    let is_sealed = named.told.is_some_and(|(rows, digest)| {
        group.tag(SEAL_TAG) == Some(seal.of(batch_id, rows.into(), digest).as_bytes())
    });
    if is_sealed { Owner::Own(named) } else { Owner::Unsealed(named) }
}

/// Whether bytes that are no log group name the ledger all the same.
pub fn names(bytes: &[u8], ledger_id: Uuid) -> bool {
    let id = ledger_id.to_string();
    bytes.windows(id.len()).any(|part| part == id.as_bytes())
}

fn parse_batch(tag: &[u8]) -> Option<(Uuid, Uuid)> {
    let (ledger, batch) = std::str::from_utf8(tag).ok()?.split_once('/')?;
    ledger.parse().ok().zip(batch.parse().ok())
}

fn told(group: &LogGroupView<'_>) -> Option<(u32, Digest)> {
    let text = |tag| std::str::from_utf8(group.tag(tag)?).ok();
    let digest: [u8; 32] = hex::decode(text(DIGEST_TAG)?).ok()?.try_into().ok()?;
    let rows = text(ROWS_TAG)?.parse().ok().filter(|rows| *rows <= ROWS_MAX)?;
    Some((rows, Digest::from_bytes(digest)))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The tags of a batch of the ledger of `seal`.
    pub fn tags_of(
        seal: &Seal,
        batch_id: Uuid,
        rows: u32,
        digest: Digest,
    ) -> Vec<(&'static str, String)> {
        vec![
            (BATCH_TAG, format!("{}/{batch_id}", seal.ledger_id)),
            (ROWS_TAG, rows.to_string()),
            (DIGEST_TAG, digest.to_string()),
            (SEAL_TAG, seal.of(batch_id, rows.into(), digest)),
        ]
    }

    #[test]
    fn a_group_is_the_ledgers_if_its_seal_fits_all_that_its_tags_tell() {
        let (ledger, batch) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let seal = Seal::new(ledger, [1; 32]);
        let digest = Digest::from_bytes([3; 32]);
        let (own, sealed) = (format!("{ledger}/{batch}"), seal.of(batch, 5, digest));
        let digest = digest.to_string();
        let owner = |tags: &[(&str, &str)]| {
            let tags = tags.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes()));
            owner(&LogGroupView { tags: tags.collect(), ..LogGroupView::default() }, &seal)
        };
        let all = [
            (BATCH_TAG, own.as_str()),
            (ROWS_TAG, "5"),
            (DIGEST_TAG, digest.as_str()),
            (SEAL_TAG, sealed.as_str()),
        ];
        assert!(matches!(owner(&all), Owner::Own(named) if named.batch_id == batch));
        let other_batch = format!("{ledger}/{ledger}");
        for changed in [(BATCH_TAG, other_batch.as_str()), (ROWS_TAG, "6"), (SEAL_TAG, "")] {
            let tags = all.map(|tag| if tag.0 == changed.0 { changed } else { tag });
            assert!(matches!(owner(&tags), Owner::Unsealed(_)), "{changed:?}");
        }
        assert!(matches!(owner(&all[..3]), Owner::Unsealed(_)));
        let foreign = format!("{batch}/{ledger}");
        for (rows, is_told) in [("5", true), ("10000001", false), ("99999999999", false)] {
            let tags = [(BATCH_TAG, foreign.as_str()), (ROWS_TAG, rows), all[2]];
            let is_as_wanted = matches!(owner(&tags), Owner::Foreign(Named { told, .. })
                if told.is_some() == is_told);
            assert!(is_as_wanted, "{rows}");
        }
        assert_eq!(owner(&[(BATCH_TAG, "7")]), Owner::Nobody);
        assert_eq!(owner(&[]), Owner::Nobody);
    }
}
