//! Reading a shard: GetCursor, GetCursorTime and PullLogs.

use serde_json::json;

use crate::sim::answer::{Answer, Code, Refusal};
use crate::sim::http::Request;
use crate::sim::store::Project;
use crate::sim::store::shard::{From, Shard, View, decode_cursor, encode_cursor};
use crate::sim::switch::Switches;

/// The most groups in one answer (aliyun, PullLogs: count is 0 to 1000).
const GROUPS_MAX: usize = 1000;

/// The tag of `LogGroupList.LogGroups`: field 1, length-delimited.
const LOG_GROUPS: u8 = 0x0a;

pub fn get_cursor(shard: &Shard, request: &Request, view: View) -> Result<Answer, Refusal> {
    let from = match request.param("from").unwrap_or_default() {
        "begin" => From::Begin,
        "end" => From::End,
        text => From::Received(text.parse().map_err(|_| {
            invalid(format!("from={text} is neither begin nor end nor a Unix time"))
        })?),
    };
    Ok(Answer::json(&json!({"cursor": encode_cursor(shard.cursor(from, view))})))
}

pub fn get_cursor_time(shard: &Shard, request: &Request, view: View) -> Result<Answer, Refusal> {
    let time_s = shard.cursor_time(cursor(request)?, view)?;
    Ok(Answer::json(&json!({"cursor_time": time_s})))
}

/// Gives groups back byte for byte as they were sent, in one LogGroupList.
pub fn pull_logs(
    project: &Project,
    shard: &Shard,
    request: &Request,
    view: View,
    switches: &Switches,
) -> Result<Answer, Refusal> {
    let cursor = cursor(request)?;
    // The Rust SDK writes `endCursor`, all others `end_cursor`.
    let end = request.param("end_cursor").or_else(|| request.param("endCursor"));
    let end = end.filter(|end| !end.is_empty()).map(decode_cursor).transpose()?;
    let count = request.param("count").unwrap_or_default();
    let count: usize = count
        .parse()
        .ok()
        .filter(|count| *count <= GROUPS_MAX)
        .ok_or_else(|| invalid(format!("count={count} is not 0 to {GROUPS_MAX}")))?;
    if request.param("query").is_some_and(|query| !query.is_empty()) {
        return Err(invalid("PullLogs with a query is not imitated".to_owned()));
    }
    project.quota().read(view.moment, switches)?;
    let pulled = shard.pull(cursor, end, count, view, switches)?;
    let size: usize = pulled.groups.iter().map(|group| group.len() + 11).sum();
    let mut raw = Vec::with_capacity(size);
    for group in &pulled.groups {
        raw.push(LOG_GROUPS);
        prost::encode_length_delimiter(group.len(), &mut raw).expect("a Vec grows as needed");
        raw.extend_from_slice(group);
    }
    let answer =
        Answer::compressible("application/x-protobuf", raw, request.accepted_compression())
            .with("x-log-count", pulled.groups.len().to_string())
            .with("x-log-cursor", encode_cursor(pulled.next));
    if pulled.groups.is_empty() {
        return Ok(answer);
    }
    Ok(answer.with("x-log-read-last-cursor", encode_cursor(pulled.next - 1)))
}

fn cursor(request: &Request) -> Result<i64, Refusal> {
    decode_cursor(request.param("cursor").unwrap_or_default())
}

fn invalid(message: String) -> Refusal {
    Refusal::new(Code::ParameterInvalid, message)
}
