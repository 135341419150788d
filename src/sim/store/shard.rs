//! One shard: its part of the key space, its log groups in their order, and its cursors.
//!
//! ```text
//! cursor   first   first+1  first+2
//!          group 0  group 1  (end: where the next group goes)
//! ```
//!
//! A cursor is a number with one step a group, spelt in base64, as with SLS.

use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::sim::answer::{Code, Refusal};
use crate::sim::store::lock;
use crate::sim::store::sequence::Sequences;

/// How much one PullLogs answer holds, unless its first group alone is larger.
pub const PULL_BYTES_MAX: usize = 10 * 1024 * 1024;

/// A log group as it was sent.
#[derive(Debug, Clone)]
pub struct Group {
    /// The LogGroup message, byte for byte.
    pub raw: Bytes,
    pub received_s: i64,
    /// Which of the logstore's indexes was there when it was written.
    pub indexed_by: Option<u32>,
}

/// Where in a shard to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Begin,
    End,
    /// The first group received at this Unix time or later.
    Received(i64),
}

/// What PullLogs gives.
pub struct Pulled {
    pub groups: Vec<Bytes>,
    /// Where to go on.
    pub next: i64,
}

pub struct Shard {
    pub id: u32,
    /// The first hash key of this shard.
    begin: u128,
    /// The last hash key of this shard.
    last: u128,
    /// The cursor of the first group.
    first: i64,
    created_s: i64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    groups: Vec<Group>,
    sequences: Sequences,
}

impl Shard {
    /// Splits the space of hash keys evenly into `count` shards.
    pub fn split(count: u32, now_s: i64) -> Vec<Self> {
        assert!(count > 0, "a logstore has shards");
        (0..count)
            .map(|id| Self {
                id,
                begin: boundary(id, count),
                last: if id + 1 == count { u128::MAX } else { boundary(id + 1, count) - 1 },
                // Large as SLS's are, and different in every logstore of the same name.
                first: now_s.saturating_mul(1_000_000_000).saturating_add(i64::from(id) << 32),
                created_s: now_s,
                state: Mutex::default(),
            })
            .collect()
    }

    /// Whether groups with hash key `key` go here.
    pub fn owns(&self, key: u128) -> bool {
        (self.begin..=self.last).contains(&key)
    }

    /// This shard in ListShards' answer. The last shard's end is spelt `ff…f`, as SLS does.
    pub fn describe(&self) -> Value {
        let end = self.last.saturating_add(1);
        json!({
            "shardID": self.id,
            "status": "readwrite",
            "inclusiveBeginKey": format!("{:032x}", self.begin),
            "exclusiveEndKey": format!("{end:032x}"),
            "createTime": self.created_s,
        })
    }

    /// Adds `group`, if any, at the end. With a `sequence` (hash key and number) only if the number
    /// is new.
    pub fn append(
        &self,
        group: Option<Group>,
        sequence: Option<(u128, u64)>,
    ) -> Result<(), Refusal> {
        let mut state = lock(&self.state);
        if let Some((key, number)) = sequence {
            state.sequences.advance(key, number).map_err(|last| {
                let message = format!("sequence id {number} is not above {last}, the last one");
                Refusal::new(Code::InvalidSequenceId, message)
            })?;
        }
        if let Some(mut group) = group {
            // The clock may step back; the order of receive times must not.
            let latest_s = state.groups.last().map_or(i64::MIN, |group| group.received_s);
            group.received_s = group.received_s.max(latest_s);
            state.groups.push(group);
        }
        Ok(())
    }

    /// The cursor of `from`.
    pub fn cursor(&self, from: From) -> i64 {
        let state = lock(&self.state);
        let index = match from {
            From::Begin => 0,
            From::End => state.groups.len(),
            From::Received(time_s) => {
                state.groups.partition_point(|group| group.received_s < time_s)
            }
        };
        self.first + index as i64
    }

    /// When the group at `cursor` was received; `now_s` at the end.
    pub fn cursor_time(&self, cursor: i64, now_s: i64) -> Result<i64, Refusal> {
        let state = lock(&self.state);
        let index = self.index(&state, cursor)?;
        Ok(state.groups.get(index).map_or(now_s, |group| group.received_s))
    }

    /// At most `count` groups from `cursor` on, before `end`, and [`PULL_BYTES_MAX`] bytes; at least
    /// one if there is one.
    pub fn pull(&self, cursor: i64, end: Option<i64>, count: usize) -> Result<Pulled, Refusal> {
        let state = lock(&self.state);
        let start = self.index(&state, cursor)?;
        let end = match end {
            Some(end) => self.index(&state, end)?.max(start),
            None => state.groups.len(),
        };
        let mut bytes = 0;
        let mut groups = Vec::new();
        for group in state.groups[start..end].iter().take(count) {
            bytes += group.raw.len();
            if bytes > PULL_BYTES_MAX && !groups.is_empty() {
                break;
            }
            groups.push(group.raw.clone());
        }
        let next = cursor + groups.len() as i64;
        Ok(Pulled { groups, next })
    }

    /// The group number `index` and its cursor.
    pub fn group(&self, index: usize) -> Option<(i64, Group)> {
        let state = lock(&self.state);
        state.groups.get(index).map(|group| (self.first + index as i64, group.clone()))
    }

    fn index(&self, state: &State, cursor: i64) -> Result<usize, Refusal> {
        cursor
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok())
            .filter(|index| *index <= state.groups.len())
            .ok_or_else(|| {
                let message = format!("cursor {cursor} is not one of shard {}", self.id);
                Refusal::new(Code::InvalidCursor, message)
            })
    }
}

/// Where shard `id` of `count` begins: `id / count` of the whole space.
fn boundary(id: u32, count: u32) -> u128 {
    let (id, count) = (u128::from(id), u128::from(count));
    // 2^128 = count × step + rest, and 2^128 itself does not fit.
    let (step, rest) = (u128::MAX / count, u128::MAX % count + 1);
    id * step + id * rest / count
}

/// A cursor as it is spelt in answers.
pub fn encode_cursor(cursor: i64) -> String {
    STANDARD.encode(cursor.to_string())
}

/// Reads a cursor as it is spelt in requests.
pub fn decode_cursor(text: &str) -> Result<i64, Refusal> {
    STANDARD
        .decode(text)
        .ok()
        .and_then(|digits| String::from_utf8(digits).ok()?.parse().ok())
        .ok_or_else(|| Refusal::new(Code::InvalidCursor, format!("{text} is not a cursor")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(raw: &'static [u8], received_s: i64) -> Option<Group> {
        Some(Group { raw: Bytes::from_static(raw), received_s, indexed_by: None })
    }

    #[test]
    fn every_key_has_one_shard() {
        for count in 1..=100 {
            let shards = Shard::split(count, 0);
            for shard in &shards {
                let owners = |key| shards.iter().filter(|other| other.owns(key)).count();
                assert_eq!(owners(shard.begin), 1, "{count}");
                assert_eq!(owners(shard.last), 1, "{count}");
            }
            assert!(shards[0].owns(0) && shards[count as usize - 1].owns(u128::MAX));
        }
        let keys: Vec<_> = Shard::split(4, 0).iter().map(|s| s.describe()).collect();
        assert_eq!(keys[1]["inclusiveBeginKey"], "40000000000000000000000000000000");
        assert_eq!(keys[1]["exclusiveEndKey"], "80000000000000000000000000000000");
        assert_eq!(keys[3]["exclusiveEndKey"], "ffffffffffffffffffffffffffffffff");
    }

    #[test]
    fn groups_come_back_in_order_between_cursors() {
        let shard = Shard::split(1, 1_700_000_000).remove(0);
        for (raw, received_s) in [(b"a".as_slice(), 10), (b"b", 20), (b"c", 15)] {
            shard.append(group(raw, received_s), None).unwrap();
        }
        let begin = shard.cursor(From::Begin);
        assert_eq!(begin, 1_700_000_000_000_000_000);
        assert_eq!(shard.cursor(From::End), begin + 3);
        assert_eq!(shard.cursor(From::Received(11)), begin + 1);
        assert_eq!(shard.cursor(From::Received(20)), begin + 1);
        assert_eq!(shard.cursor(From::Received(21)), begin + 3);
        assert_eq!(shard.cursor_time(begin + 2, 99), Ok(20), "times never step back");
        assert_eq!(shard.cursor_time(begin + 3, 99), Ok(99));
        let pull = |cursor, end, count| {
            let pulled = shard.pull(cursor, end, count).unwrap();
            (pulled.groups.concat(), pulled.next - begin)
        };
        assert_eq!(pull(begin, None, 1000), (b"abc".to_vec(), 3));
        assert_eq!(pull(begin + 1, None, 1), (b"b".to_vec(), 2));
        assert_eq!(pull(begin, Some(begin + 2), 1000), (b"ab".to_vec(), 2));
        assert_eq!(pull(begin + 2, Some(begin + 1), 1000), (vec![], 2));
        assert_eq!(pull(begin + 3, None, 1000), (vec![], 3));
        assert_eq!(pull(begin, None, 0), (vec![], 0));
        for cursor in [begin - 1, begin + 4, i64::MIN, i64::MAX] {
            assert_eq!(shard.pull(cursor, None, 1).err().unwrap().code, "InvalidCursor");
        }
    }

    #[test]
    fn an_answer_has_a_byte_budget_but_always_a_group() {
        let shard = Shard::split(1, 0).remove(0);
        for size in [PULL_BYTES_MAX + 1, PULL_BYTES_MAX / 2, PULL_BYTES_MAX / 2, 1] {
            let raw = Bytes::from(vec![0; size]);
            shard.append(Some(Group { raw, received_s: 0, indexed_by: None }), None).unwrap();
        }
        let sizes = |cursor| shard.pull(cursor, None, 1000).unwrap().groups.len();
        assert_eq!([sizes(0), sizes(1), sizes(2), sizes(3)], [1, 2, 2, 1]);
    }

    #[test]
    fn a_used_number_stores_nothing() {
        let shard = Shard::split(1, 0).remove(0);
        shard.append(group(b"a", 0), Some((7, 1))).unwrap();
        let refusal = shard.append(group(b"b", 0), Some((7, 1))).unwrap_err();
        assert_eq!((refusal.status, refusal.code.as_str()), (400, "InvalidSequenceId"));
        assert_eq!(shard.cursor(From::End), 1);
    }

    proptest! {
        #[test]
        fn cursors_come_back(cursor in any::<i64>(), text in ".{0,30}") {
            prop_assert_eq!(decode_cursor(&encode_cursor(cursor)), Ok(cursor));
            let _ = decode_cursor(&text);
        }
    }

    #[test]
    fn cursors_are_spelt_as_sls_spells_them() {
        assert_eq!(encode_cursor(1_447_299_606_896_632_356), "MTQ0NzI5OTYwNjg5NjYzMjM1Ng==");
    }
}
