//! A LogGroup's bytes, written row by row without a `String` per field, and read without a copy.
//!
//! ```text
//! LogGroup  = { 0A len Log } 1A len topic  22 len source  { 32 len LogTag }
//! Log       = 08 time { 12 len Content }  [25 fixed32]
//! Content   = LogTag = 0A len key  12 len value
//! ```
//!
//! Every length precedes its bytes, but is known only after them. The writer leaves a gap as wide
//! as the length is likely to be and moves the bytes when the guess was wrong, which is rare.

use std::ops::Range;

const LOGS: u8 = 0x0a;
const TOPIC: u8 = 0x1a;
const SOURCE: u8 = 0x22;
const LOG_TAGS: u8 = 0x32;
const TIME: u8 = 0x08;
const CONTENTS: u8 = 0x12;
const KEY: u8 = 0x0a;
const VALUE: u8 = 0x12;

/// Builds one LogGroup in a buffer that is kept from one group to the next.
#[derive(Default)]
pub struct LogGroupWriter {
    bytes: Vec<u8>,
    logs: u32,
    open: Option<OpenLog>,
}

/// A log that is begun and not ended.
struct OpenLog {
    /// Where the log's tag stands.
    start: usize,
    /// How many bytes were left for its length.
    gap: usize,
}

impl LogGroupWriter {
    /// Forgets the group and gives back memory beyond `keep_bytes`.
    pub fn clear(&mut self, keep_bytes: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(keep_bytes);
        self.logs = 0;
        self.open = None;
    }

    /// The bytes written so far: a valid LogGroup as long as no log is open.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many logs the group holds.
    pub fn logs(&self) -> u32 {
        self.logs
    }

    /// Begins a log at `time` (Unix seconds). `size_hint` is about how many bytes it will have.
    pub fn begin_log(&mut self, time: u32, size_hint: usize) {
        assert!(self.open.is_none(), "a log is already open");
        self.bytes.reserve(size_hint + 16);
        let gap = varint_len(size_hint as u64);
        self.open = Some(OpenLog { start: self.bytes.len(), gap });
        self.bytes.push(LOGS);
        self.bytes.resize(self.bytes.len() + gap, 0);
        self.bytes.push(TIME);
        put_varint(&mut self.bytes, u64::from(time));
    }

    /// Adds a field to the open log; gives where its value stands until the log is ended.
    pub fn field(&mut self, key: &str, value: &[u8]) -> Range<usize> {
        assert!(self.open.is_some(), "no log is open");
        let size = [key.len(), value.len()]
            .map(|len| 1 + varint_len(len as u64) + len)
            .iter()
            .sum::<usize>();
        self.bytes.push(CONTENTS);
        put_varint(&mut self.bytes, size as u64);
        put_bytes(&mut self.bytes, KEY, key.as_bytes());
        put_bytes(&mut self.bytes, VALUE, value);
        self.bytes.len() - value.len()..self.bytes.len()
    }

    /// Adds a field whose value `write` appends. `size_hint` is about how long it will be.
    pub fn field_with(
        &mut self,
        key: &str,
        size_hint: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Range<usize> {
        assert!(self.open.is_some(), "no log is open");
        let key_size = 1 + varint_len(key.len() as u64) + key.len();
        let value_gap = varint_len(size_hint as u64);
        let gap = varint_len((key_size + 1 + value_gap + size_hint) as u64);
        self.bytes.push(CONTENTS);
        let start = self.bytes.len();
        self.bytes.resize(start + gap, 0);
        put_bytes(&mut self.bytes, KEY, key.as_bytes());
        self.bytes.push(VALUE);
        let value_start = self.bytes.len();
        self.bytes.resize(value_start + value_gap, 0);
        write(&mut self.bytes);
        let value_len = self.bytes.len() - value_start - value_gap;
        fill_gap(&mut self.bytes, value_start, value_gap);
        fill_gap(&mut self.bytes, start, gap);
        self.bytes.len() - value_len..self.bytes.len()
    }

    /// Ends the open log; gives its size in the group, tag and length included.
    pub fn end_log(&mut self) -> usize {
        let OpenLog { start, gap } = self.open.take().expect("a log is open");
        fill_gap(&mut self.bytes, start + 1, gap);
        self.logs += 1;
        self.bytes.len() - start
    }

    /// Takes the open log back, as if it had never been begun.
    pub fn cancel_log(&mut self) {
        let OpenLog { start, .. } = self.open.take().expect("a log is open");
        self.bytes.truncate(start);
    }

    /// Takes the last ended log back, given the size that [`Self::end_log`] gave.
    pub fn pop_log(&mut self, size: usize) {
        assert!(self.open.is_none() && self.logs > 0, "there is an ended log");
        self.bytes.truncate(self.bytes.len() - size);
        self.logs -= 1;
    }

    /// Adds what describes the whole group. Call it once, after the last log.
    pub fn finish(&mut self, topic: Option<&str>, source: Option<&str>, tags: &[(&str, &str)]) {
        assert!(self.open.is_none(), "a log is still open");
        if let Some(topic) = topic {
            put_bytes(&mut self.bytes, TOPIC, topic.as_bytes());
        }
        if let Some(source) = source {
            put_bytes(&mut self.bytes, SOURCE, source.as_bytes());
        }
        for (key, value) in tags {
            let size = [key, value]
                .iter()
                .map(|text| 1 + varint_len(text.len() as u64) + text.len())
                .sum::<usize>();
            self.bytes.push(LOG_TAGS);
            put_varint(&mut self.bytes, size as u64);
            put_bytes(&mut self.bytes, KEY, key.as_bytes());
            put_bytes(&mut self.bytes, VALUE, value.as_bytes());
        }
    }
}

/// Writes the length of what follows the `gap` bytes at `at` into them, and makes them fit.
fn fill_gap(bytes: &mut Vec<u8>, at: usize, gap: usize) {
    let end = bytes.len();
    let len = (end - at - gap) as u64;
    let width = varint_len(len);
    if width > gap {
        bytes.resize(end + width - gap, 0);
    }
    if width != gap {
        bytes.copy_within(at + gap..end, at + width);
        bytes.truncate(end - gap + width);
    }
    let mut rest = len;
    for byte in &mut bytes[at..at + width - 1] {
        *byte = (rest as u8) | 0x80;
        rest >>= 7;
    }
    bytes[at + width - 1] = rest as u8;
}

/// How many bytes `value` takes as a varint: 1 to 10.
fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value as u8) | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn put_bytes(bytes: &mut Vec<u8>, tag: u8, value: &[u8]) {
    bytes.push(tag);
    put_varint(bytes, value.len() as u64);
    bytes.extend_from_slice(value);
}

/// A LogGroup as it came from SLS, borrowed from the answer's bytes.
#[derive(Debug, Default, Clone)]
pub struct LogGroupView<'a> {
    pub logs: Vec<LogView<'a>>,
    pub topic: Option<&'a [u8]>,
    pub source: Option<&'a [u8]>,
    pub tags: Vec<(&'a [u8], &'a [u8])>,
}

/// A log, borrowed.
#[derive(Debug, Default, Clone)]
pub struct LogView<'a> {
    /// `None` when the required field is missing.
    pub time: Option<u32>,
    pub time_ns: Option<u32>,
    pub contents: Vec<(&'a [u8], &'a [u8])>,
}

/// The bytes are not the message they should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the bytes are not a {0}")]
pub struct ParseError(&'static str);

impl<'a> LogGroupView<'a> {
    /// The value of tag `key`, if the group has it.
    pub fn tag(&self, key: &str) -> Option<&'a [u8]> {
        self.tags.iter().find(|(k, _)| *k == key.as_bytes()).map(|(_, value)| *value)
    }

    /// Reads what describes the group, and none of its logs: of whatever else is odd in a group, one
    /// can tell whose it is. Fails where no field can be told from the next.
    pub fn parse_envelope(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut group = Self::default();
        let mut fields = Fields { bytes };
        while let Some((number, value)) = fields.next().ok_or(ParseError("LogGroup"))? {
            match (number, value) {
                (3, FieldValue::Bytes(topic)) => group.topic = Some(topic),
                (4, FieldValue::Bytes(source)) => group.source = Some(source),
                (6, FieldValue::Bytes(tag)) => group.tags.extend(parse_pair(tag).ok()),
                _ => {}
            }
        }
        Ok(group)
    }

    /// Reads one LogGroup. Unknown fields are passed over.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut group = Self::default();
        let mut fields = Fields { bytes };
        while let Some((number, value)) = fields.next().ok_or(ParseError("LogGroup"))? {
            match (number, value) {
                (1, FieldValue::Bytes(log)) => group.logs.push(parse_log(log)?),
                (3, FieldValue::Bytes(topic)) => group.topic = Some(topic),
                (4, FieldValue::Bytes(source)) => group.source = Some(source),
                (6, FieldValue::Bytes(tag)) => group.tags.push(parse_pair(tag)?),
                (1 | 3 | 4 | 6, _) => return Err(ParseError("LogGroup")),
                _ => {}
            }
        }
        Ok(group)
    }
}

/// Splits a LogGroupList, the body of a PullLogs answer, into its groups' bytes.
pub fn split_list(bytes: &[u8]) -> Result<Vec<&[u8]>, ParseError> {
    let mut groups = Vec::new();
    let mut fields = Fields { bytes };
    while let Some((number, value)) = fields.next().ok_or(ParseError("LogGroupList"))? {
        match (number, value) {
            (1, FieldValue::Bytes(group)) => groups.push(group),
            (1, _) => return Err(ParseError("LogGroupList")),
            _ => {}
        }
    }
    Ok(groups)
}

fn parse_log(bytes: &[u8]) -> Result<LogView<'_>, ParseError> {
    let mut log = LogView::default();
    let mut fields = Fields { bytes };
    while let Some((number, value)) = fields.next().ok_or(ParseError("Log"))? {
        match (number, value) {
            (1, FieldValue::Varint(time)) => {
                log.time = Some(u32::try_from(time).map_err(|_| ParseError("Log"))?);
            }
            (2, FieldValue::Bytes(content)) => log.contents.push(parse_pair(content)?),
            (4, FieldValue::Fixed32(nanos)) => log.time_ns = Some(nanos),
            (1 | 2 | 4, _) => return Err(ParseError("Log")),
            _ => {}
        }
    }
    Ok(log)
}

/// Reads a Content or a LogTag: both of its fields are required.
fn parse_pair(bytes: &[u8]) -> Result<(&[u8], &[u8]), ParseError> {
    let (mut key, mut pair_value) = (None, None);
    let mut fields = Fields { bytes };
    while let Some((number, value)) = fields.next().ok_or(ParseError("key-value pair"))? {
        match (number, value) {
            (1, FieldValue::Bytes(bytes)) => key = Some(bytes),
            (2, FieldValue::Bytes(bytes)) => pair_value = Some(bytes),
            (1 | 2, _) => return Err(ParseError("key-value pair")),
            _ => {}
        }
    }
    key.zip(pair_value).ok_or(ParseError("key-value pair"))
}

/// Walks over a message's fields.
struct Fields<'a> {
    bytes: &'a [u8],
}

enum FieldValue<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
    /// Of a kind that no message of SLS's has.
    Other,
}

/// How deep groups, protobuf's old form of messages in messages, may be nested.
const GROUPS_DEPTH_MAX: u32 = 32;

impl<'a> Fields<'a> {
    /// The next field's number and value; `Some(None)` at the end, `None` when the bytes are bad.
    #[allow(clippy::option_option)]
    fn next(&mut self) -> Option<Option<(u64, FieldValue<'a>)>> {
        if self.bytes.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => FieldValue::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                FieldValue::Other
            }
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                FieldValue::Bytes(self.take(len)?)
            }
            3 => {
                self.skip_group(tag >> 3, GROUPS_DEPTH_MAX)?;
                FieldValue::Other
            }
            5 => FieldValue::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        let number = tag >> 3;
        (number > 0).then_some(Some((number, value)))
    }

    /// Passes over a group of that number, whose beginning is read, and its end.
    fn skip_group(&mut self, number: u64, depth: u32) -> Option<()> {
        loop {
            let tag = self.varint()?;
            match tag & 7 {
                0 => drop(self.varint()?),
                1 => drop(self.take(8)?),
                2 => {
                    let len = usize::try_from(self.varint()?).ok()?;
                    self.take(len)?;
                }
                3 => self.skip_group(tag >> 3, depth.checked_sub(1)?)?,
                4 => return (tag >> 3 == number).then_some(()),
                5 => drop(self.take(4)?),
                _ => return None,
            }
        }
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(head)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for (index, byte) in self.bytes.iter().take(10).enumerate() {
            if index == 9 && *byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[index + 1..];
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
