//! Dify's node types: how often each occurs, how long it takes, and what it leaves in its columns.
//!
//! The JSON columns are templates in the spelling of `json.dumps`. A sign after `%` stands for what
//! changes: `p` prose, `c` code, `m` Markdown, `n` a number, `d` a fraction, `u` a UUID, `w` a word,
//! `t` the node's tokens.

use rand::RngExt;
use rand::rngs::StdRng;

use crate::demo::text::{Flavor, TextPool, pick};

/// One of Dify's node types.
#[derive(Debug)]
pub(crate) struct NodeKind {
    /// `workflow_node_executions.node_type`.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// How often it occurs in the middle of a workflow, relative to the others.
    pub(crate) weight: u32,
    /// The shortest and the longest time it takes, in ms.
    pub(crate) takes_ms: (u32, u32),
    /// Whether it calls something that can fail, and is then tried again.
    pub(crate) can_retry: bool,
    /// Whether other nodes run inside of it, several times.
    pub(crate) is_container: bool,
    /// Inputs, process data and outputs; an empty one is NULL.
    pub(crate) columns: [Template; 3],
    /// What is in `execution_metadata` besides the iteration it belongs to, without braces.
    pub(crate) metadata: &'static str,
}

/// A JSON text with gaps, and its share of the row's bytes in percent.
#[derive(Debug)]
pub(crate) struct Template {
    json: &'static str,
    percent: usize,
}

const fn template(json: &'static str, percent: usize) -> Template {
    Template { json, percent }
}

const NOTHING: Template = template("", 0);

const PLAIN: NodeKind = NodeKind {
    name: "",
    title: "",
    weight: 0,
    takes_ms: (1, 40),
    can_retry: false,
    is_container: false,
    columns: [NOTHING, NOTHING, NOTHING],
    metadata: "",
};

pub(crate) static START: NodeKind = NodeKind {
    name: "start",
    title: "开始",
    columns: [
        template(
            r#"{"query": "%p", "sys.app_id": "%u", "sys.files": [], "sys.user_id": "%u"}"#,
            50,
        ),
        NOTHING,
        template(
            r#"{"query": "%p", "sys.app_id": "%u", "sys.files": [], "sys.user_id": "%u"}"#,
            50,
        ),
    ],
    ..PLAIN
};

pub(crate) static ANSWER: NodeKind = NodeKind {
    name: "answer",
    title: "直接回复",
    columns: [NOTHING, NOTHING, template(r#"{"answer": "%m", "files": []}"#, 100)],
    ..PLAIN
};

pub(crate) static END: NodeKind = NodeKind {
    name: "end",
    title: "结束",
    columns: [
        template(r#"{"result": "%m", "score": %d}"#, 50),
        NOTHING,
        template(r#"{"result": "%m", "score": %d}"#, 50),
    ],
    ..PLAIN
};

/// Waits for a person: the node at which a paused run stands.
pub(crate) static HUMAN_INPUT: NodeKind = NodeKind {
    name: "human-input",
    title: "人工介入",
    takes_ms: (60_000, 900_000),
    columns: [template(r#"{"form_content": "%p"}"#, 100), NOTHING, NOTHING],
    ..PLAIN
};

/// What stands between start and end, the most frequent first.
pub(crate) static MIDDLE: [NodeKind; 15] = [
    NodeKind {
        name: "llm",
        title: "LLM",
        weight: 300,
        takes_ms: (600, 28_000),
        can_retry: true,
        columns: [
            template(r##"{"#context#": "%p", "#sys.query#": "%p"}"##, 25),
            template(
                r#"{"finish_reason": "stop", "model_mode": "chat", "model_name": "qwen-max", "model_provider": "langgenius/tongyi/tongyi", "prompts": [{"files": [], "role": "system", "text": "%p"}, {"files": [], "role": "user", "text": "%p"}], "usage": {"completion_tokens": %n, "currency": "RMB", "latency": %d, "prompt_price": "0.00%n", "total_tokens": %t}}"#,
                45,
            ),
            template(
                r#"{"files": [], "finish_reason": "stop", "reasoning_content": "", "text": "%m", "usage": {"latency": %d, "total_price": "0.0%n", "total_tokens": %t}}"#,
                30,
            ),
        ],
        metadata: r#""total_tokens": %t, "total_price": "0.00%n", "currency": "RMB""#,
        ..PLAIN
    },
    NodeKind {
        name: "knowledge-retrieval",
        title: "知识检索",
        weight: 130,
        takes_ms: (120, 2_500),
        can_retry: true,
        columns: [
            template(r#"{"query": "%p"}"#, 10),
            NOTHING,
            template(
                r#"{"result": [{"content": "%m", "files": null, "metadata": {"_source": "knowledge", "dataset_id": "%u", "dataset_name": "\u4ea7\u54c1 FAQ %n", "document_id": "%u", "position": 1, "score": 0.%n, "segment_word_count": %n}, "title": "%w.md"}, {"content": "%p", "files": null, "metadata": {"_source": "knowledge", "dataset_id": "%u", "document_id": "%u", "position": 2, "score": %d}, "title": "%w.pdf"}]}"#,
                90,
            ),
        ],
        ..PLAIN
    },
    NodeKind {
        name: "code",
        title: "代码执行",
        weight: 110,
        takes_ms: (15, 900),
        columns: [
            template(r#"{"arg1": "%m", "arg2": %n, "items": ["%w", "%w", null]}"#, 50),
            NOTHING,
            template(r#"{"result": "%c", "count": %n, "ratio": %de-05}"#, 50),
        ],
        ..PLAIN
    },
    NodeKind {
        name: "if-else",
        title: "条件分支",
        weight: 110,
        columns: [
            template(
                r#"{"conditions": [{"actual_value": "%p", "comparison_operator": "contains", "expected_value": "%w"}]}"#,
                50,
            ),
            template(
                r#"{"condition_results": [{"group": {"id": "true", "logical_operator": "and"}, "results": [true], "final_result": true}], "text": "%p"}"#,
                50,
            ),
            template(r#"{"result": true, "selected_case_id": "true"}"#, 0),
        ],
        ..PLAIN
    },
    NodeKind {
        name: "http-request",
        title: "HTTP 请求",
        weight: 80,
        takes_ms: (40, 9_000),
        can_retry: true,
        columns: [
            NOTHING,
            template(
                r#"{"request": "POST /v1/%w/%n HTTP/1.1\r\nHost: api.example.com\r\nContent-Type: application/json\r\n\r\n%c"}"#,
                30,
            ),
            template(
                r#"{"body": "%c", "files": [], "headers": {"content-type": "application/json; charset=utf-8", "x-request-id": "%u"}, "status_code": 200}"#,
                70,
            ),
        ],
        ..PLAIN
    },
    NodeKind {
        name: "tool",
        title: "天气查询 ☀️",
        weight: 60,
        takes_ms: (80, 12_000),
        can_retry: true,
        columns: [
            template(r#"{"city": "%w", "prompt": "%p"}"#, 30),
            NOTHING,
            template(r#"{"files": [], "json": [{"id": %n, "value": %d}], "text": "%m"}"#, 70),
        ],
        metadata: r#""tool_info": {"provider_type": "builtin", "provider_id": "langgenius/%w/%w", "plugin_unique_identifier": "langgenius/%w:0.%n@%u"}"#,
        ..PLAIN
    },
    NodeKind {
        name: "template-transform",
        title: "模板转换",
        weight: 50,
        columns: [
            template(r#"{"arg1": "%p", "now": "2026-01-%n"}"#, 40),
            NOTHING,
            template(r#"{"output": "%m"}"#, 60),
        ],
        ..PLAIN
    },
    NodeKind {
        name: "variable-aggregator",
        title: "变量聚合器",
        weight: 35,
        columns: [NOTHING, NOTHING, template(r#"{"output": "%p"}"#, 100)],
        ..PLAIN
    },
    NodeKind {
        name: "assigner",
        title: "变量赋值",
        weight: 30,
        columns: [
            template(r#"{"conversation.memory": "%p"}"#, 50),
            template(
                r#"{"updated_variables": [{"name": "memory", "selector": ["conversation", "memory"], "new_value": "%p"}]}"#,
                50,
            ),
            NOTHING,
        ],
        ..PLAIN
    },
    NodeKind {
        name: "question-classifier",
        title: "问题分类器",
        weight: 30,
        takes_ms: (300, 4_000),
        can_retry: true,
        columns: [
            template(r#"{"query": "%p"}"#, 30),
            template(
                r#"{"model_mode": "chat", "model_name": "gpt-4o-mini", "prompts": [{"role": "system", "text": "%p"}], "usage": {"total_tokens": %t}}"#,
                70,
            ),
            template(r#"{"class_id": "%n", "class_name": "\u552e\u540e"}"#, 0),
        ],
        metadata: r#""total_tokens": %t, "total_price": "0.000%n", "currency": "USD""#,
        ..PLAIN
    },
    NodeKind {
        name: "parameter-extractor",
        title: "参数提取器",
        weight: 30,
        takes_ms: (300, 6_000),
        can_retry: true,
        columns: [
            template(r#"{"instruction": "%p", "parameters": ["city", "date"], "query": "%p"}"#, 50),
            template(r#"{"llm_text": "%c", "function": {"name": "%w"}}"#, 30),
            template(r#"{"__is_success": 1, "__reason": null, "city": "%p", "date": null}"#, 20),
        ],
        metadata: r#""total_tokens": %t, "total_price": "0.000%n", "currency": "USD""#,
        ..PLAIN
    },
    NodeKind {
        name: "document-extractor",
        title: "文档提取器",
        weight: 20,
        takes_ms: (50, 5_000),
        columns: [
            template(
                r#"{"variable_selector": ["start", "file"], "file": {"dify_model_identity": "__dify__file__", "filename": "%w.docx", "size": %n, "type": "document"}}"#,
                10,
            ),
            NOTHING,
            template(r#"{"text": "%m"}"#, 90),
        ],
        ..PLAIN
    },
    NodeKind {
        name: "iteration",
        title: "迭代",
        weight: 20,
        takes_ms: (5, 30),
        is_container: true,
        columns: [
            template(r#"{"iterator_selector": ["%p", "%p"]}"#, 40),
            NOTHING,
            template(r#"{"output": ["%p", "%p", "%p"]}"#, 60),
        ],
        metadata: r#""iteration_duration_map": {"0": %d, "1": %d}"#,
        ..PLAIN
    },
    NodeKind {
        name: "loop",
        title: "循环",
        weight: 10,
        takes_ms: (5, 30),
        is_container: true,
        columns: [
            template(r#"{"loop_count": %n, "text": "%p"}"#, 40),
            template(r#"{"loop_count": %n}"#, 0),
            template(r#"{"loop_round": %n, "text": "%p"}"#, 60),
        ],
        metadata: r#""loop_duration_map": {"0": %d}, "loop_variable_map": {"0": {"n": %n}}"#,
        ..PLAIN
    },
    NodeKind {
        name: "agent",
        title: "Agent 智能体",
        weight: 15,
        takes_ms: (2_000, 60_000),
        can_retry: true,
        columns: [
            template(r#"{"instruction": "%p", "query": "%p", "tools": []}"#, 30),
            NOTHING,
            template(
                r#"{"files": [], "json": [], "text": "%m", "usage": {"total_tokens": %t}}"#,
                70,
            ),
        ],
        metadata: r#""total_tokens": %t, "agent_log": [{"id": "%u", "label": "ROUND 1", "status": "success", "data": {"thought": "%w"}}]"#,
        ..PLAIN
    },
];

/// One of [`MIDDLE`], by weight.
pub(crate) fn pick_middle(rng: &mut StdRng) -> &'static NodeKind {
    let total: u32 = MIDDLE.iter().map(|kind| kind.weight).sum();
    let mut at = rng.random_range(0..total);
    for kind in &MIDDLE {
        match at.checked_sub(kind.weight) {
            Some(rest) => at = rest,
            None => return kind,
        }
    }
    unreachable!("the weights add up to the total")
}

impl NodeKind {
    /// Whether it costs tokens.
    pub(crate) fn has_tokens(&self) -> bool {
        self.metadata.contains("%t")
    }
}

impl Template {
    /// Writes the column of a row of `row_bytes` into `out`, which stays empty for NULL.
    pub(crate) fn write(&self, out: &mut String, row_bytes: usize, gaps: &mut Gaps) {
        let room = (row_bytes * self.percent / 100).saturating_sub(self.json.len());
        gaps.write(self.json, out, room);
    }
}

/// What the gaps of a template are filled from.
pub(crate) struct Gaps<'a> {
    pub(crate) pool: &'a TextPool,
    pub(crate) rng: &'a mut StdRng,
    pub(crate) tokens: u32,
}

impl Gaps<'_> {
    /// Writes `template` into `out`, its texts together about `text_bytes` long.
    pub(crate) fn write(&mut self, template: &str, out: &mut String, text_bytes: usize) {
        let flavor_of = |sign: char| match sign {
            'p' => Some(Flavor::Prose),
            'c' => Some(Flavor::Code),
            'm' => Some(Flavor::Markdown),
            _ => None,
        };
        let signs = || template.split('%').skip(1).filter_map(|part| part.chars().next());
        let texts = signs().filter_map(flavor_of).count().max(1);
        for (index, part) in template.split('%').enumerate() {
            let mut rest = part.chars();
            let sign = if index == 0 { None } else { rest.next() };
            match sign {
                None => {}
                Some('n') => out.push_str(&self.rng.random_range(10..10_000).to_string()),
                Some('d') => {
                    out.push_str(&format!("0.{}", self.rng.random_range(1..1_000_000)));
                }
                Some('u') => out.push_str(&random_uuid(self.rng).to_string()),
                Some('w') => {
                    out.push_str(pick(&["alpha", "faq", "crm", "order", "mail"], self.rng))
                }
                Some('t') => out.push_str(&self.tokens.to_string()),
                Some(sign) => {
                    let flavor = flavor_of(sign).expect("a template has only the signs above");
                    self.pool.write(out, text_bytes / texts, flavor, self.rng);
                }
            }
            out.push_str(rest.as_str());
        }
    }
}

/// A version 4 UUID, as Dify's rows have.
pub(crate) fn random_uuid(rng: &mut StdRng) -> uuid::Uuid {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_template_becomes_json_of_about_its_size() {
        let pool = TextPool::new(1);
        let mut rng = StdRng::seed_from_u64(1);
        for kind in MIDDLE.iter().chain([&START, &ANSWER, &END, &HUMAN_INPUT]) {
            for row_bytes in [0, 200, 3_000, 100_000] {
                let mut gaps = Gaps { pool: &pool, rng: &mut rng, tokens: 7 };
                let mut total = 0;
                for column in kind.columns.iter().filter(|column| !column.json.is_empty()) {
                    let mut text = String::new();
                    column.write(&mut text, row_bytes, &mut gaps);
                    let value: serde_json::Value =
                        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
                    assert!(value.is_object());
                    total += text.len();
                }
                assert!(total < row_bytes + 1_500, "{}: {total}", kind.name);
                assert!(row_bytes < 100_000 || total > 90_000, "{}: {total}", kind.name);
                let mut metadata = String::from("{");
                gaps.write(kind.metadata, &mut metadata, 0);
                metadata.push('}');
                serde_json::from_str::<serde_json::Value>(&metadata).unwrap();
            }
        }
    }
}
