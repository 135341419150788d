//! A logstore: its settings, its index and its shards.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::sim::answer::{Code, Refusal};
use crate::sim::clock::Moment;
use crate::sim::store::deleted::Deleted;
use crate::sim::store::name::is_name;
use crate::sim::store::quota::ProjectQuota;
use crate::sim::store::shard::{Scene, Shard, View, Write};
use crate::sim::sync::{lock, read, write};

/// The most shards that CreateLogstore makes through the API (aliyun, resource limits).
const SHARDS_MAX: u64 = 100;

/// The most shards that splitting makes (the Rust and Python SDKs: maxSplitShard is at most 256).
const SPLIT_SHARDS_MAX: usize = 256;

/// A TTL of so many days, the most that can be asked for, means for ever.
const TTL_DAYS_FOR_EVER: i64 = 3650;

const TTL_DAYS_DEFAULT: i64 = 30;

pub struct Logstore {
    name: String,
    created_s: i64,
    /// When it was made, in steady time.
    made_at: Instant,
    settings: Mutex<Settings>,
    index: Mutex<IndexState>,
    /// By id. Splitting and merging add to it; nothing is ever taken away.
    shards: RwLock<Vec<Arc<Shard>>>,
    /// Of the project that it belongs to.
    project_quota: Arc<ProjectQuota>,
    /// Which shard takes the next group that has no hash key.
    turn: AtomicUsize,
    pub deleted: Mutex<Deleted>,
    expired: Mutex<Expired>,
    /// How often stored groups were tampered with.
    edits: AtomicU64,
}

struct Settings {
    json: Map<String, Value>,
    modified_s: i64,
}

/// What is gone as if the TTL were over for it, in Unix seconds.
#[derive(Debug, Clone, Copy)]
pub struct Expired {
    /// Logs received earlier can neither be pulled nor found.
    pub received_before_s: i64,
    /// Logs whose own time is earlier cannot be found.
    pub log_time_before_s: i64,
}

impl Default for Expired {
    fn default() -> Self {
        Self { received_before_s: i64::MIN, log_time_before_s: i64::MIN }
    }
}

/// An index as it was given.
#[derive(Debug)]
pub struct Index {
    pub json: Value,
    /// Different for every index that was made, the same for its updates.
    pub generation: u32,
    /// When it was made, in steady time.
    pub made_at: Instant,
}

#[derive(Default)]
struct IndexState {
    made: u32,
    index: Option<Arc<Index>>,
}

/// Which shard a group goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The shards take turns.
    Balanced,
    /// This shard, by its id.
    Shard(u32),
    /// The shard that owns the key; with a number the write is idempotent.
    Key { key: u128, sequence: Option<u64> },
}

impl Logstore {
    /// Checks what CreateLogstore was given.
    pub fn new(
        mut json: Map<String, Value>,
        shards_default: u32,
        project_quota: Arc<ProjectQuota>,
        scene: Scene<'_>,
    ) -> Result<Self, Refusal> {
        let invalid = |what: &str| Refusal::new(Code::LogStoreInfoInvalid, what.to_owned());
        let name = json.get("logstoreName").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !is_name(&name, b"-_") {
            return Err(invalid("logstoreName is invalid"));
        }
        check_ttl(&json)?;
        let shards = match json.get("shardCount") {
            None => shards_default,
            Some(count) => count
                .as_u64()
                .filter(|count| (1..=SHARDS_MAX).contains(count))
                .and_then(|count| u32::try_from(count).ok())
                .ok_or_else(|| invalid("shardCount must be 1 to 100"))?,
        };
        json.insert("shardCount".to_owned(), json!(shards));
        let shards = Shard::divide(shards, scene.moment).into_iter().map(Arc::new).collect();
        Ok(Self {
            name,
            created_s: scene.create_time_s(),
            made_at: scene.moment.steady,
            settings: Mutex::new(Settings { json, modified_s: scene.create_time_s() }),
            index: Mutex::default(),
            shards: RwLock::new(shards),
            project_quota,
            turn: AtomicUsize::new(0),
            deleted: Mutex::default(),
            expired: Mutex::default(),
            edits: AtomicU64::new(0),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What GetLogstore answers: the defaults, and over them what was given.
    pub fn describe(&self) -> Value {
        let settings = lock(&self.settings);
        let mut description = json!({
            "logstoreName": self.name,
            "ttl": TTL_DAYS_DEFAULT,
            "shardCount": self.shards().iter().filter(|shard| shard.is_writable()).count(),
            "enable_tracking": false,
            "autoSplit": false,
            "maxSplitShard": 0,
            "appendMeta": false,
            "telemetryType": "",
            "mode": "standard",
        });
        for (key, value) in settings.json.iter().filter(|(key, _)| *key != "shardCount") {
            description[key] = value.clone();
        }
        description["createTime"] = json!(self.created_s);
        description["lastModifyTime"] = json!(settings.modified_s);
        description
    }

    /// Takes over UpdateLogstore's settings; name and shards stay.
    pub fn update(&self, json: Map<String, Value>, now_s: i64) -> Result<(), Refusal> {
        if json.get("logstoreName").is_some_and(|name| name != self.name.as_str()) {
            return Err(Refusal::new(Code::LogStoreInfoInvalid, "logstoreName cannot be changed"));
        }
        check_ttl(&json)?;
        let mut settings = lock(&self.settings);
        if json.get("enableModify").is_some_and(|modify| *modify != is_modifiable(&settings.json)) {
            return Err(Refusal::new(Code::LogStoreInfoInvalid, "enableModify cannot be changed"));
        }
        settings.json.extend(json.into_iter().filter(|(key, _)| key != "shardCount"));
        settings.modified_s = now_s;
        Ok(())
    }

    /// Whether its logs can be deleted one by one; they have row ids then.
    pub fn is_modifiable(&self) -> bool {
        is_modifiable(&lock(&self.settings).json)
    }

    /// Makes the index. Only what is written from now on can be searched.
    pub fn create_index(&self, json: Value, moment: Moment) -> Result<(), Refusal> {
        check_index(&json)?;
        let mut state = lock(&self.index);
        if state.index.is_some() {
            return Err(Refusal::new(
                Code::IndexAlreadyExist,
                "log store index is already created",
            ));
        }
        state.made += 1;
        state.index =
            Some(Arc::new(Index { json, generation: state.made, made_at: moment.steady }));
        Ok(())
    }

    pub fn update_index(&self, json: Value) -> Result<(), Refusal> {
        check_index(&json)?;
        let mut state = lock(&self.index);
        let old = state.index.as_ref().ok_or_else(no_index)?;
        let (generation, made_at) = (old.generation, old.made_at);
        state.index = Some(Arc::new(Index { json, generation, made_at }));
        Ok(())
    }

    pub fn index(&self) -> Result<Arc<Index>, Refusal> {
        lock(&self.index).index.clone().ok_or_else(no_index)
    }

    pub fn delete_index(&self) -> Result<(), Refusal> {
        lock(&self.index).index.take().map(drop).ok_or_else(no_index)
    }

    /// What is there now: what was received within the TTL.
    pub fn view(&self, moment: Moment) -> View {
        let oldest_s = self.ttl_begin_s(moment).max(lock(&self.expired).received_before_s);
        View { moment, oldest_s }
    }

    /// Logs whose own time is before this are not found. (The TTL of queries goes by the logs' times,
    /// that of PullLogs by their receipt.)
    pub fn oldest_log_s(&self, moment: Moment) -> i64 {
        self.ttl_begin_s(moment).max(lock(&self.expired).log_time_before_s)
    }

    fn ttl_begin_s(&self, moment: Moment) -> i64 {
        let ttl_days = lock(&self.settings).json.get("ttl").and_then(Value::as_i64);
        match ttl_days.unwrap_or(TTL_DAYS_DEFAULT) {
            TTL_DAYS_FOR_EVER => i64::MIN,
            days => moment.unix_s() - days * 86_400,
        }
    }

    /// Lets `expired` be gone, with what was gone before.
    pub fn expire(&self, expired: Expired) {
        let mut all = lock(&self.expired);
        all.received_before_s = all.received_before_s.max(expired.received_before_s);
        all.log_time_before_s = all.log_time_before_s.max(expired.log_time_before_s);
    }

    /// Differs from what it was whenever stored groups were tampered with since.
    pub fn edits(&self) -> u64 {
        self.edits.load(Ordering::SeqCst)
    }

    /// Puts `raw` in the place of group `group` of shard `shard`, which must be there; `None`: it is
    /// lost.
    pub fn replace(&self, shard: u32, group: usize, raw: Option<Bytes>) {
        self.shards()[shard as usize].replace(group, raw);
        self.edits.fetch_add(1, Ordering::SeqCst);
    }

    /// Appends `raw` to shard `shard`, or to the first that is written if that is read-only.
    pub fn insert(&self, shard: u32, raw: Bytes, moment: Moment) {
        let indexed_by = lock(&self.index).index.as_ref().map(|index| index.generation);
        let shards = read(&self.shards);
        let mut writable = shards.iter().filter(|shard| shard.is_writable());
        let same = writable.clone().find(|other| other.id == shard);
        let shard =
            same.or_else(|| writable.next()).expect("a split leaves shards that are written");
        shard.insert(raw, indexed_by, moment);
    }

    /// All shards by id, those that are only read included.
    pub fn shards(&self) -> Vec<Arc<Shard>> {
        read(&self.shards).clone()
    }

    pub fn shard(&self, id: &str) -> Result<Arc<Shard>, Refusal> {
        find(&self.shards(), id).cloned()
    }

    /// Splits shard `id` before `key`, or in its middle. Gives it and its children.
    pub fn split_shard(
        &self,
        id: &str,
        key: Option<u128>,
        scene: Scene<'_>,
    ) -> Result<Vec<Arc<Shard>>, Refusal> {
        let mut shards = write(&self.shards);
        let parent = Arc::clone(find(&shards, id)?);
        let next_id = next_id(&shards)?;
        let children = parent.split(next_id, key, scene)?.map(Arc::new);
        shards.extend(children.iter().cloned());
        Ok([parent].into_iter().chain(children).collect())
    }

    /// Merges shard `id` with the one whose keys follow. Gives the new one and both parents.
    pub fn merge_shards(&self, id: &str, scene: Scene<'_>) -> Result<Vec<Arc<Shard>>, Refusal> {
        let mut shards = write(&self.shards);
        let left = Arc::clone(find(&shards, id)?);
        let next = shards.iter().find(|shard| shard.is_writable() && left.is_before(shard));
        let Some(right) = next.filter(|_| left.is_writable()).cloned() else {
            let message = format!("shard {id} is not followed by one to merge with");
            return Err(Refusal::new(Code::ParameterInvalid, message));
        };
        let merged = Arc::new(left.merge(&right, next_id(&shards)?, scene)?);
        shards.push(Arc::clone(&merged));
        Ok(vec![merged, left, right])
    }

    /// Appends `groups` where `target` says, and gives the shard's id; their number and index
    /// are set here.
    pub fn append(
        &self,
        target: Target,
        mut groups: Write,
        scene: Scene<'_>,
    ) -> Result<u32, Refusal> {
        let age = scene.moment.steady.saturating_duration_since(self.made_at);
        if age < Duration::from_millis(scene.switches.new_logstore_wait_ms) {
            return Err(no_logstore(&self.name));
        }
        groups.indexed_by = lock(&self.index).index.as_ref().map(|index| index.generation);
        // Held to the end, so that no shard is split between choosing it and writing to it.
        let shards = read(&self.shards);
        let mut writable = shards.iter().filter(|shard| shard.is_writable());
        let shard = match target {
            Target::Balanced => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                let count = writable.clone().count();
                writable.nth(turn % count)
            }
            Target::Shard(id) => writable.find(|shard| shard.id == id),
            Target::Key { key, sequence } => {
                groups.sequence = sequence.map(|number| (key, number));
                writable.find(|shard| shard.owns(key))
            }
        };
        let Some(shard) = shard else {
            return Err(Refusal::new(Code::LogStoreWithoutShard, "no shard can be written"));
        };
        shard.append(groups, &self.project_quota, scene)?;
        Ok(shard.id)
    }
}

fn find<'a>(shards: &'a [Arc<Shard>], id: &str) -> Result<&'a Arc<Shard>, Refusal> {
    id.parse()
        .ok()
        .and_then(|id: usize| shards.get(id))
        .ok_or_else(|| Refusal::new(Code::ShardNotExist, format!("shard {id} does not exist")))
}

fn next_id(shards: &[Arc<Shard>]) -> Result<u32, Refusal> {
    if shards.len() + 2 > SPLIT_SHARDS_MAX {
        let message = format!("a logstore has at most {SPLIT_SHARDS_MAX} shards");
        return Err(Refusal::new(Code::ProjectQuotaExceed, message));
    }
    Ok(u32::try_from(shards.len()).expect("it is at most SPLIT_SHARDS_MAX"))
}

/// What a name that no logstore has is answered with.
pub fn no_logstore(name: &str) -> Refusal {
    Refusal::new(Code::LogStoreNotExist, format!("logstore {name} does not exist"))
}

fn is_modifiable(json: &Map<String, Value>) -> bool {
    json.get("enableModify").and_then(Value::as_bool).unwrap_or(false)
}

fn check_ttl(json: &Map<String, Value>) -> Result<(), Refusal> {
    let range = 1..=TTL_DAYS_FOR_EVER;
    let good = |ttl: &Value| ttl.as_i64().is_some_and(|days| range.contains(&days));
    if json.get("ttl").is_none_or(good) {
        return Ok(());
    }
    Err(Refusal::new(Code::LogStoreInfoInvalid, "ttl must be 1 to 3650 days"))
}

fn check_index(json: &Value) -> Result<(), Refusal> {
    let is_object_or_missing = |name: &str| json.get(name).is_none_or(Value::is_object);
    let has_part = json.get("line").is_some() || json.get("keys").is_some();
    if json["keys"].get("__rowid__").is_some() {
        return Err(Refusal::new(Code::IndexInfoInvalid, "__rowid__ is a reserved name"));
    }
    if json.is_object() && has_part && is_object_or_missing("line") && is_object_or_missing("keys")
    {
        return Ok(());
    }
    Err(Refusal::new(
        Code::IndexInfoInvalid,
        "an index has an object line, an object keys, or both",
    ))
}

fn no_index() -> Refusal {
    Refusal::new(Code::IndexConfigNotExist, "index config doesn't exist")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::store::shard::From;
    use crate::sim::switch::Switches;

    fn map(json: Value) -> Map<String, Value> {
        let Value::Object(map) = json else { panic!("not an object") };
        map
    }

    fn scene(switches: &Switches) -> Scene<'_> {
        Scene { moment: Moment::at(1), switches }
    }

    fn logstore(shards: u32) -> Logstore {
        let quota = Arc::default();
        let json = map(json!({"logstoreName": "runs"}));
        Logstore::new(json, shards, quota, scene(&Switches::default())).unwrap()
    }

    fn append(logstore: &Logstore, target: Target, switches: &Switches) -> Result<u32, Refusal> {
        let write = Write { groups: vec![Bytes::new()], ..Write::default() };
        logstore.append(target, write, scene(switches))
    }

    fn groups(logstore: &Logstore) -> Vec<i64> {
        let view = logstore.view(Moment::at(1));
        let cursor = |shard: &Shard, from| shard.cursor(from, view);
        let count = |shard: &Arc<Shard>| cursor(shard, From::End) - cursor(shard, From::Begin);
        logstore.shards().iter().map(count).collect()
    }

    #[test]
    fn groups_without_a_key_go_round_and_those_with_one_to_its_owner() {
        let logstore = logstore(3);
        for _ in 0..4 {
            append(&logstore, Target::Balanced, &Switches::default()).unwrap();
        }
        assert_eq!(groups(&logstore), [2, 1, 1]);
        let target = Target::Key { key: u128::MAX, sequence: Some(1) };
        append(&logstore, target, &Switches::default()).unwrap();
        assert!(append(&logstore, target, &Switches::default()).is_err());
        assert_eq!(groups(&logstore), [2, 1, 2]);
    }

    #[test]
    fn bad_settings_are_refused_and_good_ones_kept() {
        let switches = Switches::default();
        for json in [
            json!({}),
            json!({"logstoreName": "Runs"}),
            json!({"logstoreName": "runs", "ttl": 3651}),
            json!({"logstoreName": "runs", "ttl": 0}),
            json!({"logstoreName": "runs", "shardCount": 0}),
            json!({"logstoreName": "runs", "shardCount": 101}),
        ] {
            let refusal = Logstore::new(map(json.clone()), 2, Arc::default(), scene(&switches))
                .err()
                .unwrap();
            assert_eq!(refusal.code, "LogStoreInfoInvalid", "{json}");
        }
        let logstore = logstore(2);
        logstore.update(map(json!({"ttl": 90, "shardCount": 9, "hot_ttl": 30})), 5).unwrap();
        let description = logstore.describe();
        assert_eq!(description["ttl"], 90);
        assert_eq!(description["hot_ttl"], 30);
        assert_eq!(description["shardCount"], 2);
        assert_eq!(description["createTime"], 1);
        assert_eq!(description["lastModifyTime"], 5);
        for json in [json!({"logstoreName": "other"}), json!({"enableModify": true})] {
            assert!(logstore.update(map(json), 5).is_err());
        }
        assert!(logstore.update(map(json!({"enableModify": false})), 5).is_ok());
    }

    #[test]
    fn an_index_made_anew_knows_nothing_of_what_was_written_before() {
        let (logstore, moment) = (logstore(1), Moment::at(1));
        let write = || append(&logstore, Target::Balanced, &Switches::default()).unwrap();
        let code = |result: Result<(), Refusal>| result.err().map(|refusal| refusal.code);
        write();
        assert_eq!(logstore.index().err().unwrap().code, "IndexConfigNotExist");
        assert_eq!(
            code(logstore.update_index(json!({"keys": {}}))).unwrap(),
            "IndexConfigNotExist"
        );
        for keys in [json!([]), json!({"__rowid__": {"type": "text"}})] {
            let made = logstore.create_index(json!({"keys": keys}), moment);
            assert_eq!(code(made).unwrap(), "IndexInfoInvalid", "{keys}");
        }
        assert_eq!(code(logstore.create_index(json!({"keys": {}}), moment)), None);
        assert_eq!(
            code(logstore.create_index(json!({"keys": {}}), moment)).unwrap(),
            "IndexAlreadyExist"
        );
        write();
        assert_eq!(code(logstore.update_index(json!({"line": {}}))), None);
        write();
        assert_eq!(code(logstore.delete_index()), None);
        assert_eq!(code(logstore.create_index(json!({"keys": {}}), moment)), None);
        write();
        let indexed: Vec<_> =
            (0..4).map(|group| logstore.shards()[0].group(group).unwrap().1.indexed_by).collect();
        assert_eq!(indexed, [None, Some(1), Some(1), Some(2)]);
    }
}
