//! One shard: its part of the key space, its log groups in their order, and its cursors.
//!
//! ```text
//! cursor   first   first+1  first+2
//!          group 0  group 1  (end: where the next group goes)
//! ```
//!
//! A cursor is a number with one step a group, spelt in base64, as with SLS.

use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::sim::answer::{Code, Refusal};
use crate::sim::clock::Moment;
use crate::sim::store::quota::{ProjectQuota, ShardQuota};
use crate::sim::store::sequence::Sequences;
use crate::sim::switch::{NumberRecorded, Seqid, Switches};
use crate::sim::sync::lock;

/// A log group as it was sent, unless it was tampered with.
#[derive(Debug, Clone)]
pub struct Group {
    /// The LogGroup message, byte for byte.
    pub raw: Bytes,
    /// Only its cursor is left: nobody is given it any more.
    pub is_lost: bool,
    pub received_s: i64,
    /// Which of the logstore's indexes was there when it was written.
    pub indexed_by: Option<u32>,
    /// When cursors and PullLogs begin to show it. Never earlier than the group before.
    pub shown_at: Instant,
}

/// What is to be written to a shard, whole or not at all.
#[derive(Debug, Clone, Default)]
pub struct Write {
    /// LogGroup messages, shown one `split_groups_ms` after the other. None: only the number counts.
    pub groups: Vec<Bytes>,
    /// What quotas count: the size of the request before compression.
    pub raw_bytes: u64,
    /// Hash key and number of an idempotent write.
    pub sequence: Option<(u128, u64)>,
    pub indexed_by: Option<u32>,
}

/// Under which circumstances a request is processed.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub moment: Moment,
    pub switches: &'a Switches,
}

impl Scene<'_> {
    /// The time that a project or logstore made or changed now says of itself, in Unix seconds.
    pub fn create_time_s(self) -> i64 {
        self.moment.unix_s().saturating_add(self.switches.create_time_offset_s)
    }
}

/// When a shard is looked at, and how far back.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub moment: Moment,
    /// Groups received earlier are over the logstore's TTL: Unix time.
    pub oldest_s: i64,
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
    quota: ShardQuota,
    /// It was split or merged: read, but no longer written.
    readonly: bool,
}

impl Shard {
    fn new(id: u32, begin: u128, last: u128, sequences: Sequences, moment: Moment) -> Self {
        // Large as SLS's are, and different in every logstore of the same name.
        let first = moment.unix_ms.saturating_mul(1_000_000).saturating_add(i64::from(id) << 32);
        let state = Mutex::new(State { sequences, ..State::default() });
        Self { id, begin, last, first, created_s: moment.unix_s(), state }
    }

    /// Divides the space of hash keys evenly into `count` shards.
    pub fn divide(count: u32, moment: Moment) -> Vec<Self> {
        assert!(count > 0, "a logstore has shards");
        (0..count)
            .map(|id| {
                let last = if id + 1 == count { u128::MAX } else { boundary(id + 1, count) - 1 };
                Self::new(id, boundary(id, count), last, Sequences::default(), moment)
            })
            .collect()
    }

    /// Makes two shards of this one: the second, `id` + 1, begins with `key` or in the middle. This
    /// one stays to be read.
    ///
    /// Fails if it is read-only already, or `key` is not within it.
    pub fn split(
        &self,
        id: u32,
        key: Option<u128>,
        scene: Scene<'_>,
    ) -> Result<[Self; 2], Refusal> {
        let middle = self.begin + (self.last - self.begin) / 2 + 1;
        let key = key.unwrap_or(middle);
        if key <= self.begin || key > self.last {
            let message = format!("key {key:032x} is not within shard {}", self.id);
            return Err(Refusal::new(Code::ParameterInvalid, message));
        }
        let known = self.close(scene)?;
        Ok([
            Self::new(id, self.begin, key - 1, known.clone(), scene.moment),
            Self::new(id + 1, key, self.last, known, scene.moment),
        ])
    }

    /// Makes shard `id` of this one and `next`, its neighbour. Both stay to be read.
    ///
    /// Fails if one of them is read-only already.
    pub fn merge(&self, next: &Self, id: u32, scene: Scene<'_>) -> Result<Self, Refusal> {
        assert!(self.is_before(next), "whoever merges has found the neighbour");
        let mut known = self.close(scene)?;
        known.join(&next.close(scene)?, scene.switches.numbers_kept_max);
        Ok(Self::new(id, self.begin, next.last, known, scene.moment))
    }

    /// Makes this shard read-only; gives the numbers that its children will know.
    fn close(&self, scene: Scene<'_>) -> Result<Sequences, Refusal> {
        let mut state = lock(&self.state);
        if state.readonly {
            let message = format!("shard {} is readonly", self.id);
            return Err(Refusal::new(Code::ParameterInvalid, message));
        }
        state.readonly = true;
        if scene.switches.child_forgets_numbers {
            return Ok(Sequences::default());
        }
        Ok(state.sequences.clone())
    }

    /// Whether it takes writes.
    pub fn is_writable(&self) -> bool {
        !lock(&self.state).readonly
    }

    /// Whether `next` begins where this shard ends.
    pub fn is_before(&self, next: &Self) -> bool {
        self.last.checked_add(1) == Some(next.begin)
    }

    /// Whether groups with hash key `key` belong here.
    pub fn owns(&self, key: u128) -> bool {
        (self.begin..=self.last).contains(&key)
    }

    /// This shard in ListShards' answer. The last shard's end is spelt `ff…f`, as SLS does.
    pub fn describe(&self) -> Value {
        let end = self.last.saturating_add(1);
        json!({
            "shardID": self.id,
            "status": if self.is_writable() { "readwrite" } else { "readonly" },
            "inclusiveBeginKey": format!("{:032x}", self.begin),
            "exclusiveEndKey": format!("{end:032x}"),
            "createTime": self.created_s,
        })
    }

    /// Adds `write` at the end if its number is new and the quotas have room.
    pub fn append(
        &self,
        write: Write,
        project: &ProjectQuota,
        scene: Scene<'_>,
    ) -> Result<(), Refusal> {
        let switches = scene.switches;
        let mut state = lock(&self.state);
        let number = write.sequence.filter(|_| switches.seqid == Seqid::Honoured);
        if switches.number_recorded == NumberRecorded::BeforeQuota {
            state.number(number, switches)?;
        }
        state.quota.write(self.id, write.raw_bytes, scene.moment, switches)?;
        project.write(write.raw_bytes, scene.moment, switches)?;
        if switches.number_recorded == NumberRecorded::AfterQuota {
            state.number(number, switches)?;
        }
        let lag = Duration::from_millis(switches.receive_lag_ms);
        let between = Duration::from_millis(switches.split_groups_ms.unwrap_or(0));
        let lag_max = switches.split_groups_lag_max_ms.map(Duration::from_millis);
        let latest_shown_at = lag_max.map(|lag_max| scene.moment.steady + lag + lag_max);
        let mut shown_at = scene.moment.steady + lag;
        let mut received_s = scene.moment.unix_s();
        if let Some(latest) = state.groups.last() {
            // The clock may step back and the lag may shrink; the order must stay.
            received_s = received_s.max(latest.received_s);
            shown_at = shown_at.max(latest.shown_at);
        }
        for raw in write.groups {
            let indexed_by = write.indexed_by;
            state.groups.push(Group { raw, is_lost: false, received_s, indexed_by, shown_at });
            let next = shown_at + between;
            shown_at = latest_shown_at.map_or(next, |latest| next.min(latest)).max(shown_at);
        }
        Ok(())
    }

    /// The cursor of `from`.
    pub fn cursor(&self, from: From, view: View) -> i64 {
        let state = lock(&self.state);
        let seen = state.seen(view);
        let index = match from {
            From::Begin => seen.start,
            From::End => seen.end,
            From::Received(time_s) => {
                let earlier = |group: &Group| group.received_s < time_s;
                seen.start + state.groups[seen].partition_point(earlier)
            }
        };
        self.first + index as i64
    }

    /// When the group at `cursor` was received; now at the end.
    pub fn cursor_time(&self, cursor: i64, view: View) -> Result<i64, Refusal> {
        let state = lock(&self.state);
        let seen = state.seen(view);
        let index = self.index(&seen, cursor)?;
        if index == seen.end {
            return Ok(view.moment.unix_s());
        }
        Ok(state.groups[index].received_s)
    }

    /// At most `count` groups from `cursor` on, before `end`, and `pull_bytes_max`; at least one if
    /// there is one.
    pub fn pull(
        &self,
        cursor: i64,
        end: Option<i64>,
        count: usize,
        view: View,
        switches: &Switches,
    ) -> Result<Pulled, Refusal> {
        let mut state = lock(&self.state);
        state.quota.read(view.moment, switches)?;
        let seen = state.seen(view);
        let start = self.index(&seen, cursor)?;
        let end = match end {
            Some(end) => self.index(&seen, end)?.max(start),
            None => seen.end,
        };
        let mut bytes = 0;
        let mut groups = Vec::new();
        let mut next = start;
        for group in &state.groups[start..end] {
            let is_full = groups.len() == count
                || (bytes + group.raw.len() > switches.pull_bytes_max && !groups.is_empty());
            if is_full {
                break;
            }
            next += 1;
            bytes += group.raw.len();
            groups.extend((!group.is_lost).then(|| group.raw.clone()));
        }
        state.quota.given(bytes as u64);
        Ok(Pulled { groups, next: self.first + next as i64 })
    }

    /// The group number `index` and its cursor, shown or not yet.
    pub fn group(&self, index: usize) -> Option<(i64, Group)> {
        let state = lock(&self.state);
        state.groups.get(index).map(|group| (self.first + index as i64, group.clone()))
    }

    /// Puts `raw` in the place of group number `index`, which must be there; `None`: it is lost.
    pub fn replace(&self, index: usize, raw: Option<Bytes>) {
        let group = &mut lock(&self.state).groups[index];
        group.is_lost = raw.is_none();
        group.raw = raw.unwrap_or_default();
    }

    /// Appends `raw` as if it had been written now, without quotas, numbers and lags.
    pub fn insert(&self, raw: Bytes, indexed_by: Option<u32>, moment: Moment) {
        let mut state = lock(&self.state);
        let latest = state.groups.last().map(|latest| (latest.received_s, latest.shown_at));
        let (received_s, shown_at) = latest.unwrap_or((i64::MIN, moment.steady));
        state.groups.push(Group {
            raw,
            is_lost: false,
            received_s: received_s.max(moment.unix_s()),
            indexed_by,
            shown_at: shown_at.max(moment.steady),
        });
    }

    fn index(&self, seen: &Range<usize>, cursor: i64) -> Result<usize, Refusal> {
        cursor
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok())
            .filter(|index| (seen.start..=seen.end).contains(index))
            .ok_or_else(|| {
                let message = format!("cursor {cursor} is not one of shard {}", self.id);
                Refusal::new(Code::InvalidCursor, message)
            })
    }
}

impl State {
    /// Takes the number of a write, or refuses it.
    fn number(
        &mut self,
        sequence: Option<(u128, u64)>,
        switches: &Switches,
    ) -> Result<(), Refusal> {
        let Some((key, number)) = sequence else { return Ok(()) };
        if let Some(last) = self.sequences.used_up(key, number) {
            let message = format!("sequence id {number} is not above {last}, the last one");
            return Err(Refusal::new(Code::InvalidSequenceId, message));
        }
        self.sequences.record(key, number, switches.numbers_kept_max);
        Ok(())
    }

    /// The groups that can be seen: from the first that is not over its time to the last before one
    /// that is not shown yet.
    fn seen(&self, view: View) -> Range<usize> {
        let start = self.groups.partition_point(|group| group.received_s < view.oldest_s);
        let end = self.groups.partition_point(|group| group.shown_at <= view.moment.steady);
        start.min(end)..end
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
mod tests;
