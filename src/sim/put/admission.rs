//! What SLS takes of a LogGroup: refused, cut, split or as it is.

use bytes::Bytes;
use prost::Message as _;

use crate::sim::answer::{Code, Refusal, TIME_OUT_OF_RANGE};
use crate::sim::store::shard::Scene;
use crate::sim::switch::{BigValues, LogTime, Switches};
use crate::wire::log_group::LogGroupView;
use crate::wire::proto;

/// How old a log may be for `log_time` to let it pass, and how new (aliyun, PutLogs of 2021: -168
/// hours to +15 minutes).
const LOG_AGE_S_MAX: i64 = 7 * 86_400;
const LOG_AHEAD_S_MAX: i64 = 900;

/// The largest `Time_ns` (aliyun, data encoding).
const TIME_NS_MAX: u32 = 999_999_999;

/// The largest value that `big_values` lets pass (aliyun, PutLogs: not over 1 MB advised).
const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// Gives the groups to store of a LogGroup, and how many logs they have.
///
/// Fails with SLS's code for what it does not take.
pub fn admit(raw: Bytes, scene: Scene<'_>) -> Result<(Vec<Bytes>, usize), Refusal> {
    let switches = scene.switches;
    let now_s = scene.moment.unix_s();
    let group = check_group(&raw, switches)?;
    let in_range = |time_s: i64| (-LOG_AGE_S_MAX..=LOG_AHEAD_S_MAX).contains(&(time_s - now_s));
    let all_in_range = || group.logs.iter().all(|log| in_range(log.time.into()));
    let drops = match switches.log_time {
        LogTime::Refuse if !all_in_range() => {
            return Err(Refusal::new(Code::PostBodyInvalid, TIME_OUT_OF_RANGE));
        }
        LogTime::Drop => !all_in_range(),
        _ => false,
    };
    let is_big = |value: &str| value.len() > VALUE_BYTES_MAX;
    let has_big = || {
        let mut contents = group.logs.iter().flat_map(|log| &log.contents);
        contents.any(|content| is_big(&content.value))
    };
    let truncates = match switches.big_values {
        BigValues::Refuse if has_big() => {
            return Err(Refusal::new(Code::PostBodyInvalid, "a value is over 1 MB"));
        }
        BigValues::Truncate => has_big(),
        _ => false,
    };
    let splits = switches.split_groups_ms.is_some() && group.logs.len() > 1;
    if !drops && !truncates && !splits {
        return Ok((vec![raw], group.logs.len()));
    }
    let mut group = group;
    if drops {
        group.logs.retain(|log| in_range(log.time.into()));
    }
    for content in group.logs.iter_mut().flat_map(|log| &mut log.contents) {
        if truncates && is_big(&content.value) {
            content.value.truncate(content.value.floor_char_boundary(VALUE_BYTES_MAX));
        }
    }
    let logs = group.logs.len();
    if logs == 0 {
        return Ok((Vec::new(), 0));
    }
    if !splits || logs == 1 {
        return Ok((vec![group.encode_to_vec().into()], logs));
    }
    let second = proto::LogGroup { logs: group.logs.split_off(logs / 2), ..group.clone() };
    Ok((vec![group.encode_to_vec().into(), second.encode_to_vec().into()], logs))
}

/// Refuses what is no LogGroup, and logs that SLS would not take at any time.
///
/// The view sees missing required fields, which prost takes for defaults. prost sees the fields
/// that the view passes over, and is not the code that wrote the group.
fn check_group(raw: &[u8], switches: &Switches) -> Result<proto::LogGroup, Refusal> {
    let invalid = |what: String| Refusal::new(Code::PostBodyInvalid, what);
    let group = LogGroupView::parse(raw).map_err(|error| invalid(error.to_string()))?;
    if group.logs.iter().any(|log| log.time.is_none()) {
        return Err(invalid("a log has no Time".to_owned()));
    }
    if group.logs.iter().any(|log| log.time_ns.is_some_and(|ns| ns > TIME_NS_MAX)) {
        return Err(Refusal::new(Code::InvalidTimestamp, "Invalid timestamps are in logs."));
    }
    if group.logs.len() > switches.logs_max {
        let message = format!("{} logs are more than {}", group.logs.len(), switches.logs_max);
        return Err(Refusal::new(Code::PostBodyTooLarge, message));
    }
    let pairs = || group.tags.iter().chain(group.logs.iter().flat_map(|log| &log.contents));
    let mut texts = [group.topic, group.source]
        .into_iter()
        .flatten()
        .chain(pairs().flat_map(|(k, v)| [*k, *v]));
    if texts.any(|text| std::str::from_utf8(text).is_err()) {
        let message = "Non-UTF8 characters are in logs.";
        return Err(Refusal::new(Code::InvalidEncoding, message));
    }
    let mut keys = Vec::new();
    for log in &group.logs {
        keys.clear();
        keys.extend(log.contents.iter().map(|(key, _)| *key));
        keys.sort_unstable();
        if keys.first().is_some_and(|key| key.is_empty()) {
            return Err(Refusal::new(Code::InvalidKey, "a key is empty"));
        }
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            let message = format!("key {} stands twice in a log", String::from_utf8_lossy(pair[0]));
            return Err(Refusal::new(Code::InvalidKey, message));
        }
    }
    proto::LogGroup::decode(raw).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::clock::Moment;
    use crate::sim::switch::LOGS_MAX;
    use crate::wire::log_group::LogGroupWriter;
    use proptest::prelude::*;

    fn group(contents: &[(&str, &[u8])], logs: usize) -> Vec<u8> {
        let mut writer = LogGroupWriter::default();
        for _ in 0..logs {
            writer.begin_log(1, 0);
            for (key, value) in contents {
                writer.field(key, value);
            }
            writer.end_log();
        }
        writer.bytes().to_vec()
    }

    fn count(raw: &[u8]) -> Result<usize, String> {
        let group = check_group(raw, &Switches::default());
        group.map(|group| group.logs.len()).map_err(|refusal| refusal.code)
    }

    fn code(raw: &[u8]) -> String {
        count(raw).err().unwrap_or_default()
    }

    const NOW_S: i64 = 1_800_000_000;

    /// What is stored of a group with logs of these times and one value each.
    fn admitted(
        logs: &[(i64, &str)],
        switches: &Switches,
    ) -> Result<Vec<proto::LogGroup>, Refusal> {
        let mut writer = LogGroupWriter::default();
        for (time_s, value) in logs {
            writer.begin_log(u32::try_from(*time_s).unwrap(), 0);
            writer.field("a", value.as_bytes());
            writer.end_log();
        }
        writer.finish(Some("topic"), Some("source"), &[("tag", "1")]);
        let raw = Bytes::copy_from_slice(writer.bytes());
        let (groups, _) = admit(raw, Scene { moment: Moment::at(NOW_S), switches })?;
        Ok(groups.iter().map(|raw| proto::LogGroup::decode(raw.as_ref()).unwrap()).collect())
    }

    fn times(groups: &[proto::LogGroup]) -> Vec<Vec<i64>> {
        let of_group = |logs: &[proto::Log]| logs.iter().map(|log| log.time.into()).collect();
        groups.iter().map(|group| of_group(&group.logs)).collect()
    }

    #[test]
    fn log_times_out_of_range_are_accepted_refused_or_dropped() {
        let (old, new) = (NOW_S - LOG_AGE_S_MAX, NOW_S + LOG_AHEAD_S_MAX);
        let logs = [(old - 1, "x"), (old, "x"), (new, "x"), (new + 1, "x")];
        let with = |log_time| Switches { log_time, ..Switches::default() };
        let accepted = admitted(&logs, &with(LogTime::Accept)).unwrap();
        assert_eq!(times(&accepted), [[old - 1, old, new, new + 1]]);
        let refusal = admitted(&logs, &with(LogTime::Refuse)).unwrap_err();
        assert_eq!(refusal.message, TIME_OUT_OF_RANGE);
        assert!(admitted(&logs[1..3], &with(LogTime::Refuse)).is_ok());
        let dropped = admitted(&logs, &with(LogTime::Drop)).unwrap();
        assert_eq!(times(&dropped), [[old, new]]);
        assert_eq!(dropped[0].log_tags.len(), 1);
        assert!(admitted(&logs[..1], &with(LogTime::Drop)).unwrap().is_empty());
    }

    #[test]
    fn values_over_1_mb_are_stored_truncated_or_refused() {
        let big = format!("{}é", "x".repeat(VALUE_BYTES_MAX - 1));
        let value = |big_values| {
            let switches = Switches { big_values, ..Switches::default() };
            let groups = admitted(&[(NOW_S, &big)], &switches);
            groups.map(|groups| groups[0].logs[0].contents[0].value.len())
        };
        assert_eq!(value(BigValues::Store), Ok(VALUE_BYTES_MAX + 1));
        assert_eq!(value(BigValues::Truncate), Ok(VALUE_BYTES_MAX - 1), "whole characters");
        assert_eq!(value(BigValues::Refuse).unwrap_err().code, "PostBodyInvalid");
        let switches = Switches { big_values: BigValues::Refuse, ..Switches::default() };
        assert!(admitted(&[(NOW_S, &big[..VALUE_BYTES_MAX - 1])], &switches).is_ok());
    }

    #[test]
    fn a_group_is_split_into_halves_with_the_same_tags() {
        let switches = Switches { split_groups_ms: Some(0), ..Switches::default() };
        let groups = admitted(&[(1, "a"), (2, "b"), (3, "c")], &switches).unwrap();
        assert_eq!(times(&groups), [vec![1], vec![2, 3]]);
        assert_eq!(groups[0].log_tags, groups[1].log_tags);
        assert_eq!(groups[1].source.as_deref(), Some("source"));
        assert_eq!(admitted(&[(1, "a")], &switches).unwrap().len(), 1);
    }

    #[test]
    fn each_fault_of_a_group_has_its_code() {
        assert_eq!(count(&group(&[("a", b"1"), ("b", b"")], 2)), Ok(2));
        assert_eq!(count(b""), Ok(0));
        assert_eq!(code(b"not protobuf"), "PostBodyInvalid");
        assert_eq!(code(&[0x0a, 0]), "PostBodyInvalid", "a log without time");
        // A log with a time and a content that has a key only.
        assert_eq!(code(&[0x0a, 7, 8, 1, 0x12, 3, 0x0a, 1, b'k']), "PostBodyInvalid");
        // Category as a number: only prost looks at it.
        assert_eq!(code(&[0x10, 1]), "PostBodyInvalid");
        // A log with a time and 10^9 ns.
        assert_eq!(code(&[0x0a, 7, 8, 1, 0x25, 0, 0xca, 0x9a, 0x3b]), "InvalidTimestamp");
        assert_eq!(code(&group(&[("a", b"\xff")], 1)), "InvalidEncoding");
        assert_eq!(code(&[0x1a, 1, 0xff]), "InvalidEncoding", "topic");
        assert_eq!(code(&group(&[("", b"1")], 1)), "InvalidKey");
        assert_eq!(code(&group(&[("a", b"1"), ("b", b"2"), ("a", b"1")], 1)), "InvalidKey");
        assert_eq!(count(&group(&[], LOGS_MAX)), Ok(LOGS_MAX));
        assert_eq!(code(&group(&[], LOGS_MAX + 1)), "PostBodyTooLarge");
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check_group(&body, &Switches::default());
        }
    }
}
