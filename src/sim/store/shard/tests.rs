//! A shard at chosen moments, under chosen switches.

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
        let view = self.view(0, steady_ms);
        self.shard.cursor(From::End, view) - self.shard.cursor(From::Begin, view)
    }

    fn view(&self, unix_s: i64, steady_ms: u64) -> View {
        View { moment: self.scene(unix_s, steady_ms).moment, oldest_s: i64::MIN }
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
    let (shard, view) = (&bench.shard, bench.view(99, 0));
    let cursor = |from| shard.cursor(from, view);
    let begin = cursor(From::Begin);
    assert_eq!(begin, 1_700_000_000_000_000_000);
    assert_eq!(cursor(From::End), begin + 3);
    assert_eq!(cursor(From::Received(11)), begin + 1);
    assert_eq!(cursor(From::Received(20)), begin + 1);
    assert_eq!(cursor(From::Received(21)), begin + 3);
    let time = |cursor| shard.cursor_time(cursor, view);
    assert_eq!(time(begin + 2), Ok(20), "times never step back");
    assert_eq!(time(begin + 3), Ok(99));
    let pull = |cursor, end, count| {
        let pulled = shard.pull(cursor, end, count, view, &bench.switches).unwrap();
        (pulled.groups.concat(), pulled.next - begin)
    };
    assert_eq!(pull(begin, None, 1000), (b"abc".to_vec(), 3));
    assert_eq!(pull(begin + 1, None, 1), (b"b".to_vec(), 2));
    assert_eq!(pull(begin, Some(begin + 2), 1000), (b"ab".to_vec(), 2));
    assert_eq!(pull(begin + 2, Some(begin + 1), 1000), (vec![], 2));
    assert_eq!(pull(begin + 3, None, 1000), (vec![], 3));
    assert_eq!(pull(begin, None, 0), (vec![], 0));
    for cursor in [begin - 1, begin + 4, i64::MIN, i64::MAX] {
        let pulled = shard.pull(cursor, None, 1, view, &bench.switches);
        assert_eq!(code(pulled), "InvalidCursor");
    }
    // Over its TTL, a group is not there any more.
    let view = View { oldest_s: 20, ..view };
    assert_eq!(shard.cursor(From::Begin, view), begin + 1);
    assert_eq!(shard.cursor(From::Received(0), view), begin + 1);
    let pulled = shard.pull(begin, None, 1, view, &bench.switches);
    assert_eq!(code(pulled), "InvalidCursor");
}

#[test]
fn an_answer_has_a_byte_budget_but_always_a_group() {
    let bench = Bench::new(Switches { pull_bytes_max: 100, ..Switches::default() });
    for size in [101, 50, 50, 1] {
        bench.write(group(vec![0; size]), 0, 0).unwrap();
    }
    let view = bench.view(0, 0);
    let begin = bench.shard.cursor(From::Begin, view);
    let pull = |cursor| bench.shard.pull(cursor, None, 1000, view, &bench.switches);
    let groups = |index| pull(begin + index).unwrap().groups;
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

/// Twenty groups of two logs in a second, each half 100 ms behind the one before.
fn shown_of_twenty(lag_max_ms: Option<u64>, at_ms: &[u64]) -> Vec<i64> {
    let bench = Bench::new(Switches {
        split_groups_ms: Some(100),
        split_groups_lag_max_ms: lag_max_ms,
        ..Switches::default()
    });
    for number in 0..20 {
        let write = Write { groups: vec!["a".into(), "b".into()], ..Write::default() };
        bench.write(write, 0, number * 50).unwrap();
    }
    at_ms.iter().map(|at_ms| bench.shown(*at_ms)).collect()
}

#[test]
fn the_lag_of_split_groups_grows_unless_it_has_a_bound() {
    // The last are sent at 950 ms. Without a bound the first half of one stands beside the second
    // half of the one before, each 100 ms further.
    assert_eq!(shown_of_twenty(None, &[0, 950, 1999, 2000]), [1, 19, 39, 40]);
    // Nothing is later than 300 ms behind its sending, so the last are shown at 1,250 ms.
    let shown = shown_of_twenty(Some(300), &[0, 100, 950, 1249, 1250]);
    assert_eq!((shown[0], shown[1], shown[4]), (1, 3, 40));
    assert!(shown[2] >= 26 && shown[3] < 40, "{shown:?}");
    assert_eq!(shown_of_twenty(Some(0), &[0, 949, 950]), [2, 38, 40]);
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
