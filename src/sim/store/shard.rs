//! One shard: its part of the key space, its log groups in their order, and its cursors.
//!
//! ```text
//! cursor   first   first+1  first+2
//!          group 0  group 1  (end: where the next group goes)
//! ```
//!
//! A cursor is a number with one step a group, spelt in base64, as with SLS.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::sim::answer::{Code, Refusal};
use crate::sim::clock::Moment;
use crate::sim::store::lock;
use crate::sim::store::quota::{ProjectQuota, ShardQuota};
use crate::sim::store::sequence::Sequences;
use crate::sim::switch::{NumberRecorded, Seqid, Switches};

/// A log group as it was sent.
#[derive(Debug, Clone)]
pub struct Group {
    /// The LogGroup message, byte for byte.
    pub raw: Bytes,
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
        let mut shown_at = scene.moment.steady + lag;
        let mut received_s = scene.moment.unix_s();
        if let Some(latest) = state.groups.last() {
            // The clock may step back and the lag may shrink; the order must stay.
            received_s = received_s.max(latest.received_s);
            shown_at = shown_at.max(latest.shown_at);
        }
        for raw in write.groups {
            let indexed_by = write.indexed_by;
            state.groups.push(Group { raw, received_s, indexed_by, shown_at });
            shown_at += between;
        }
        Ok(())
    }

    /// The cursor of `from`.
    pub fn cursor(&self, from: From, moment: Moment) -> i64 {
        let state = lock(&self.state);
        let shown = state.shown(moment);
        let index = match from {
            From::Begin => 0,
            From::End => shown.len(),
            From::Received(time_s) => shown.partition_point(|group| group.received_s < time_s),
        };
        self.first + index as i64
    }

    /// When the group at `cursor` was received; now at the end.
    pub fn cursor_time(&self, cursor: i64, moment: Moment) -> Result<i64, Refusal> {
        let state = lock(&self.state);
        let shown = state.shown(moment);
        let index = self.index(shown, cursor)?;
        Ok(shown.get(index).map_or(moment.unix_s(), |group| group.received_s))
    }

    /// At most `count` groups from `cursor` on, before `end`, and `pull_bytes_max`; at least one if
    /// there is one.
    pub fn pull(
        &self,
        cursor: i64,
        end: Option<i64>,
        count: usize,
        scene: Scene<'_>,
    ) -> Result<Pulled, Refusal> {
        let mut state = lock(&self.state);
        state.quota.read(scene.moment, scene.switches)?;
        let shown = state.shown(scene.moment);
        let start = self.index(shown, cursor)?;
        let end = match end {
            Some(end) => self.index(shown, end)?.max(start),
            None => shown.len(),
        };
        let mut bytes = 0;
        let mut groups = Vec::new();
        for group in shown[start..end].iter().take(count) {
            bytes += group.raw.len();
            if bytes > scene.switches.pull_bytes_max && !groups.is_empty() {
                bytes -= group.raw.len();
                break;
            }
            groups.push(group.raw.clone());
        }
        state.quota.given(bytes as u64);
        let next = cursor + groups.len() as i64;
        Ok(Pulled { groups, next })
    }

    /// The group number `index` and its cursor, shown or not yet.
    pub fn group(&self, index: usize) -> Option<(i64, Group)> {
        let state = lock(&self.state);
        state.groups.get(index).map(|group| (self.first + index as i64, group.clone()))
    }

    fn index(&self, shown: &[Group], cursor: i64) -> Result<usize, Refusal> {
        cursor
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok())
            .filter(|index| *index <= shown.len())
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

    /// The groups that can be seen: all before the first that cannot.
    fn shown(&self, moment: Moment) -> &[Group] {
        let shown = self.groups.partition_point(|group| group.shown_at <= moment.steady);
        &self.groups[..shown]
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

    /// What a test does to a shard, at `unix_s` and some milliseconds of steady time.
    struct Bench {
        shard: Shard,
        start: Instant,
        switches: Switches,
    }

    impl Bench {
        fn new(switches: Switches) -> Self {
            let moment = Moment::at(1_700_000_000);
            Self { shard: Shard::divide(1, moment).remove(0), start: moment.steady, switches }
        }

        fn scene(&self, unix_s: i64, steady_ms: u64) -> Scene<'_> {
            let steady = self.start + Duration::from_millis(steady_ms);
            Scene { moment: Moment { unix_ms: unix_s * 1000, steady }, switches: &self.switches }
        }

        fn write(&self, write: Write, unix_s: i64, steady_ms: u64) -> Result<(), Refusal> {
            let project = ProjectQuota::default();
            self.shard.append(write, &project, self.scene(unix_s, steady_ms))
        }

        fn shown(&self, steady_ms: u64) -> i64 {
            let moment = self.scene(0, steady_ms).moment;
            self.shard.cursor(From::End, moment) - self.shard.cursor(From::Begin, moment)
        }
    }

    fn group(raw: impl Into<Bytes>) -> Write {
        Write { groups: vec![raw.into()], ..Write::default() }
    }

    fn numbered(number: u64) -> Write {
        Write { sequence: Some((7, number)), ..group("x") }
    }

    fn code<T>(result: Result<T, Refusal>) -> String {
        result.err().map(|refusal| refusal.code).unwrap_or_default()
    }

    #[test]
    fn every_key_has_one_shard() {
        let moment = Moment::at(0);
        for count in 1..=100 {
            let shards = Shard::divide(count, moment);
            for shard in &shards {
                let owners = |key| shards.iter().filter(|other| other.owns(key)).count();
                assert_eq!(owners(shard.begin), 1, "{count}");
                assert_eq!(owners(shard.last), 1, "{count}");
            }
            assert!(shards[0].owns(0) && shards[count as usize - 1].owns(u128::MAX));
        }
        let keys: Vec<_> = Shard::divide(4, moment).iter().map(|s| s.describe()).collect();
        assert_eq!(keys[1]["inclusiveBeginKey"], "40000000000000000000000000000000");
        assert_eq!(keys[1]["exclusiveEndKey"], "80000000000000000000000000000000");
        assert_eq!(keys[3]["exclusiveEndKey"], "ffffffffffffffffffffffffffffffff");
    }

    #[test]
    fn groups_come_back_in_order_between_cursors() {
        let bench = Bench::new(Switches::default());
        for (raw, received_s) in [("a", 10), ("b", 20), ("c", 15)] {
            bench.write(group(raw), received_s, 0).unwrap();
        }
        let (shard, scene) = (&bench.shard, bench.scene(99, 0));
        let cursor = |from| shard.cursor(from, scene.moment);
        let begin = cursor(From::Begin);
        assert_eq!(begin, 1_700_000_000_000_000_000);
        assert_eq!(cursor(From::End), begin + 3);
        assert_eq!(cursor(From::Received(11)), begin + 1);
        assert_eq!(cursor(From::Received(20)), begin + 1);
        assert_eq!(cursor(From::Received(21)), begin + 3);
        let time = |cursor| shard.cursor_time(cursor, scene.moment);
        assert_eq!(time(begin + 2), Ok(20), "times never step back");
        assert_eq!(time(begin + 3), Ok(99));
        let pull = |cursor, end, count| {
            let pulled = shard.pull(cursor, end, count, scene).unwrap();
            (pulled.groups.concat(), pulled.next - begin)
        };
        assert_eq!(pull(begin, None, 1000), (b"abc".to_vec(), 3));
        assert_eq!(pull(begin + 1, None, 1), (b"b".to_vec(), 2));
        assert_eq!(pull(begin, Some(begin + 2), 1000), (b"ab".to_vec(), 2));
        assert_eq!(pull(begin + 2, Some(begin + 1), 1000), (vec![], 2));
        assert_eq!(pull(begin + 3, None, 1000), (vec![], 3));
        assert_eq!(pull(begin, None, 0), (vec![], 0));
        for cursor in [begin - 1, begin + 4, i64::MIN, i64::MAX] {
            assert_eq!(code(shard.pull(cursor, None, 1, scene)), "InvalidCursor");
        }
    }

    #[test]
    fn an_answer_has_a_byte_budget_but_always_a_group() {
        let bench = Bench::new(Switches { pull_bytes_max: 100, ..Switches::default() });
        for size in [101, 50, 50, 1] {
            bench.write(group(vec![0; size]), 0, 0).unwrap();
        }
        let scene = bench.scene(0, 0);
        let begin = bench.shard.cursor(From::Begin, scene.moment);
        let groups = |index| bench.shard.pull(begin + index, None, 1000, scene).unwrap().groups;
        assert_eq!([0, 1, 2, 3].map(|index| groups(index).len()), [1, 2, 2, 1]);
    }

    #[test]
    fn a_used_number_stores_nothing_unless_numbers_are_ignored() {
        for (seqid, wanted) in [(Seqid::Honoured, "InvalidSequenceId"), (Seqid::Ignored, "")] {
            let bench = Bench::new(Switches { seqid, ..Switches::default() });
            bench.write(numbered(1), 0, 0).unwrap();
            assert_eq!(code(bench.write(numbered(1), 0, 0)), wanted);
            assert_eq!(bench.shown(0), if wanted.is_empty() { 2 } else { 1 });
        }
    }

    #[test]
    fn what_a_quota_refuses_uses_its_number_up_only_if_that_is_recorded_before() {
        for (number_recorded, wanted) in [
            (NumberRecorded::AfterQuota, ["", "ShardWriteQuotaExceed", ""]),
            (NumberRecorded::BeforeQuota, ["", "ShardWriteQuotaExceed", "InvalidSequenceId"]),
        ] {
            let bench = Bench::new(Switches {
                number_recorded,
                shard_writes_per_s: Some(1),
                ..Switches::default()
            });
            let got = [(1, 0), (2, 0), (2, 1000)]
                .map(|(number, steady_ms)| code(bench.write(numbered(number), 0, steady_ms)));
            assert_eq!(got, wanted);
        }
    }

    #[test]
    fn a_lagging_group_is_stored_but_not_shown_and_nothing_overtakes_it() {
        let mut bench = Bench::new(Switches { receive_lag_ms: 500, ..Switches::default() });
        bench.write(numbered(1), 0, 0).unwrap();
        bench.switches.receive_lag_ms = 0;
        assert_eq!(code(bench.write(numbered(1), 0, 100)), "InvalidSequenceId");
        bench.write(group("later"), 0, 100).unwrap();
        assert_eq!([0, 499, 500].map(|steady_ms| bench.shown(steady_ms)), [0, 0, 2]);
        assert!(bench.shard.group(1).is_some(), "stored all along");
    }

    #[test]
    fn the_parts_of_a_group_are_shown_one_after_the_other() {
        let bench = Bench::new(Switches { split_groups_ms: Some(300), ..Switches::default() });
        let write = Write { groups: vec!["a".into(), "b".into()], ..Write::default() };
        bench.write(write, 0, 0).unwrap();
        bench.write(group("c"), 0, 10).unwrap();
        assert_eq!([0, 299, 300].map(|steady_ms| bench.shown(steady_ms)), [1, 1, 3]);
    }

    #[test]
    fn children_know_the_numbers_of_their_parents_unless_they_forget() {
        for forgets in [false, true] {
            let switches = Switches { child_forgets_numbers: forgets, ..Switches::default() };
            let mut bench = Bench::new(switches);
            bench.write(numbered(3), 0, 0).unwrap();
            let [left, right] = bench.shard.split(1, None, bench.scene(0, 0)).unwrap();
            assert_eq!(left.describe()["exclusiveEndKey"], format!("8{:031}", 0));
            assert_eq!(bench.shard.describe()["status"], "readonly");
            assert_eq!(code(bench.shard.split(3, None, bench.scene(0, 0))), "ParameterInvalid");
            assert_eq!(bench.shown(0), 1, "parents can be read");
            let merged = left.merge(&right, 3, bench.scene(0, 0)).unwrap();
            bench.shard = merged;
            let wanted = if forgets { "" } else { "InvalidSequenceId" };
            assert_eq!(code(bench.write(numbered(3), 0, 0)), wanted);
        }
    }

    #[test]
    fn a_shard_is_split_only_within() {
        let bench = Bench::new(Switches::default());
        let scene = bench.scene(0, 0);
        let [left, right] = bench.shard.split(1, Some(5), scene).unwrap();
        assert!(left.owns(4) && right.owns(5) && left.is_before(&right));
        assert_eq!(code(right.split(3, Some(5), scene)), "ParameterInvalid", "its first key");
        assert_eq!(code(right.split(3, Some(4), scene)), "ParameterInvalid");
        assert!(right.split(3, Some(6), scene).is_ok());
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
