//! Entries of a journal as the body of one request.
//!
//! Rule: what can't be put together is refused here in the same way as by every other member, so that it gets a verdict; what is
//! not in the journal as the applier has seen it is not sent. Must not know: the node's routes, notes.

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::counts::Deletions;
use crate::proto::apply::{Flaw, Request};
use crate::proto::document::Function;
use crate::proto::journal::{Entry, Kind};
use crate::proto::tasks::home::body;
use crate::services::journal::JournalHandle;
use crate::services::local::Work;
use crate::store::{JournalStore, StoreError};
use crate::types::{JournalKey, PhysicalIndex, ShardId};

/// Of one read of a journal.
const READ_ENTRIES: usize = 1_024;
/// The same, in bytes, unless it is one entry.
const READ_BYTES: usize = 8 << 20;

/// What came of it.
#[derive(Debug)]
pub(super) enum Built {
    /// What is to be sent, and the deletions in it that are to be counted before.
    Work(Work, Deletions),
    /// No node would take it.
    Refused(Flaw),
    /// The journal does not hold what was seen in it; why, for people.
    NotThere(String),
}

/// Reads the entries of a request and puts them together.
///
/// Cancel-safe.
///
/// # Errors
/// [`StoreError`]; a damaged journal is repaired, and its copy made anew.
pub(super) async fn build(
    store: &JournalStore,
    journals: &JournalHandle,
    index: &PhysicalIndex,
    request: &Request,
    tag: String,
) -> Result<Built, StoreError> {
    let (mut payloads, mut deletions) = (Payloads::new(request.kind), Deletions::new());
    for span in &request.spans {
        let key = JournalKey { index: index.clone(), shard: span.shard };
        let mut next = span.first;
        while next <= span.last {
            let most = usize::try_from(span.last - next + 1).map_or(READ_ENTRIES, |left| left.min(READ_ENTRIES));
            let entries = match store.load(&key, next, most, READ_BYTES).await {
                Err(StoreError::Damaged { reason, .. }) => {
                    journals.repair(&key, reason.clone()).await;
                    return Ok(Built::NotThere(format!("the journal of {key} is damaged: {reason}")));
                }
                read => read?,
            };
            if entries.is_empty() {
                return Ok(Built::NotThere(format!("entry {next} of {key} is not in the journal any more")));
            }
            for entry in &entries {
                let seq = entry.at.seq;
                if entry.kind.is_idle() || request.without.contains(&(span.shard, seq)) {
                    continue;
                }
                if entry.kind != request.kind {
                    return Ok(Built::NotThere(format!("entry {seq} of {key} is another than before")));
                }
                if let Err(flaw) = payloads.add(span.shard, entry) {
                    return Ok(Built::Refused(flaw));
                }
                if entry.kind.is_deletion() {
                    let payload = payload(entry).map(Bytes::copy_from_slice).unwrap_or_default();
                    deletions.push(((span.shard, seq), payload));
                }
            }
            next += entries.len() as u64;
        }
    }
    let shards = request.spans.iter().map(|span| span.shard).collect();
    Ok(Built::Work(Work { kind: request.kind, body: payloads.body(), shards, tag }, deletions))
}

/// Payloads of entries of one kind.
#[derive(Debug)]
struct Payloads {
    kind: Kind,
    out: Vec<u8>,
    /// Where the documents of each further shard begin in `out`.
    shards: Vec<(ShardId, usize)>,
    count: usize,
}

impl Payloads {
    fn new(kind: Kind) -> Self {
        Self { kind, out: Vec::new(), shards: Vec::new(), count: 0 }
    }

    fn add(&mut self, shard: ShardId, entry: &Entry) -> Result<(), Flaw> {
        let payload = payload(entry)?;
        self.count += 1;
        match self.kind {
            Kind::Set { .. } | Kind::Merge { .. } => {
                if self.shards.last().is_none_or(|(last, _)| *last != shard) {
                    self.shards.push((shard, self.out.len()));
                }
                self.out.extend_from_slice(payload);
                if !payload.ends_with(b"\n") {
                    self.out.push(b'\n');
                }
            }
            Kind::Delete => {
                let ids: Vec<IgnoredAny> = serde_json::from_slice(payload).map_err(|e| malformed(&e))?;
                let inner = payload.trim_ascii();
                if !ids.is_empty() {
                    self.out.push(if self.out.is_empty() { b'[' } else { b',' });
                    self.out.extend_from_slice(&inner[1..inner.len() - 1]);
                }
            }
            // All parts of one request say the same.
            Kind::DeleteByFilter if self.count > 1 => {}
            Kind::DeleteByFilter => {
                let object: Map<String, Value> = serde_json::from_slice(payload).map_err(|e| malformed(&e))?;
                if !object.get("filter").is_some_and(has_condition) {
                    return Err(malformed(&"a filter without a condition"));
                }
                self.out.extend_from_slice(payload);
            }
            // Wrapped for one shard, it would mark the documents of others wrongly.
            Kind::Edit if self.count > 1 => return Err(malformed(&"several editions in one request")),
            Kind::Edit => {
                let mut object: Map<String, Value> = serde_json::from_slice(payload).map_err(|e| malformed(&e))?;
                let Some(Value::String(function)) = object.get_mut("function") else {
                    return Err(malformed(&"an edition without a function"));
                };
                *function = Function::parse(function).map_err(|e| malformed(&e))?.wrapped(shard);
                serde_json::to_writer(&mut self.out, &object).map_err(|e| malformed(&e))?;
            }
            Kind::Clear | Kind::Empty | Kind::Refusal | Kind::Home => {}
        }
        Ok(())
    }

    fn body(mut self) -> Bytes {
        if self.kind == Kind::Delete {
            self.out.extend_from_slice(if self.out.is_empty() { b"[]" } else { b"]" });
        }
        let starts: Vec<usize> = self.shards.iter().map(|(_, start)| *start).collect();
        mixed(self.out, &starts).into()
    }
}

/// Documents of several shards, one a line, those of each from one of `starts` on, about as they came from the client before they
/// were divided: each shard's in their order, evenly among the others'. Nodes index documents faster beside what they came with,
/// which is often alike: up to a fifth less work than shard by shard.
fn mixed(documents: Vec<u8>, starts: &[usize]) -> Vec<u8> {
    if starts.len() < 2 {
        return documents;
    }
    let mut lines = Vec::new();
    for (i, start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(documents.len());
        let (first, mut at) = (lines.len(), *start);
        for to in memchr::memchr_iter(b'\n', &documents[*start..end]).map(|to| start + to + 1) {
            lines.push((0, at..to));
            at = to;
        }
        let count = lines.len() - first;
        for (place, line) in lines[first..].iter_mut().enumerate() {
            // The middle of its share of the whole, in 2^-32.
            line.0 = ((2 * place as u64 + 1) << 31) / count as u64;
        }
    }
    lines.sort_by_key(|(place, _)| *place);
    let mut out = Vec::with_capacity(documents.len());
    lines.into_iter().for_each(|(_, line)| out.extend_from_slice(&documents[line]));
    out
}

/// What an entry brings.
pub(super) fn payload(entry: &Entry) -> Result<&[u8], Flaw> {
    let split = body::split(&entry.body.0);
    split.map(|(_, payload)| payload).ok_or_else(|| malformed(&"the body of an entry without the head of its task"))
}

/// Every member says the same of it, as a node does of a body that it can't read.
fn malformed(why: &dyn std::fmt::Display) -> Flaw {
    Flaw::new("malformed_payload", &format!("The payload provided is malformed: `{why}`."))
}

/// With the filter on shards beside it, one without a condition would find every document.
fn has_condition(filter: &Value) -> bool {
    match filter {
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(list) => list.iter().any(has_condition),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Position, TaskPart, TaskUid};

    fn entry(kind: Kind, payload: &str) -> Entry {
        let (part, at) = (Some(TaskPart { task: TaskUid(1), part: 0 }), Position { epoch: Epoch::ZERO, seq: 1 });
        Entry { at, part, kind, body: body::join(b"{}", payload.as_bytes()).unwrap() }
    }

    fn together(kind: Kind, payloads: &[&str]) -> Result<String, String> {
        let mut all = Payloads::new(kind);
        for payload in payloads {
            all.add(ShardId(5), &entry(kind, payload)).map_err(|flaw| flaw.code)?;
        }
        Ok(String::from_utf8(all.body().to_vec()).unwrap())
    }

    #[test]
    fn payloads_of_one_kind_are_one_payload() {
        let set = Kind::Set { skip_creation: false };
        assert_eq!(
            together(set, &["{\"a\":1}\n{\"a\":2}", "{\"a\":3}\n"]).unwrap(),
            "{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n"
        );
        assert_eq!(together(Kind::Delete, &[" [1 ,\"a\"]\n", "[]", "[3]"]).unwrap(), "[1 ,\"a\",3]");
        assert_eq!(together(Kind::Delete, &["[]"]).unwrap(), "[]");
        let filter = r#"{"filter":[["a = 1"]]}"#;
        assert_eq!(together(Kind::DeleteByFilter, &[filter, filter]).unwrap(), filter);
        assert_eq!(together(Kind::Clear, &["", ""]).unwrap(), "");
    }

    #[test]
    fn documents_of_several_shards_are_mixed_and_those_of_each_keep_their_order() {
        let mut all = Payloads::new(Kind::Merge { skip_creation: false });
        let parts = [(1, "a1\na2\n"), (1, "a3\na4"), (2, ""), (3, "b1\nb2\n"), (4, "c1")];
        for (shard, payload) in parts {
            all.add(ShardId(shard), &entry(Kind::Merge { skip_creation: false }, payload)).unwrap();
        }
        let text = String::from_utf8(all.body().to_vec()).unwrap();
        // One without documents has an empty line.
        assert_eq!(
            text.split('\n').filter(|line| !line.is_empty()).collect::<Vec<_>>(),
            ["a1", "b1", "a2", "c1", "a3", "b2", "a4"]
        );
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn a_function_is_wrapped_for_the_one_shard_that_it_is_for() {
        let edit = r#"{"filter":"a = 1","function":"doc.n += 1","context":{"a":1.50}}"#;
        let sent: Value = serde_json::from_str(&together(Kind::Edit, &[edit]).unwrap()).unwrap();
        let wrapped = Function::parse("doc.n += 1").unwrap().wrapped(ShardId(5));
        assert_eq!(sent, serde_json::json!({"filter": "a = 1", "function": wrapped, "context": {"a": 1.5}}));
        for bad in [&[edit, edit][..], &["{}"], &[r#"{"function":1}"#], &[r#"{"function":"exit()"}"#], &["[]"]] {
            assert_eq!(together(Kind::Edit, bad).unwrap_err(), "malformed_payload", "{bad:?}");
        }
    }

    #[test]
    fn what_would_become_something_else_beside_others_is_refused() {
        for bad in ["[1", "1]", "[1],[2]", "{}", "", "[1] x"] {
            assert_eq!(together(Kind::Delete, &[bad]).unwrap_err(), "malformed_payload", "{bad}");
        }
        for all in ["{}", r#"{"filter":null}"#, r#"{"filter":""}"#, r#"{"filter":[" ",[]]}"#, r#"{"filter":1}"#, "[]"] {
            assert_eq!(together(Kind::DeleteByFilter, &[all]).unwrap_err(), "malformed_payload", "{all}");
        }
        let headless = Entry { body: crate::proto::journal::Body(b"x".as_slice().into()), ..entry(Kind::Delete, "") };
        assert!(Payloads::new(Kind::Delete).add(ShardId(0), &headless).is_err());
    }
}
