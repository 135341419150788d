//! Switches: what SLS may do in one way or another, and a client must survive either way.
//!
//! Where documents are silent or contradict each other, the behaviour is a switch. They are set at
//! the start and changed while the simulator runs; a request sees one state of all of them, that
//! of the moment when it is processed.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::sim::sql_time;

/// The default of `raw_bytes_max`: 10 MB (aliyun, PutLogs).
pub const RAW_BYTES_MAX: usize = 10 * 1024 * 1024;

/// The default of `logs_max`: the Java and Go producers' limit; no page of the service has one that
/// is not contradicted by another.
pub const LOGS_MAX: usize = 40_960;

/// The default of `signature_life_s`: 15 minutes (aliyun, error codes page, `RequestTimeExpired`).
pub const SIGNATURE_LIFE_S: u64 = 900;

/// The default of `numbers_kept_max` (aliyun, Logtail configuration, appendix on ExactlyOnce: 10,000
/// records a shard).
pub const NUMBERS_KEPT_MAX: usize = 10_000;

/// The default of `pull_bytes_max`; SLS's own budget is not documented.
pub const PULL_BYTES_MAX: usize = 10 * 1024 * 1024;

/// The longest time that a switch can set, in ms: an hour.
const WAIT_MS_MAX: u64 = 3_600_000;

/// The furthest that the clock and the times of creation can be set apart, in s: ten years.
const CLOCK_OFFSET_S_MAX: u64 = 315_360_000;

/// All switches; the defaults are how SLS is believed to behave, without quotas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switches {
    /// Whether a number (`seqid`) not above the last one of its hash key is refused.
    pub seqid: Seqid,
    /// When the number of a write that a quota refuses is recorded.
    pub number_recorded: NumberRecorded,
    /// Numbers that a shard remembers; the key unused for longest is forgotten. At least 1.
    pub numbers_kept_max: usize,
    /// Shards made by a split or merge do not know the numbers of their parents.
    pub child_forgets_numbers: bool,
    /// Seconds that the simulator's clock is ahead of this machine's (negative: behind). Dates in
    /// answers, receive times and the age of signatures follow it.
    pub clock_offset_s: i64,
    /// Seconds that `createTime` and `lastModifyTime` of a project or logstore made or changed from
    /// now on are ahead of the simulator's clock: so what is made again within a second differs.
    pub create_time_offset_s: i64,
    /// A request whose signature's date is further from the simulator's clock is refused with
    /// `RequestTimeExpired` when it is processed, that is after any delay.
    pub signature_life_s: u64,
    /// The same for a request that a fault stores after it was answered; off: its signature is
    /// checked by the time of its arrival.
    pub late_store_checks_age: bool,
    /// A group is stored and acknowledged at once, but cursors and PullLogs show it so much later.
    pub receive_lag_ms: u64,
    /// Every group of two or more logs is stored as two halves with the same tags, the second shown
    /// so much later than the first, and no group before those written before it: if more than
    /// 1000 / `split_groups_ms` groups a second come, the lag grows. `null`: groups stay whole.
    pub split_groups_ms: Option<u64>,
    /// No group is shown more than so much later than unsplit ones would be: where they come faster,
    /// halves are shown together. `null`: the lag has no bound.
    pub split_groups_lag_max_ms: Option<u64>,
    /// Logs whose time is not within 7 days before and 15 minutes after now.
    pub log_time: LogTime,
    /// Values of over 1 MB.
    pub big_values: BigValues,
    /// Names of compressions that are refused with `InvalidCompressType`: `lz4`, `zstd`, `deflate`.
    pub compression_refused: Vec<String>,
    /// The most logs in one PutLogs request.
    pub logs_max: usize,
    /// The largest PutLogs body before compression, in bytes.
    pub raw_bytes_max: usize,
    /// The most bytes of groups in one PullLogs answer, unless its first group alone has more.
    pub pull_bytes_max: usize,
    /// A logstore answers `LogStoreNotExist` to writes for so long after it was made.
    pub new_logstore_wait_ms: u64,
    /// Uncompressed bytes a shard takes in a second; SLS: 5 MB. `null`, in all quotas: no limit.
    pub shard_bytes_per_s: Option<u64>,
    /// Writes a shard takes in a second; SLS: 500.
    pub shard_writes_per_s: Option<u64>,
    /// PullLogs requests that a shard serves in a second; SLS: 100.
    pub shard_reads_per_s: Option<u64>,
    /// Uncompressed bytes that a shard gives in a second; SLS: 20 MB.
    pub shard_read_bytes_per_s: Option<u64>,
    /// Uncompressed bytes a project takes in a minute; SLS: 100 GB.
    pub project_bytes_per_min: Option<u64>,
    /// Writes a project takes in a minute; SLS: 600,000.
    pub project_writes_per_min: Option<u64>,
    /// PullLogs requests that a project serves in a minute; SLS: 600,000.
    pub project_reads_per_min: Option<u64>,
    /// Error codes and statuses as older documents spell them.
    pub older_spelling: bool,
    /// Whether SQL may say `LIMIT n OFFSET m`.
    pub limit_offset: LimitOffset,
    /// Whether SQL may stand alone, without `query |` before it.
    pub plain_sql: PlainSql,
    /// The time zone of times without one in SQL, by its name in the tz database. SLS's documents
    /// show `Asia/Shanghai`; Dify's readers mean UTC.
    pub sql_time_zone: String,
    /// What SQL takes an empty text for.
    pub empty_text: EmptyText,
    /// Every n-th query sees half of the logs and says `Incomplete`. `null`: none; 1: every one.
    pub incomplete_every: Option<u64>,
    /// Every query, told by its words and its times, sees half of the logs and says `Incomplete` so
    /// many times before it is answered in full. A query that is sent again finds more ready.
    pub incomplete_times: u64,
    /// SQL that finds more logs sees so many, the oldest, and says `Incomplete` however often it is
    /// repeated, as where SLS has more to scan than it scans. `null`: no limit.
    pub sql_logs_max: Option<usize>,
    /// Logs over 3 minutes old when they were received are found by queries so much later.
    pub index_delay_ms: u64,
    /// All other logs are found by queries so much later.
    pub index_delay_recent_ms: u64,
    /// Whether logs can be deleted, which hides them from queries.
    pub soft_delete: SoftDelete,
}

/// What becomes of SQL with `LIMIT n OFFSET m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitOffset {
    Refuse,
    Accept,
}

/// What becomes of SQL alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlainSql {
    /// It is served as if `* |` stood before it.
    Accept,
    Refuse,
}

/// What SQL takes an empty text for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmptyText {
    Empty,
    Null,
}

/// Whether the region has soft delete yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SoftDelete {
    On,
    Off,
}

/// What becomes of a write whose number is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seqid {
    /// It is refused with `InvalidSequenceId`.
    Honoured,
    /// It is stored, as if it had no number.
    Ignored,
}

/// When a number counts as used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NumberRecorded {
    /// Also when a quota then refuses the write: its repetition meets `InvalidSequenceId`.
    BeforeQuota,
    /// Only when the write is stored.
    AfterQuota,
}

/// What becomes of logs outside of the window of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogTime {
    Accept,
    /// The whole request is refused.
    Refuse,
    /// 200 is answered, these logs are not stored.
    Drop,
}

/// What becomes of values over 1 MB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BigValues {
    Store,
    /// The value is cut behind its last whole character within 1 MB.
    Truncate,
    /// The whole request is refused.
    Refuse,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            seqid: Seqid::Honoured,
            number_recorded: NumberRecorded::AfterQuota,
            numbers_kept_max: NUMBERS_KEPT_MAX,
            child_forgets_numbers: false,
            clock_offset_s: 0,
            create_time_offset_s: 0,
            signature_life_s: SIGNATURE_LIFE_S,
            late_store_checks_age: false,
            receive_lag_ms: 0,
            split_groups_ms: None,
            split_groups_lag_max_ms: None,
            log_time: LogTime::Accept,
            big_values: BigValues::Store,
            compression_refused: Vec::new(),
            logs_max: LOGS_MAX,
            raw_bytes_max: RAW_BYTES_MAX,
            pull_bytes_max: PULL_BYTES_MAX,
            new_logstore_wait_ms: 0,
            shard_bytes_per_s: None,
            shard_writes_per_s: None,
            shard_reads_per_s: None,
            shard_read_bytes_per_s: None,
            project_bytes_per_min: None,
            project_writes_per_min: None,
            project_reads_per_min: None,
            older_spelling: false,
            limit_offset: LimitOffset::Refuse,
            plain_sql: PlainSql::Accept,
            sql_time_zone: "UTC".to_owned(),
            empty_text: EmptyText::Empty,
            incomplete_every: None,
            incomplete_times: 0,
            sql_logs_max: None,
            index_delay_ms: 0,
            index_delay_recent_ms: 0,
            soft_delete: SoftDelete::On,
        }
    }
}

impl Switches {
    /// These switches with the members of `change` set; `null` sets a switch back to its default.
    ///
    /// Fails, in words for whoever typed it, if a name or a value is none.
    pub fn changed(&self, change: Map<String, Value>) -> Result<Self, String> {
        let Ok(Value::Object(mut all)) = serde_json::to_value(self) else {
            unreachable!("switches are an object of plain values");
        };
        for (name, value) in change {
            if value.is_null() && all.contains_key(&name) {
                all.remove(&name);
            } else {
                all.insert(name, value);
            }
        }
        let changed: Self =
            serde_json::from_value(Value::Object(all)).map_err(|error| error.to_string())?;
        changed.check()?;
        Ok(changed)
    }

    /// The same without what only refuses or delays: for serving again what was served.
    #[must_use]
    pub fn without_quotas_and_waits(&self) -> Self {
        Self {
            receive_lag_ms: 0,
            split_groups_ms: self.split_groups_ms.map(|_| 0),
            new_logstore_wait_ms: 0,
            index_delay_ms: 0,
            index_delay_recent_ms: 0,
            shard_bytes_per_s: None,
            shard_writes_per_s: None,
            project_bytes_per_min: None,
            project_writes_per_min: None,
            ..self.clone()
        }
    }

    /// Reads `name=value`; a value that is not JSON is a text, so names need no quotes.
    ///
    /// Fails as [`Self::changed`] does.
    pub fn with(&self, setting: &str) -> Result<Self, String> {
        let (name, value) =
            setting.split_once('=').ok_or_else(|| format!("{setting} is not name=value"))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        self.changed(Map::from_iter([(name.to_owned(), value)]))
    }

    fn check(&self) -> Result<(), String> {
        let waits = [
            ("receive_lag_ms", Some(self.receive_lag_ms)),
            ("split_groups_ms", self.split_groups_ms),
            ("split_groups_lag_max_ms", self.split_groups_lag_max_ms),
            ("new_logstore_wait_ms", Some(self.new_logstore_wait_ms)),
            ("index_delay_ms", Some(self.index_delay_ms)),
            ("index_delay_recent_ms", Some(self.index_delay_recent_ms)),
        ];
        for (name, wait_ms) in waits {
            if wait_ms.is_some_and(|wait_ms| wait_ms > WAIT_MS_MAX) {
                return Err(format!("{name} must be at most {WAIT_MS_MAX}"));
            }
        }
        let offsets = [
            ("clock_offset_s", self.clock_offset_s),
            ("create_time_offset_s", self.create_time_offset_s),
        ];
        for (name, offset_s) in offsets {
            if offset_s.unsigned_abs() > CLOCK_OFFSET_S_MAX {
                return Err(format!("{name} must be within ±{CLOCK_OFFSET_S_MAX}"));
            }
        }
        if self.numbers_kept_max == 0 {
            return Err("numbers_kept_max must be at least 1".to_owned());
        }
        if self.incomplete_every == Some(0) {
            return Err("incomplete_every must be at least 1, or null".to_owned());
        }
        if let Err(message) = sql_time::zone(&self.sql_time_zone) {
            return Err(format!("sql_time_zone: {message}"));
        }
        let known = ["lz4", "zstd", "deflate"];
        match self.compression_refused.iter().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(format!("compression_refused: {name} is none of {known:?}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(json: Value) -> Map<String, Value> {
        let Value::Object(map) = json else { panic!("not an object") };
        map
    }

    #[test]
    fn a_change_touches_what_it_names_and_null_is_the_default() {
        let first = Switches::default()
            .changed(map(json!({"seqid": "ignored", "split_groups_ms": 5, "logs_max": 7})))
            .unwrap();
        assert_eq!((first.seqid, first.split_groups_ms), (Seqid::Ignored, Some(5)));
        let nulls = map(json!({"split_groups_ms": null, "logs_max": null}));
        let second = first.changed(nulls).unwrap();
        assert_eq!(second, Switches { seqid: Seqid::Ignored, ..Switches::default() });
    }

    #[test]
    fn a_setting_is_typed_without_quotes() {
        let switches = Switches::default();
        assert_eq!(switches.with("log_time=drop").unwrap().log_time, LogTime::Drop);
        assert_eq!(switches.with("receive_lag_ms=250").unwrap().receive_lag_ms, 250);
        assert_eq!(switches.with("clock_offset_s=-90").unwrap().clock_offset_s, -90);
        assert!(switches.with("child_forgets_numbers=true").unwrap().child_forgets_numbers);
        let refused = switches.with(r#"compression_refused=["zstd"]"#).unwrap();
        assert_eq!(refused.compression_refused, ["zstd"]);
    }

    #[test]
    fn what_is_no_switch_is_refused() {
        for setting in [
            "seqid",
            "seqid=maybe",
            "sequid=ignored",
            "nothing=null",
            "receive_lag_ms=-1",
            "receive_lag_ms=3600001",
            "numbers_kept_max=0",
            "incomplete_every=0",
            "index_delay_ms=3600001",
            "limit_offset=maybe",
            "sql_time_zone=Nowhere",
            "clock_offset_s=9999999999",
            "create_time_offset_s=9999999999",
            r#"compression_refused=["snappy"]"#,
        ] {
            assert!(Switches::default().with(setting).is_err(), "{setting}");
        }
    }
}
