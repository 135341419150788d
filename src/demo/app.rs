//! The apps whose history is made: twenty of five tenants, each with one published workflow.

use rand::RngExt;
use rand::rngs::StdRng;
use uuid::Uuid;

use crate::demo::node_kind::{ANSWER, END, HUMAN_INPUT, NodeKind, START, pick_middle, random_uuid};
use crate::demo::text::{Flavor, TextPool, escape_json};
use crate::record::timestamp::Timestamp;

pub(crate) struct App {
    pub(crate) tenant_id: Uuid,
    pub(crate) app_id: Uuid,
    pub(crate) workflow_id: Uuid,
    /// `workflow_runs.type`.
    pub(crate) kind: &'static str,
    /// `workflow_runs.version` of its published workflow: when that was.
    pub(crate) version: String,
    pub(crate) graph: String,
    pub(crate) steps: Vec<Step>,
    /// Where a run that waits for a person stands.
    pub(crate) pause: Step,
    pub(crate) account: Uuid,
    pub(crate) end_users: Vec<Uuid>,
}

/// A node of a workflow.
pub(crate) struct Step {
    /// `workflow_node_executions.node_id`: Dify's editor numbers nodes by the time in ms.
    pub(crate) node_id: String,
    pub(crate) kind: &'static NodeKind,
    /// The nodes inside of an iteration or loop.
    pub(crate) inner: Vec<Step>,
}

const TENANTS: usize = 5;
const END_USERS: usize = 40;

/// How many nodes each app's workflow has, start and end included: most are small.
const STEPS: [usize; 20] = [3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 11, 12, 14, 18, 24];

/// Makes the apps; their workflows were published before `history_begins`.
pub(crate) fn make_apps(history_begins: Timestamp, pool: &TextPool, rng: &mut StdRng) -> Vec<App> {
    let tenants: Vec<Uuid> = (0..TENANTS).map(|_| random_uuid(rng)).collect();
    let make = |(index, steps): (usize, &usize)| {
        let kind = match index % 10 {
            0 => "rag-pipeline",
            1..=5 => "chat",
            _ => "workflow",
        };
        let mut next_id = 1_711_500_000_000_u64 + rng.random_range(0..50_000_000_000);
        let mut step = |kind, rng: &mut StdRng| make_step(kind, &mut next_id, rng);
        let mut list = vec![step(&START, rng)];
        list.extend((2..*steps).map(|_| step(pick_middle(rng), rng)));
        list.push(step(if kind == "chat" { &ANSWER } else { &END }, rng));
        let pause = step(&HUMAN_INPUT, rng);
        let published = history_begins.plus_s(-rng.random_range(3_600..8_640_000));
        App {
            tenant_id: tenants[index % TENANTS],
            app_id: random_uuid(rng),
            workflow_id: random_uuid(rng),
            kind,
            // As Python's `str(datetime)`: `2026-05-01 08:12:33`.
            version: published.to_string().replace('T', " ").replace('Z', ""),
            graph: graph(&list, pool, rng),
            steps: list,
            pause,
            account: random_uuid(rng),
            end_users: (0..END_USERS).map(|_| random_uuid(rng)).collect(),
        }
    };
    STEPS.iter().enumerate().map(make).collect()
}

fn make_step(kind: &'static NodeKind, next_id: &mut u64, rng: &mut StdRng) -> Step {
    *next_id += rng.random_range(500..90_000);
    let node_id = next_id.to_string();
    let mut inner = Vec::new();
    while kind.is_container && inner.len() < 2 {
        let inside = pick_middle(rng);
        if !inside.is_container {
            inner.push(make_step(inside, next_id, rng));
        }
    }
    Step { node_id, kind, inner }
}

/// The workflow as Dify's editor saves it.
fn graph(steps: &[Step], pool: &TextPool, rng: &mut StdRng) -> String {
    let mut nodes = Vec::new();
    let mut edges = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let mut prompt = String::new();
        pool.write(&mut prompt, rng.random_range(50..900), Flavor::Prose, rng);
        let Step { node_id, kind, .. } = step;
        let (name, title, x) = (kind.name, escape_json(kind.title), index * 304);
        nodes.push(format!(
            r#"{{"data": {{"desc": "", "prompt": "{prompt}", "selected": false, "title": "{title}", "type": "{name}"}}, "height": 98, "id": "{node_id}", "position": {{"x": {x}, "y": 282.5}}, "sourcePosition": "right", "targetPosition": "left", "type": "custom", "width": 244}}"#
        ));
        if let Some(next) = steps.get(index + 1) {
            let next_id = &next.node_id;
            edges.push(format!(
                r#"{{"id": "{node_id}-source-{next_id}-target", "source": "{node_id}", "sourceHandle": "source", "target": "{next_id}", "targetHandle": "target", "type": "custom", "zIndex": 0}}"#
            ));
        }
    }
    let (nodes, edges) = (nodes.join(", "), edges.join(", "));
    format!(
        r#"{{"nodes": [{nodes}], "edges": [{edges}], "viewport": {{"x": -47.5, "y": 12, "zoom": 0.7}}}}"#
    )
}
