//! What survives the end of the simulator: every call that changed something, in its order.
//!
//! ```text
//! file:   record record record …          only ever appended to
//! record: length u32 · check 8 bytes · head length u32 · head (JSON) · body (of the request)
//! ```
//!
//! A call is served, written here and synced before its answer leaves; while that happens no other
//! call is served, so nobody sees what may still be lost. At the start the calls are served again.
//! A record that is cut short by a crash was never acknowledged; it is dropped.

use std::fs::{File, OpenOptions, create_dir_all};
use std::io::{BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hyper::Method;
use serde::{Deserialize, Serialize};

use crate::sim::http::Request;
use crate::sim::switch::Switches;

/// The longest record: a body and a head, both below.
const RECORD_BYTES_MAX: u32 = 128 * 1024 * 1024;

const FILE_NAME: &str = "journal";

/// A call that changed something.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When it was served, on the simulator's clock.
    pub unix_ms: i64,
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    /// As they were when it was served.
    pub switches: Switches,
    /// Where a PutLogs call without hash key went.
    pub shard: Option<u32>,
    /// A PutLogs call that a quota refused after its number was recorded: only that is repeated.
    pub number_only: bool,
    #[serde(skip)]
    pub body: Bytes,
}

impl Entry {
    /// What `request` was, to be served again.
    pub fn of(request: &Request, unix_ms: i64, switches: &Switches) -> Self {
        // Neither signatures nor what only a living client needs.
        let kept = ["host", "x-log-project", "content-type", "x-log-compresstype"];
        let is_kept = |name: &str| kept.contains(&name) || name == "x-log-bodyrawsize";
        let headers = request.headers.iter().filter(|(name, _)| is_kept(name));
        Self {
            unix_ms,
            method: request.method.to_string(),
            target: request.target.clone(),
            headers: headers.cloned().collect(),
            switches: switches.clone(),
            shard: None,
            number_only: false,
            body: request.body.clone(),
        }
    }

    /// The request that it was, without its signature.
    pub fn request(&self) -> anyhow::Result<Request> {
        let method = Method::from_bytes(self.method.as_bytes())?;
        let request = Request::new(method, &self.target, self.headers.clone(), self.body.clone());
        request.map_err(|refusal| anyhow::anyhow!(refusal.message))
    }

    fn encode(&self) -> Vec<u8> {
        let head = serde_json::to_vec(self).expect("an entry is plain values");
        let head_len = u32::try_from(head.len()).expect("a head is far below 4 GB");
        [&head_len.to_le_bytes()[..], &head, &self.body].concat()
    }

    fn decode(record: Vec<u8>) -> anyhow::Result<Self> {
        let mut record = Bytes::from(record);
        let head_len = record.split_to_checked(4).context("no length of the head")?;
        let head_len = u32::from_le_bytes(head_len[..].try_into()?) as usize;
        let head = record.split_to_checked(head_len).context("no head")?;
        Ok(Self { body: record, ..serde_json::from_slice(&head)? })
    }
}

/// `Bytes::split_to` panics where this gives `None`.
trait SplitToChecked: Sized {
    fn split_to_checked(&mut self, at: usize) -> Option<Self>;
}

impl SplitToChecked for Bytes {
    fn split_to_checked(&mut self, at: usize) -> Option<Self> {
        (at <= self.len()).then(|| self.split_to(at))
    }
}

/// The open file; this process alone has it.
pub struct Journal {
    file: File,
    /// Writing has failed: what is in memory may not be on disk.
    is_broken: bool,
}

impl Journal {
    /// Opens the journal in `folder`, which is made if it is missing, and hands every entry to
    /// `replay` in order.
    ///
    /// Fails if another process has it, if `replay` does, or if anything but its end is damaged.
    pub fn open(
        folder: &Path,
        mut replay: impl FnMut(Entry) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        create_dir_all(folder)?;
        let path = folder.join(FILE_NAME);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        if file.try_lock().is_err() {
            bail!("another process uses it");
        }
        let mut good = 0;
        {
            let mut reader = BufReader::new(&file);
            while let Some(record) = read_record(&mut reader)? {
                let len = record.len() as u64;
                Entry::decode(record)
                    .and_then(&mut replay)
                    .with_context(|| format!("serve again what stands at byte {good}"))?;
                good += HEAD_BYTES as u64 + len;
            }
        }
        let len = file.seek(SeekFrom::End(0))?;
        if good < len {
            file.seek(SeekFrom::Start(good))?;
            if let Some(record) = whole_record(&mut file)?
                && good + record < len
            {
                bail!("its record at byte {good} of {len} is damaged");
            }
            tracing::warn!("dropped {} bytes that were never acknowledged", len - good);
            file.set_len(good)?;
        }
        file.sync_all()?;
        // The file's name is to survive too.
        File::open(folder)?.sync_all()?;
        Ok(Self { file, is_broken: false })
    }

    /// Appends `entry`; when this returns it is on disk.
    ///
    /// After a failure nothing is taken any more.
    pub fn append(&mut self, entry: &Entry) -> anyhow::Result<()> {
        if self.is_broken {
            bail!("the journal could not be written before");
        }
        let record = entry.encode();
        let len = u32::try_from(record.len()).context("the record is too long")?;
        let head = [&len.to_le_bytes()[..], &check(&record)].concat();
        self.is_broken = true;
        self.file.write_all(&[head, record].concat())?;
        self.file.sync_data()?;
        self.is_broken = false;
        Ok(())
    }

    pub fn is_broken(&self) -> bool {
        self.is_broken
    }
}

impl Drop for Journal {
    /// Gives the file free at once: closing it is not enough while a child process that is just being
    /// started still has a copy of it.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!("the journal stays locked until this process ends: {error}");
        }
    }
}

/// Length and check of a record.
const HEAD_BYTES: usize = 12;

fn check(record: &[u8]) -> [u8; 8] {
    let hash = blake3::hash(record);
    hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes")
}

/// The next record; `None` at the end, and where a record is cut short or damaged.
fn read_record(reader: &mut impl Read) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(head) = read_whole(reader, HEAD_BYTES)? else { return Ok(None) };
    let (len, expected) = head.split_at(4);
    let len = u32::from_le_bytes(len.try_into().expect("it was split there"));
    if len > RECORD_BYTES_MAX {
        return Ok(None);
    }
    let record = read_whole(reader, len as usize)?;
    Ok(record.filter(|record| check(record) == expected))
}

/// How long the record here is, head included, if the file does not end before it does.
fn whole_record(reader: &mut impl Read) -> anyhow::Result<Option<u64>> {
    let Some(head) = read_whole(reader, HEAD_BYTES)? else { return Ok(None) };
    let len = u32::from_le_bytes(head[..4].try_into().expect("a head is longer"));
    let is_whole = len <= RECORD_BYTES_MAX && read_whole(reader, len as usize)?.is_some();
    Ok(is_whole.then_some(HEAD_BYTES as u64 + u64::from(len)))
}

/// `len` bytes, or `None` if the file ends before.
fn read_whole(reader: &mut impl Read, len: usize) -> anyhow::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader.take(len as u64).read_to_end(&mut bytes)?;
    Ok((bytes.len() == len).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(target: &str) -> Entry {
        let mut request = Request::for_test(target, &[("host", "p.x"), ("date", "x")], b"body");
        request.method = Method::POST;
        Entry::of(&request, 5, &Switches::default())
    }

    fn targets(folder: &Path) -> Vec<String> {
        let mut targets = Vec::new();
        let opened = Journal::open(folder, |entry| {
            let request = entry.request()?;
            assert_eq!((&request.body[..], request.header("date")), (&b"body"[..], None));
            assert_eq!((&request.method, request.project().ok()), (&Method::POST, Some("p")));
            targets.push(entry.target);
            Ok(())
        });
        drop(opened.unwrap());
        targets
    }

    #[test]
    fn what_was_appended_comes_back_in_order_and_one_process_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), |_| panic!("it is empty")).unwrap();
        journal.append(&entry("/a")).unwrap();
        journal.append(&entry("/b?c=d")).unwrap();
        assert!(Journal::open(folder.path(), |_| Ok(())).is_err(), "it is in use");
        drop(journal);
        assert_eq!(targets(folder.path()), ["/a", "/b?c=d"]);
    }

    #[test]
    fn it_is_free_at_once_although_a_child_still_has_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), |_| panic!("it is empty")).unwrap();
        let inherited = journal.file.try_clone().unwrap();
        drop(journal);
        assert!(Journal::open(folder.path(), |_| Ok(())).is_ok());
        drop(inherited);
    }

    #[test]
    fn damage_before_the_end_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut journal = Journal::open(folder.path(), |_| Ok(())).unwrap();
        journal.append(&entry("/a")).unwrap();
        journal.append(&entry("/b")).unwrap();
        drop(journal);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD_BYTES] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = Journal::open(folder.path(), |_| Ok(())).err().unwrap();
        assert!(error.to_string().contains("damaged"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing was dropped");
    }

    /// Cut anywhere, and with any byte of the last record damaged but those of its length: the first
    /// record survives. A length that is too short looks like damage before the end, which is told.
    #[test]
    fn a_torn_end_is_dropped_and_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut journal = Journal::open(folder.path(), |_| Ok(())).unwrap();
        journal.append(&entry("/a")).unwrap();
        let first = std::fs::metadata(&path).unwrap().len() as usize;
        journal.append(&entry("/b")).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for at in first..whole.len() {
            std::fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(targets(folder.path()), ["/a"], "cut at {at}");
            if at < first + 4 {
                continue;
            }
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(targets(folder.path()), ["/a"], "damaged at {at}");
            let mut journal = Journal::open(folder.path(), |_| Ok(())).unwrap();
            journal.append(&entry("/c")).unwrap();
            drop(journal);
            assert_eq!(targets(folder.path()), ["/a", "/c"]);
        }
    }
}
