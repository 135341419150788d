//! What the local SLS remembers: projects, their logstores, indexes and shards. No HTTP here.
//!
//! Every map and shard has a lock of its own, held for the moment of a look or a change only, so
//! writers to different shards do not wait for each other.

pub mod deleted;
pub mod logstore;
pub mod name;
pub mod place;
pub mod quota;
pub mod sequence;
pub mod shard;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};

use crate::sim::answer::{Code, Refusal};
use crate::sim::consumer_groups::ConsumerGroups;
use crate::sim::store::logstore::{Logstore, no_logstore};
use crate::sim::store::name::is_name;
use crate::sim::store::quota::ProjectQuota;
use crate::sim::store::shard::Scene;
use crate::sim::sync::lock;

/// Everything, from the top down.
#[derive(Default)]
pub struct Store {
    projects: Mutex<BTreeMap<String, Arc<Project>>>,
}

impl Store {
    /// Makes project `name`. Names have 3 to 63 lower-case letters, digits and hyphens.
    pub fn create_project(
        &self,
        name: &str,
        description: &str,
        scene: Scene<'_>,
    ) -> Result<(), Refusal> {
        if !is_name(name, b"-") {
            let message = format!("the project name {name} is invalid");
            return Err(Refusal::new(Code::ParameterInvalid, message));
        }
        let mut projects = lock(&self.projects);
        if projects.contains_key(name) {
            let message = format!("Project {name} already exists");
            return Err(Refusal::new(Code::ProjectAlreadyExist, message));
        }
        let project = Project {
            name: name.to_owned(),
            description: description.to_owned(),
            created_s: scene.create_time_s(),
            quota: Arc::default(),
            logstores: Mutex::default(),
            consumer_groups: ConsumerGroups::default(),
        };
        projects.insert(name.to_owned(), Arc::new(project));
        Ok(())
    }

    pub fn project(&self, name: &str) -> Result<Arc<Project>, Refusal> {
        lock(&self.projects).get(name).cloned().ok_or_else(|| no_project(name))
    }

    /// Deletes a project with all that is in it.
    pub fn delete_project(&self, name: &str) -> Result<(), Refusal> {
        lock(&self.projects).remove(name).map(drop).ok_or_else(|| no_project(name))
    }
}

fn no_project(name: &str) -> Refusal {
    Refusal::new(Code::ProjectNotExist, format!("The Project does not exist : {name}"))
}

/// A project: a namespace of logstores.
pub struct Project {
    name: String,
    description: String,
    created_s: i64,
    quota: Arc<ProjectQuota>,
    logstores: Mutex<BTreeMap<String, Arc<Logstore>>>,
    pub consumer_groups: ConsumerGroups,
}

impl Project {
    /// What all of its logstores share.
    pub fn quota(&self) -> &ProjectQuota {
        &self.quota
    }

    /// What GetProject answers.
    pub fn describe(&self) -> Value {
        json!({
            "projectName": self.name,
            "description": self.description,
            "status": "Normal",
            "owner": "",
            "region": "local",
            "dataRedundancyType": "LRS",
            "resourceGroupId": "",
            "recycleBinEnabled": false,
            "createTime": self.created_s.to_string(),
            "lastModifyTime": self.created_s.to_string(),
        })
    }

    /// Makes a logstore from CreateLogstore's `settings`.
    pub fn create_logstore(
        &self,
        settings: Map<String, Value>,
        shards_default: u32,
        scene: Scene<'_>,
    ) -> Result<(), Refusal> {
        let logstore = Logstore::new(settings, shards_default, Arc::clone(&self.quota), scene)?;
        let mut logstores = lock(&self.logstores);
        if logstores.contains_key(logstore.name()) {
            let message = format!("logstore {} already exists", logstore.name());
            return Err(Refusal::new(Code::LogStoreAlreadyExist, message));
        }
        logstores.insert(logstore.name().to_owned(), Arc::new(logstore));
        Ok(())
    }

    pub fn logstore(&self, name: &str) -> Result<Arc<Logstore>, Refusal> {
        lock(&self.logstores).get(name).cloned().ok_or_else(|| no_logstore(name))
    }

    /// The names of all logstores, in order.
    pub fn logstore_names(&self) -> Vec<String> {
        lock(&self.logstores).keys().cloned().collect()
    }

    pub fn delete_logstore(&self, name: &str) -> Result<(), Refusal> {
        self.consumer_groups.forget(name);
        lock(&self.logstores).remove(name).map(drop).ok_or_else(|| no_logstore(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::clock::Moment;
    use crate::sim::switch::Switches;

    #[test]
    fn things_exist_once_and_can_be_missing() {
        let (store, switches) = (Store::default(), Switches::default());
        let now = Scene { moment: Moment::at(1), switches: &switches };
        let code = |result: Result<(), Refusal>| result.err().map(|refusal| refusal.code);
        assert_eq!(code(store.create_project("dify", "", now)), None);
        assert_eq!(
            code(store.create_project("dify", "", now)),
            Some("ProjectAlreadyExist".to_owned())
        );
        assert_eq!(store.project("other").err().unwrap().code, "ProjectNotExist");
        let project = store.project("dify").unwrap();
        let settings = || {
            let Value::Object(map) = json!({"logstoreName": "runs", "ttl": 30}) else { panic!() };
            map
        };
        assert_eq!(code(project.create_logstore(settings(), 2, now)), None);
        assert_eq!(
            code(project.create_logstore(settings(), 2, now)),
            Some("LogStoreAlreadyExist".to_owned())
        );
        assert_eq!(project.logstore_names(), ["runs"]);
        assert_eq!(code(project.delete_logstore("runs")), None);
        assert_eq!(project.logstore("runs").err().unwrap().code, "LogStoreNotExist");
        assert_eq!(code(store.delete_project("dify")), None);
        assert_eq!(code(store.delete_project("dify")), Some("ProjectNotExist".to_owned()));
    }
}
