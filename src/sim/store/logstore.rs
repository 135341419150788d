//! A logstore: its settings, its index and its shards.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::sim::answer::{Code, Refusal};
use crate::sim::store::shard::{Group, Shard};
use crate::sim::store::{is_name, lock};

/// The most shards that CreateLogstore makes through the API (aliyun, resource limits).
const SHARDS_MAX: u64 = 100;

/// Days; 3650 means for ever.
const TTL_DAYS_MAX: u64 = 3650;

pub struct Logstore {
    name: String,
    created_s: i64,
    settings: Mutex<Settings>,
    index: Mutex<IndexState>,
    shards: Vec<Shard>,
    /// Which shard takes the next group that has no hash key.
    turn: AtomicUsize,
}

struct Settings {
    json: Map<String, Value>,
    modified_s: i64,
}

/// An index as it was given.
#[derive(Debug)]
pub struct Index {
    pub json: Value,
    /// Different for every index that was made, the same for its updates.
    pub generation: u32,
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
    /// The shard that owns the key; with a number the write is idempotent.
    Key { key: u128, sequence: Option<u64> },
}

impl Logstore {
    /// Checks what CreateLogstore was given.
    pub fn new(
        mut json: Map<String, Value>,
        shards_default: u32,
        now_s: i64,
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
        Ok(Self {
            name,
            created_s: now_s,
            settings: Mutex::new(Settings { json, modified_s: now_s }),
            index: Mutex::default(),
            shards: Shard::split(shards, now_s),
            turn: AtomicUsize::new(0),
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
            "ttl": 30,
            "shardCount": self.shards.len(),
            "enable_tracking": false,
            "autoSplit": false,
            "maxSplitShard": 0,
            "appendMeta": false,
            "telemetryType": "",
            "mode": "standard",
        });
        for (key, value) in &settings.json {
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
        settings.json.extend(json.into_iter().filter(|(key, _)| key != "shardCount"));
        settings.modified_s = now_s;
        Ok(())
    }

    /// Makes the index. Only what is written from now on can be searched.
    pub fn create_index(&self, json: Value) -> Result<(), Refusal> {
        check_index(&json)?;
        let mut state = lock(&self.index);
        if state.index.is_some() {
            return Err(Refusal::new(
                Code::IndexAlreadyExist,
                "log store index is already created",
            ));
        }
        state.made += 1;
        state.index = Some(Arc::new(Index { json, generation: state.made }));
        Ok(())
    }

    pub fn update_index(&self, json: Value) -> Result<(), Refusal> {
        check_index(&json)?;
        let mut state = lock(&self.index);
        let generation = state.index.as_ref().ok_or_else(no_index)?.generation;
        state.index = Some(Arc::new(Index { json, generation }));
        Ok(())
    }

    pub fn index(&self) -> Result<Arc<Index>, Refusal> {
        lock(&self.index).index.clone().ok_or_else(no_index)
    }

    pub fn delete_index(&self) -> Result<(), Refusal> {
        lock(&self.index).index.take().map(drop).ok_or_else(no_index)
    }

    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    pub fn shard(&self, id: &str) -> Result<&Shard, Refusal> {
        id.parse()
            .ok()
            .and_then(|id: usize| self.shards.get(id))
            .ok_or_else(|| Refusal::new(Code::ShardNotExist, format!("shard {id} does not exist")))
    }

    /// Appends `raw`, a LogGroup message, where `target` says. Without `raw` only the sequence
    /// number counts.
    pub fn append(&self, target: Target, raw: Option<Bytes>, now_s: i64) -> Result<(), Refusal> {
        let indexed_by = lock(&self.index).index.as_ref().map(|index| index.generation);
        let group = raw.map(|raw| Group { raw, received_s: now_s, indexed_by });
        match target {
            Target::Balanced => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                self.shards[turn % self.shards.len()].append(group, None)
            }
            Target::Key { key, sequence } => self
                .shards
                .iter()
                .find(|shard| shard.owns(key))
                .expect("the shards cover all keys")
                .append(group, sequence.map(|number| (key, number))),
        }
    }
}

fn check_ttl(json: &Map<String, Value>) -> Result<(), Refusal> {
    let good = |ttl: &Value| ttl.as_u64().is_some_and(|days| (1..=TTL_DAYS_MAX).contains(&days));
    if json.get("ttl").is_none_or(good) {
        return Ok(());
    }
    Err(Refusal::new(Code::LogStoreInfoInvalid, "ttl must be 1 to 3650 days"))
}

fn check_index(json: &Value) -> Result<(), Refusal> {
    let is_object_or_missing = |name: &str| json.get(name).is_none_or(Value::is_object);
    let has_part = json.get("line").is_some() || json.get("keys").is_some();
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

    fn map(json: Value) -> Map<String, Value> {
        let Value::Object(map) = json else { panic!("not an object") };
        map
    }

    fn logstore(shards: u32) -> Logstore {
        Logstore::new(map(json!({"logstoreName": "runs"})), shards, 1).unwrap()
    }

    fn groups(logstore: &Logstore) -> Vec<i64> {
        let count = |shard: &Shard| shard.cursor(From::End) - shard.cursor(From::Begin);
        logstore.shards().iter().map(count).collect()
    }

    #[test]
    fn groups_without_a_key_go_round_and_those_with_one_to_its_owner() {
        let logstore = logstore(3);
        for _ in 0..4 {
            logstore.append(Target::Balanced, Some(Bytes::new()), 1).unwrap();
        }
        assert_eq!(groups(&logstore), [2, 1, 1]);
        let target = Target::Key { key: u128::MAX, sequence: Some(1) };
        logstore.append(target, Some(Bytes::new()), 1).unwrap();
        assert!(logstore.append(target, Some(Bytes::new()), 1).is_err());
        assert_eq!(groups(&logstore), [2, 1, 2]);
    }

    #[test]
    fn bad_settings_are_refused_and_good_ones_kept() {
        for json in [
            json!({}),
            json!({"logstoreName": "Runs"}),
            json!({"logstoreName": "runs", "ttl": 3651}),
            json!({"logstoreName": "runs", "ttl": 0}),
            json!({"logstoreName": "runs", "shardCount": 0}),
            json!({"logstoreName": "runs", "shardCount": 101}),
        ] {
            let refusal = Logstore::new(map(json.clone()), 2, 1).err().unwrap();
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
        assert!(logstore.update(map(json!({"logstoreName": "other"})), 5).is_err());
    }

    #[test]
    fn an_index_made_anew_knows_nothing_of_what_was_written_before() {
        let logstore = logstore(1);
        let write = || logstore.append(Target::Balanced, Some(Bytes::new()), 1).unwrap();
        let code = |result: Result<(), Refusal>| result.err().map(|refusal| refusal.code);
        write();
        assert_eq!(logstore.index().err().unwrap().code, "IndexConfigNotExist");
        assert_eq!(
            code(logstore.update_index(json!({"keys": {}}))).unwrap(),
            "IndexConfigNotExist"
        );
        assert_eq!(code(logstore.create_index(json!({"keys": []}))).unwrap(), "IndexInfoInvalid");
        assert_eq!(code(logstore.create_index(json!({"keys": {}}))), None);
        assert_eq!(code(logstore.create_index(json!({"keys": {}}))).unwrap(), "IndexAlreadyExist");
        write();
        assert_eq!(code(logstore.update_index(json!({"line": {}}))), None);
        write();
        assert_eq!(code(logstore.delete_index()), None);
        assert_eq!(code(logstore.create_index(json!({"keys": {}}))), None);
        write();
        let indexed: Vec<_> =
            (0..4).map(|group| logstore.shards[0].group(group).unwrap().1.indexed_by).collect();
        assert_eq!(indexed, [None, Some(1), Some(1), Some(2)]);
    }
}
